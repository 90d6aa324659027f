"""The filling warps of the prompt product: tokens and weights into the rings, 64 columns a stage (Gluon)."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from mobiquant_core.kernels.gluon_names import async_load
from mobiquant_core.kernels.prompt_cuts import COLUMNS, THREADS, cut, factors, load_ranges, load_words
from mobiquant_core.kernels.prompt_units import (
    WIDEST,
    WIDTHS,
    advance,
    first_token,
    parts_of,
    place_of,
    row_blocks,
    token_tiles,
    units_left,
)


@gluon.jit
def _bring(x_desc, sorted_desc, is_sorted, x_ring, full, slot, place, column):
    """Asks for 64 columns of a tile's tokens; columns past the last arrive as zeros, and count."""
    if is_sorted:
        async_load(sorted_desc, [place, column], full.index(slot), x_ring.index(slot))
    else:
        async_load(x_desc, [place, column], full.index(slot), x_ring.index(slot))


@gluon.jit
def _group_at(row, group, first_tile, tiles, groups, HALF: gl.constexpr):
    """Number of a group of each warp's rows in a half of a row block."""
    i_warp = gl.arange(0, 128, layout=THREADS) // 32
    return (first_tile + gl.minimum(row * 8 + HALF * 4 + i_warp, tiles - 1)) * groups + group


@gluon.jit
def _fill_units(
    x_desc, sorted_desc, is_sorted, p_planes, p_ranges, even, odd, full, o_plane, groups, first_tile, tiles, index,
    begin, end, tiles_of_tokens, first, count, width, slot, phase, SLOTS: gl.constexpr, K: gl.constexpr,
):  # fmt: skip
    """All units of one width and depth."""
    blocks, parts = row_blocks(tiles), parts_of(width, groups)
    stride = gl.num_programs(0)
    i_lane = gl.arange(0, 128, layout=THREADS) % 32
    o_words, o_ranges = i_lane * 4, i_lane // 4 * 2
    if index < end:
        _tile, row, group, _count = place_of(index - begin, tiles_of_tokens, blocks, parts, groups)
        at0 = _group_at(row, group, first_tile, tiles, groups, 0)
        at1 = _group_at(row, group, first_tile, tiles, groups, 1)
        w0 = load_words(p_planes, at0 * 128 + o_words, o_plane, K)
        w1 = load_words(p_planes, at1 * 128 + o_words, o_plane, K)
        r0 = load_ranges(p_ranges, at0 * 16 + o_ranges)
        r1 = load_ranges(p_ranges, at1 * 16 + o_ranges)
        for _ in range(units_left(end, index)):
            tile, row, group, own_groups = place_of(index - begin, tiles_of_tokens, blocks, parts, groups)
            place = first + first_token(tile, count, width)
            column = group * 128
            following = gl.where(index + stride < end, index + stride, index)
            _tile, row, group, _count = place_of(following - begin, tiles_of_tokens, blocks, parts, groups)
            next0 = _group_at(row, group, first_tile, tiles, groups, 0)
            next1 = _group_at(row, group, first_tile, tiles, groups, 1)
            for i in range(own_groups):
                # The next group's words are on their way while those of this one are cut.
                at0 = gl.where(i + 1 < own_groups, at0 + 1, next0)
                at1 = gl.where(i + 1 < own_groups, at1 + 1, next1)
                f0 = factors(r0[0], K) + factors(r0[1], K)
                f1 = factors(r1[0], K) + factors(r1[1], K)
                r0 = load_ranges(p_ranges, at0 * 16 + o_ranges)
                r1 = load_ranges(p_ranges, at1 * 16 + o_ranges)
                n0 = load_words(p_planes, at0 * 128 + o_words, o_plane, K)
                n1 = load_words(p_planes, at1 * 128 + o_words, o_plane, K)
                # Nothing is expected before the stage is free: the phase before may still wait for its tokens.
                mbarrier.wait(even[2].index(slot), phase ^ 1)
                mbarrier.expect(full.index(slot), 2 * WIDEST * COLUMNS * 2)
                _bring(x_desc, sorted_desc, is_sorted, even[0], full, slot, place, column)
                even[1].index(slot).store(cut(w0, w1, f0, f1, 0, K))
                mbarrier.wait(odd[2].index(slot), phase ^ 1)
                _bring(x_desc, sorted_desc, is_sorted, odd[0], full, slot, place, column + COLUMNS)
                odd[1].index(slot).store(cut(w0, w1, f0, f1, 1, K))
                fence_async_shared()
                mbarrier.arrive(full.index(slot))
                slot, phase = advance(slot, phase, SLOTS)
                column += 2 * COLUMNS
                w0, w1 = n0, n1
            index += stride
    return index, slot, phase


@gluon.jit
def fill(
    x_desc, sorted_desc, p_planes, p_ranges, p_count, even, odd, full, o_plane, groups, first_tile, tiles,
    SLOTS: gl.constexpr, SLICES: gl.constexpr,
):  # fmt: skip
    """Every stage of this program's units. One loop for each depth."""
    index = gl.program_id(0)
    slot, phase, end = index * 0, index * 0, index * 0
    is_sorted = gl.load(p_count) != 0
    for i_width in range(WIDTHS):
        width = WIDEST >> i_width
        first = end * 0
        for k in gl.static_range(1, SLICES + 1):
            count = gl.load(p_count + k)
            tiles_of_tokens = token_tiles(count, width)
            begin = end
            end = begin + tiles_of_tokens * row_blocks(tiles) * parts_of(width, groups)
            index, slot, phase = _fill_units(
                x_desc, sorted_desc, is_sorted, p_planes, p_ranges, even, odd, full, o_plane, groups, first_tile, tiles,
                index, begin, end, tiles_of_tokens, first, count, width, slot, phase, SLOTS, k,
            )  # fmt: skip
            first += count
