"""Products of many tokens sorted by depth, a tile of tokens at one depth: over dense weights, or straight from planes.

Tokens are gathered by their order as they are read and results are put in their places as they are written, so nothing
is copied around the product. The second kernel never writes a dense weight: it builds each tile of it in registers, as
the left operand, in the order of columns in which lanes hold the planes. It knows neither sorting nor unpacking.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mobiquant_core.kernels.batch_gemv import _word_codes
from mobiquant_core.kernels.plane_gemv import half_of
from mobiquant_core.kernels.unpack import _value
from mobiquant_core.packing import PackedWeight


@triton.jit
def _tile_at(p_end, i_tile, SLICES: tl.constexpr, BM: tl.constexpr):
    """(depth or 0 past the last tile, first place, end) of a tile of BM places in the sorted order."""
    depth, first, end = i_tile * 0, i_tile * 0, i_tile * 0
    start, tiles = i_tile * 0, i_tile * 0
    for k in tl.static_range(SLICES):
        stop = tl.load(p_end + k)
        more = tl.cdiv(stop - start, BM)
        here = (i_tile >= tiles) & (i_tile < tiles + more)
        depth = tl.where(here, k + 1, depth)
        first = tl.where(here, start + (i_tile - tiles) * BM, first)
        end = tl.where(here, stop, end)
        start, tiles = stop, tiles + more
    return depth, first, end


@triton.jit
def _program_at(tiles, blocks, TOGETHER: tl.constexpr):
    """(tile of tokens, block of rows): TOGETHER blocks of rows go through all tokens while they are in the L2 cache."""
    program = tl.program_id(0)
    band = program // (tiles * TOGETHER)
    width = tl.minimum(blocks - band * TOGETHER, TOGETHER)
    within = program - band * tiles * TOGETHER
    return within // width, band * TOGETHER + within % width


@triton.jit
def dense_kernel(
    p_x, p_w, p_token, p_end, p_y, p_bias, p_shift, o_depth, tiles, rows, width,
    SLICES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """BM tokens of one depth by BN rows of that depth's dense weight."""
    i_tile, i_block = _program_at(tiles, tl.cdiv(rows, BN), TOGETHER)
    depth, first, end = _tile_at(p_end, i_tile, SLICES, BM)
    if depth > 0:
        i_place, i_row = first + tl.arange(0, BM), i_block * BN + tl.arange(0, BN)
        m_place = i_place < end
        i_token = tl.load(p_token + i_place, mask=m_place, other=0)
        i_column = tl.arange(0, BK)
        b_acc = tl.zeros((BM, BN), tl.float32)
        p_left = p_x + i_token.to(tl.int64)[:, None] * width + i_column[None, :]
        p_w += (depth - 1) * o_depth.to(tl.int64)
        p_right = p_w + tl.minimum(i_row, rows - 1).to(tl.int64)[None, :] * width + i_column[:, None]
        for _ in range(0, width // BK):
            b_acc = tl.dot(tl.load(p_left), tl.load(p_right), b_acc)
            p_left += BK
            p_right += BK
        m_row = i_row < rows
        b_acc += _extra(p_bias, p_shift, depth, i_row, rows)[None, :]
        o_y = i_token.to(tl.int64)[:, None] * rows + i_row[None, :]
        tl.store(p_y + o_y, b_acc.to(p_y.dtype.element_ty), mask=m_place[:, None] & m_row[None, :])


@triton.jit
def _extra(p_bias, p_shift, depth, i_row, rows):
    """Bias and the shift of that depth, at some rows."""
    b_extra = tl.zeros(i_row.shape, tl.float32)
    if p_bias is not None:
        b_extra += tl.load(p_bias + i_row, mask=i_row < rows, other=0.0).to(tl.float32)
    if p_shift is not None:
        b_extra += tl.load(p_shift + (depth - 1) * rows + i_row, mask=i_row < rows, other=0.0).to(tl.float32)
    return b_extra


@triton.jit
def _field_values(b_code, b_range, b_low, DTYPE: tl.constexpr):
    """Four weights out of each word: [tiles, 128, 2, 2], the axes being bits 0 and 1 of the byte."""
    b_first = tl.join(_value(b_code, 0, b_range, b_low).to(DTYPE), _value(b_code, 2, b_range, b_low).to(DTYPE))
    b_second = tl.join(_value(b_code, 1, b_range, b_low).to(DTYPE), _value(b_code, 3, b_range, b_low).to(DTYPE))
    return tl.join(b_first, b_second)


@triton.jit
def _left_tile(c0, c1, c2, c3, b_range, b_low, BN: tl.constexpr, DTYPE: tl.constexpr):
    """Weights of the four fields of every word as [BN, 128]; columns as `sorted_inputs` orders them."""
    v0, v1 = _field_values(c0, b_range, b_low, DTYPE), _field_values(c1, b_range, b_low, DTYPE)
    v2, v3 = _field_values(c2, b_range, b_low, DTYPE), _field_values(c3, b_range, b_low, DTYPE)
    b_all = tl.join(tl.join(v0, v2), tl.join(v1, v3))
    # Axes: tile, row 0-7, lane c, half h, row half; byte bits 1 and 0; field bits 1 and 0. Permuted so, every lane
    # holds what the tensor cores want of it, and nothing moves between lanes.
    b_all = tl.reshape(b_all, (BN // 16, 8, 4, 2, 2, 2, 2, 2, 2))
    return tl.reshape(tl.permute(b_all, (0, 4, 1, 7, 8, 3, 5, 2, 6)), (BN, 128))


@triton.jit
def _plane_loop(
    p_w, p_r, x, o_right, first, o_w, o_r, o_plane, NG, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DTYPE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows by tokens, [BN, BM], at depth K."""
    b_acc = tl.zeros((BN, BM), tl.float32)
    for i in range(NG):
        b_word = tl.load(p_w + o_w + i * 128)
        w = (b_word, b_word, b_word, b_word)
        for plane in tl.static_range(1, K):
            b_word = tl.load(p_w + o_w + i * 128 + plane * o_plane)
            w = w + (b_word, b_word, b_word, b_word)  # noqa: RUF005
        b_ranges = tl.load(p_r + o_r + i * 16)
        b_step = half_of(b_ranges, False)
        # A byte is code * 4^(4 - K); as the top of a fraction it counts 4 steps of the first slice per unit.
        b_range = 4.0 * b_step
        b_low = half_of(b_ranges, True) + b_step * (0.5 * 4.0 ** (1 - K)) - b_range
        c0, c1, c2, c3 = _word_codes(w, 0, K)
        b_right = x.load([first, i * 128]).T if TMA else tl.load(x + o_right + i * 128)
        # One product per step: of two, the compiler would wait for each before it builds the next weights.
        b_acc = tl.dot(_left_tile(c0, c1, c2, c3, b_range, b_low, BN, DTYPE), b_right, b_acc)
    return b_acc


@triton.jit
def plane_kernel(
    p_w, p_r, x, p_token, p_end, p_y, p_bias, p_shift, p_gain, o_plane, NG, first_row_tile, tiles, rows,
    SLICES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TOGETHER: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """BN rows built from planes by BM tokens of one depth; x holds the tokens in sorted order.

    TMA: x is a descriptor of tiles of [BM, 128], for cards from compute capability 9.0; otherwise a pointer.
    """
    i_tile, i_block = _program_at(tiles, tl.cdiv(rows, BN), TOGETHER)
    depth, first, end = _tile_at(p_end, i_tile, SLICES, BM)
    if depth > 0:
        i_place, i_row = first + tl.arange(0, BM), i_block * BN + tl.arange(0, BN)
        m_place, m_row = i_place < end, i_row < rows
        row_tiles = tl.cdiv(rows, 16)
        i_row_tile = first_row_tile + tl.minimum(i_block * (BN // 16) + tl.arange(0, BN // 16), row_tiles - 1)
        i_word = tl.arange(0, 128)
        o_unit = i_row_tile.to(tl.int64)[:, None] * NG
        o_w, o_r = o_unit * 128 + i_word[None, :], o_unit * 16 + (i_word // 16 * 2 + i_word % 2)[None, :]
        i_inner = tl.minimum(i_place, end - 1).to(tl.int64)
        o_right = i_inner[None, :] * NG * 128 + i_word[:, None]
        b_acc = tl.zeros((BN, BM), tl.float32)
        for k in tl.static_range(1, SLICES + 1):
            if depth == k:
                b_acc = _plane_loop(p_w, p_r, x, o_right, first, o_w, o_r, o_plane.to(tl.int64), NG, k, BM, BN,
                                    p_y.dtype.element_ty, TMA)  # fmt: skip
        if p_gain is not None:
            b_acc *= tl.load(p_gain + (depth - 1) * rows + i_row, mask=m_row, other=0.0).to(tl.float32)[:, None]
        b_acc += _extra(p_bias, p_shift, depth, i_row, rows)[:, None]
        i_token = tl.load(p_token + i_place, mask=m_place, other=0)
        o_y = i_token.to(tl.int64)[None, :] * rows + i_row[:, None]
        tl.store(p_y + o_y, b_acc.to(p_y.dtype.element_ty), mask=m_place[None, :] & m_row[:, None])


@triton.jit
def gather_kernel(p_in, p_token, p_out, in_features, width, PERMUTED: tl.constexpr, BLOCK: tl.constexpr):
    """One token to its place, its columns in the order of the planes' lanes."""
    i_out = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i_column = i_out
    if PERMUTED:
        # Within 32 columns: (h, byte bit 1, c, byte bit 0) from (c, h, byte bits 1 and 0).
        i_column = (i_out & -32) | (i_out & 6) << 2 | (i_out & 16) >> 2 | (i_out & 8) >> 2 | i_out & 1
    token = tl.load(p_token + tl.program_id(0)).to(tl.int64)
    b_x = tl.load(p_in + token * in_features + i_column, mask=i_column < in_features, other=0.0)
    tl.store(p_out + tl.program_id(0).to(tl.int64) * width + i_out, b_x, mask=i_out < width)


def sorted_inputs(
    x: Float[Tensor, "tokens in_features"], order: Int32[Tensor, " tokens"], groups: int, *, permuted: bool = True
) -> Float[Tensor, "tokens padded_in"]:
    """Tokens in that order, padded to whole groups, columns ordered for `multiply_planes`."""
    out = x.new_empty(x.shape[0], groups * 128)
    grid = (x.shape[0], triton.cdiv(groups * 128, 2048))
    gather_kernel[grid](x, order, out, x.shape[1], groups * 128, PERMUTED=permuted, BLOCK=2048, num_warps=4)
    return out


def multiply_dense(
    x: Float[Tensor, "tokens padded_in"],
    dense: Float[Tensor, "depths out padded_in"],
    order: Int32[Tensor, " tokens"],
    ends: Int32[Tensor, " depths"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    block: tuple[int, int, int, int] = (128, 256, 8, 3),
) -> Float[Tensor, "tokens out"]:
    """Every token times the dense weight of its depth; block: tokens, rows, warps, stages."""
    tokens, rows = x.shape[0], dense.shape[1]
    BM, BN, warps, stages = block
    tiles = triton.cdiv(tokens, BM) + len(ends) - 1
    y = x.new_empty(tokens, rows)
    dense_kernel[(tiles * triton.cdiv(rows, BN),)](
        x, dense, order, ends, y, bias, shift, dense.stride(0), tiles, rows, x.shape[1],
        SLICES=len(ends), BM=BM, BN=BN, BK=64, TOGETHER=8, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def multiply_planes(
    packed: PackedWeight,
    x: Float[Tensor, "tokens padded_in"],
    order: Int32[Tensor, " tokens"],
    ends: Int32[Tensor, " depths"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
    section: int = 0,
    block: tuple[int, int, int, int] = (128, 128, 8, 3),
    *,
    registers: int | None = None,
    tma: bool | None = None,
) -> Float[Tensor, "tokens out"]:
    """`sorted_inputs` times one section, straight from planes; block: tokens, rows, warps, stages."""
    tokens, rows = x.shape[0], packed.sections[section]
    BM, BN, warps, stages = block
    tiles = triton.cdiv(tokens, BM) + len(ends) - 1
    first = packed.section_tiles[section - 1] if section else 0
    y = x.new_empty(tokens, rows)
    tma = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0) if tma is None else tma
    source = TensorDescriptor.from_tensor(x, [BM, 128]) if tma else x
    plane_kernel[(tiles * triton.cdiv(rows, BN),)](
        packed.planes, packed.ranges, source, order, ends, y, bias, shift, gain, packed.planes.stride(0), packed.groups,
        first, tiles, rows,
        SLICES=packed.slices, BM=BM, BN=BN, TOGETHER=8, TMA=tma, num_warps=warps, num_stages=stages,
        maxnreg=registers,
    )  # fmt: skip
    return y
