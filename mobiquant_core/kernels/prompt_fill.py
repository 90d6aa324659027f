"""The filling warps of the prompt product: tokens and weights into the rings, 64 columns a stage (Gluon)."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from mobiquant_core.kernels.gluon_names import async_load
from mobiquant_core.kernels.prompt_cuts import COLUMNS, THREADS, cut, factors, load_ranges, load_words
from mobiquant_core.kernels.prompt_plan import ENTRY, NARROWEST, SURPLUS, WIDEST
from mobiquant_core.kernels.prompt_units import advance, all_units, in_a_word, take_unit, unit_at

_BYTES = gl.constexpr(2 * COLUMNS * 2)
"""Of a token in two stages."""


@gluon.jit
def _depth_of(p_tile, tile):
    return gl.load(p_tile + tile * ENTRY + 1)


@gluon.jit
def _tell(told, slot, word):
    """Which unit a slot is for."""
    told.index(slot).store(gl.full([1], 0, gl.int32, layout=THREADS) + word)


@gluon.jit
def _bring(boxes, is_sorted, ring, full, slot, kind, place, column, FIRST: gl.constexpr):
    """Asks for 64 columns of a tile's tokens; columns past the last arrive as zeros, and count. The first of two stages
    says how many bytes come for both, which has to be a constant."""
    x_desc, sorted_desc, narrow_desc, surplus_desc = boxes
    x, full = ring[0].index(slot), full.index(slot)
    if not is_sorted:
        if FIRST:
            mbarrier.expect(full, WIDEST * _BYTES)
        async_load(x_desc, [place, column], full, x)
    elif kind < 2:
        if kind == 0:
            if FIRST:
                mbarrier.expect(full, (WIDEST + SURPLUS) * _BYTES)
            async_load(surplus_desc, [place + WIDEST, column], full, ring[1].index(slot))
        elif FIRST:
            mbarrier.expect(full, WIDEST * _BYTES)
        async_load(sorted_desc, [place, column], full, x)
    else:
        if kind == 2:
            if FIRST:
                mbarrier.expect(full, 2 * NARROWEST * _BYTES)
            async_load(narrow_desc, [place + NARROWEST, column], full, x.slice(NARROWEST, NARROWEST))
        elif FIRST:
            mbarrier.expect(full, NARROWEST * _BYTES)
        async_load(narrow_desc, [place, column], full, x.slice(0, NARROWEST))


@gluon.jit
def _tokens_of(p_tile, tile):
    """(kind, whether its tokens are sorted, place of the first of them where they are)."""
    p_own = p_tile + tile * ENTRY
    place, unsorted = gl.load(p_own + 2), gl.load(p_own + 4)
    return gl.load(p_own), unsorted < 0, gl.where(unsorted < 0, place, unsorted)


@gluon.jit
def _groups_at(p_tile, tile, row, group, groups):
    """Number of a group of each warp's rows in both halves of a row block."""
    first, end = gl.load(p_tile + tile * ENTRY + 5), gl.load(p_tile + tile * ENTRY + 6)
    i_tile = first + row * 8 + gl.arange(0, 128, layout=THREADS) // 32
    return gl.minimum(i_tile, end - 1) * groups + group, gl.minimum(i_tile + 4, end - 1) * groups + group


@gluon.jit
def _fill_depth(
    boxes, p_planes, p_ranges, p_tile, p_taken, even, odd, full, told, o_plane, groups, units, index, slot, phase,
    SLOTS: gl.constexpr, K: gl.constexpr,
):  # fmt: skip
    """Units from one on, for as long as they have one depth."""
    i_lane = gl.arange(0, 128, layout=THREADS) % 32
    o_words, o_ranges = i_lane * 4, i_lane // 4 * 2
    tile, row, group, own_groups = unit_at(index, units, groups)
    at0, at1 = _groups_at(p_tile, tile, row, group, groups)
    w0 = load_words(p_planes, at0 * 128 + o_words, o_plane, K)
    w1 = load_words(p_planes, at1 * 128 + o_words, o_plane, K)
    r0 = load_ranges(p_ranges, at0 * 16 + o_ranges)
    r1 = load_ranges(p_ranges, at1 * 16 + o_ranges)
    goes_on = index < units[1]
    while goes_on:
        kind, is_sorted, place = _tokens_of(p_tile, tile)
        column = group * 128
        word = in_a_word(tile, row, group)
        index = take_unit(p_taken)
        tile, row, group, next_groups = unit_at(index, units, groups)
        goes_on = (index < units[1]) & (_depth_of(p_tile, tile) == K)
        next0, next1 = _groups_at(p_tile, tile, row, group, groups)
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
            mbarrier.wait(even[3].index(slot), phase ^ 1)
            _tell(told, slot, word)
            _bring(boxes, is_sorted, even, full, slot, kind, place, column, True)
            even[2].index(slot).store(cut(w0, w1, f0, f1, 0, K))
            mbarrier.wait(odd[3].index(slot), phase ^ 1)
            _bring(boxes, is_sorted, odd, full, slot, kind, place, column + COLUMNS, False)
            odd[2].index(slot).store(cut(w0, w1, f0, f1, 1, K))
            fence_async_shared()
            mbarrier.arrive(full.index(slot))
            slot, phase = advance(slot, phase, SLOTS)
            column += 2 * COLUMNS
            w0, w1 = n0, n1
        own_groups = next_groups
    return index, slot, phase


@gluon.jit
def fill(
    boxes, p_planes, p_ranges, p_tile, p_size, even, odd, full, told, o_plane, groups, most_tiles, SLOTS: gl.constexpr,
    SLICES: gl.constexpr,
):  # fmt: skip
    """Every stage of this program's units. One loop for each depth."""
    units = all_units(p_size, most_tiles, groups)
    index = gl.program_id(0)
    slot, phase = index * 0, index * 0
    while index < units[1]:
        tile, _row, _group, _groups = unit_at(index, units, groups)
        depth = _depth_of(p_tile, tile)
        for k in gl.static_range(1, SLICES + 1):
            if depth == k:
                index, slot, phase = _fill_depth(
                    boxes, p_planes, p_ranges, p_tile, p_size + 3, even, odd, full, told, o_plane, groups, units, index,
                    slot, phase, SLOTS, k,
                )  # fmt: skip
    # The multiplying warps are told that there is no more.
    mbarrier.wait(even[3].index(slot), phase ^ 1)
    _tell(told, slot, slot * 0 - 1)
    mbarrier.arrive(full.index(slot), count=2)
