"""The multiplying warps of the prompt product: from the rings to results (Gluon)."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from mobiquant_core.kernels.gluon_names import barrier
from mobiquant_core.kernels.prompt_cuts import ROWS, SCALE, row_at
from mobiquant_core.kernels.prompt_units import (
    WIDEST,
    WIDTHS,
    advance,
    before,
    first_token,
    parts_of,
    place_of,
    row_blocks,
    token_tiles,
    units_left,
)

PIECE = gl.constexpr(64)
"""Tokens whose results pass through shared memory at once."""
_NARROW = gl.constexpr(128)


@gluon.jit
def _pieces(b_y, WIDTH: gl.constexpr):
    """Results of 64 tokens each."""
    if WIDTH == PIECE:
        return (b_y,)
    else:
        b_first, b_second = gl.split(gl.permute(gl.reshape(b_y, [ROWS, 2, WIDTH // 2]), [0, 2, 1]))
        return _pieces(b_first, WIDTH // 2) + _pieces(b_second, WIDTH // 2)


@gluon.jit
def _store(
    acc, piece, p_token, valid, first_row, rows, p_y, p_gain, p_bias, p_shift, depth, WIDTH: gl.constexpr,
    ACC: gl.constexpr,
):  # fmt: skip
    """Rows times gain plus bias and shift, each token where it came from: 256 bytes of a token in a row."""
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [8, 1], [1, 0])
    i_row = first_row + row_at(gl.arange(0, ROWS, layout=gl.SliceLayout(1, ACC)))
    m_row = i_row < rows
    b_gain = gl.full([ROWS], SCALE, gl.float32, layout=gl.SliceLayout(1, ACC))
    b_add = gl.full([ROWS], 0.0, gl.float32, layout=gl.SliceLayout(1, ACC))
    if p_gain is not None:
        b_gain *= gl.load(p_gain + (depth - 1) * rows + i_row, mask=m_row, other=0.0)
    if p_bias is not None:
        b_add += gl.load(p_bias + i_row, mask=m_row, other=0.0)
    if p_shift is not None:
        b_add += gl.load(p_shift + (depth - 1) * rows + i_row, mask=m_row, other=0.0)
    b_pieces = _pieces((acc * b_gain[:, None] + b_add[:, None]).to(p_y.dtype.element_ty), WIDTH)
    i_out = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, STORE))
    i_slot = gl.arange(0, PIECE, layout=gl.SliceLayout(1, STORE))
    for i in gl.static_range(WIDTH // PIECE):
        m_slot = i * PIECE + i_slot < valid
        i_token = gl.load(p_token + i * PIECE + i_slot, mask=m_slot, other=0)
        piece.store(gl.permute(b_pieces[i], [1, 0]))
        # A thread holds eight places in a row, and puts their rows in order.
        b_out = gl.permute(gl.reshape(piece.load(STORE), [PIECE, ROWS // 8, 2, 2, 2]), [0, 1, 4, 3, 2])
        b_out = gl.convert_layout(gl.reshape(b_out, [PIECE, ROWS]), STORE)
        p_out = p_y + i_token[:, None].to(gl.int64) * rows + i_out[None, :]
        gl.store(p_out, b_out, mask=m_slot[:, None] & (i_out < rows)[None, :])


@gluon.jit
def _with_other_half(acc, p_partial, p_arrived, i_tile, part, WIDTH: gl.constexpr, ACC: gl.constexpr):
    """(sum over both halves of a tile's groups, whether this one came last and knows the other's)."""
    i_place = gl.arange(0, ROWS, layout=gl.SliceLayout(1, ACC))[:, None] * WIDTH
    i_place += gl.arange(0, WIDTH, layout=gl.SliceLayout(0, ACC))[None, :]
    p_tile = p_partial + i_tile.to(gl.int64) * (2 * ROWS * _NARROW)
    gl.store(p_tile + part * (ROWS * _NARROW) + i_place, acc)
    # All of this half is written before anyone hears of it.
    barrier()
    last = gl.atomic_add(p_arrived + i_tile, 1, sem="acq_rel", scope="gpu") > 0
    if last:
        acc += gl.load(p_tile + (1 - part) * (ROWS * _NARROW) + i_place, cache_modifier=".cg")
    return acc, last


@gluon.jit
def _multiply_width(
    p_token, p_count, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, piece, groups, tiles, rows,
    index, end, slot, phase, SLOTS: gl.constexpr, SLICES: gl.constexpr, WIDTH: gl.constexpr,
):  # fmt: skip
    """All units of one width."""
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, WIDTH, 16])
    blocks, parts = row_blocks(tiles), parts_of(WIDTH, groups)
    first = end * 0
    for k in range(1, SLICES + 1):
        count = gl.load(p_count + k)
        tiles_of_tokens = token_tiles(count, WIDTH)
        begin = end
        end = begin + tiles_of_tokens * blocks * parts
        for _ in range(units_left(end, index)):
            tile, row, group, own_groups = place_of(index - begin, tiles_of_tokens, blocks, parts, groups)
            acc = gl.zeros([ROWS, WIDTH], gl.float32, layout=ACC)
            for i in range(own_groups):
                mbarrier.wait(full.index(slot), phase)
                # A stage is free when the products of the one after it have begun and its own are done.
                tokens = even[0].index(slot).slice(0, WIDTH).permute((1, 0))
                acc = warpgroup_mma(even[1].index(slot), tokens, acc, is_async=True)
                acc = warpgroup_mma_wait(1, deps=(acc,))
                # Triton takes a name for unchanged that only takes over another's value: no variable for the last slot.
                mbarrier.arrive(odd[2].index(before(slot, SLOTS)), pred=i > 0)
                tokens = odd[0].index(slot).slice(0, WIDTH).permute((1, 0))
                acc = warpgroup_mma(odd[1].index(slot), tokens, acc, is_async=True)
                acc = warpgroup_mma_wait(1, deps=(acc,))
                mbarrier.arrive(even[2].index(slot))
                slot, phase = advance(slot, phase, SLOTS)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(odd[2].index(before(slot, SLOTS)))
            last = parts == 1
            if WIDTH < WIDEST:  # noqa: SIM102  (the compiler asks about constants and about values apart)
                if parts > 1:
                    # A depth has one narrow tile at most.
                    acc, last = _with_other_half(
                        acc, p_partial, p_arrived, (k - 1) * blocks + row, (group > 0).to(gl.int32), WIDTH, ACC
                    )
            if last:
                own = first_token(tile, count, WIDTH)
                _store(
                    acc, piece, p_token + first + own, count - own, row * ROWS, rows, p_y, p_gain, p_bias, p_shift, k,
                    WIDTH, ACC,
                )  # fmt: skip
            index += gl.num_programs(0)
        first += count
    return index, end, slot, phase


@gluon.jit
def multiply(
    p_token, p_count, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, piece, groups, tiles, rows,
    SLOTS: gl.constexpr, SLICES: gl.constexpr,
):  # fmt: skip
    """Every unit of this program. One loop for each width."""
    index = gl.program_id(0)
    slot, phase, end = index * 0, index * 0, index * 0
    for i_width in gl.static_range(WIDTHS):
        index, end, slot, phase = _multiply_width(
            p_token, p_count, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, piece, groups, tiles,
            rows, index, end, slot, phase, SLOTS, SLICES, WIDEST >> i_width,
        )  # fmt: skip
