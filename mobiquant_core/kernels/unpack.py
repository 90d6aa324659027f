"""Planes to dense 16-bit weights, for every depth that occurs, read from device memory.

The road for many tokens: write the weight once per depth, then let cuBLAS multiply. It knows no activations.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from mobiquant_core.kernels.code_products import merged
from mobiquant_core.kernels.group_sums import half_of
from mobiquant_core.kernels.lanes import pair16, store4, stream2, stream4
from mobiquant_core.packing import PackedWeight

_WARPS = 4
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _value(b_code, BYTE: tl.constexpr, b_range, b_low):
    """b_low + b_range * (1 + byte / 256): the byte becomes the top of an fp32 fraction, so nothing is converted."""
    b_moved = b_code << (15 - 8 * BYTE) if BYTE < 2 else b_code >> (8 * BYTE - 15)
    return ((b_moved & 0x7F8000) | 0x3F800000).to(tl.float32, bitcast=True) * b_range + b_low


@triton.jit
def _value_pair(b_code, BYTE: tl.constexpr, b_range, b_low, DTYPE: tl.constexpr, ASM: tl.constexpr):
    return pair16(_value(b_code, BYTE, b_range, b_low), _value(b_code, BYTE + 1, b_range, b_low), DTYPE, ASM)


@triton.jit
def _store_depth(p_out, p_gain, w, r, o_out, rows, i_row, NG, K: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Sixteen rows of one group at depth K; o_out counts 32-bit words."""
    SCALE: tl.constexpr = 4.0 ** (1 - K)
    for row in tl.static_range(2):
        m_row = (i_row + 8 * row < rows).to(tl.int32)
        b_step, b_edge = half_of(r[row], False) * SCALE, half_of(r[row], True)
        if p_gain is not None:
            b_gain = tl.load(p_gain + (K - 1) * rows + i_row + 8 * row, mask=m_row != 0, other=0.0)
            b_step, b_edge = b_step * b_gain, b_edge * b_gain
        b_range = 256.0 * b_step
        b_low = b_edge + 0.5 * b_step - b_range
        for field in tl.static_range(4):
            b_first, b_second = merged(w, row, field, K), merged(w, 2 + row, field, K)
            store4(
                p_out, o_out + row * 8 * NG * 64 + field * 16,
                _value_pair(b_first, 0, b_range, b_low, DTYPE, ASM),
                _value_pair(b_first, 2, b_range, b_low, DTYPE, ASM),
                _value_pair(b_second, 0, b_range, b_low, DTYPE, ASM),
                _value_pair(b_second, 2, b_range, b_low, DTYPE, ASM),
                m_row, ASM,
            )  # fmt: skip


@triton.jit
def unpack_kernel(
    p_w, p_r, p_count, p_gain, p_out, o_plane, o_depth, NG, first_tile, rows,
    SLICES: tl.constexpr, WARPS: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Writes depth k of a tile to p_out + (k - 1) * o_depth where count[k] is not 0."""
    # Offsets in words may pass 2^31.
    o_plane, o_depth = o_plane.to(tl.int64), o_depth.to(tl.int64)
    i_thread = tl.arange(0, 32 * WARPS)
    i_lane = i_thread % 32
    i_group = tl.program_id(1) * WARPS + i_thread // 32
    m_group = (i_group < NG).to(tl.int32)
    i_unit = (first_tile + tl.program_id(0)).to(tl.int64) * NG + i_group
    w = stream4(p_w, i_unit * 128 + i_lane * 4, m_group, ASM)
    deepest = 1
    for k in tl.static_range(2, SLICES + 1):
        deepest = tl.where(tl.load(p_count + k) > 0, k, deepest)
    for plane in tl.static_range(1, SLICES):
        # Planes beyond the deepest are not read; what stands in their words is cut off again.
        m_plane = m_group & (deepest > plane).to(tl.int32)
        w = w + stream4(p_w, i_unit * 128 + i_lane * 4 + plane * o_plane, m_plane, ASM)
    r = stream2(p_r, i_unit * 16 + (i_lane // 4) * 2, m_group, ASM)
    i_row = tl.program_id(0) * 16 + i_lane // 4
    # Rows of groups past the end are pushed beyond the last row, where nothing is written.
    i_row = tl.where(m_group != 0, i_row, rows)
    o_out = (tl.program_id(0).to(tl.int64) * 16 + i_lane // 4) * NG * 64 + i_group * 64 + (i_lane % 4) * 4
    for k in tl.static_range(1, SLICES + 1):
        if tl.load(p_count + k) > 0:
            _store_depth(p_out + (k - 1) * o_depth, p_gain, w, r, o_out, rows, i_row, NG, k, DTYPE, ASM)


def unpack_depths(
    packed: PackedWeight,
    counts: Int32[Tensor, " depths_and_one"],
    dtype: torch.dtype,
    section: int = 0,
    gain: Float[Tensor, "depths out"] | None = None,
    out: Float[Tensor, "slices out padded_in"] | None = None,
    *,
    asm: bool = True,
) -> Float[Tensor, "slices out padded_in"]:
    """Dense weights of one section, times `gain`, at depths k with counts[k] > 0; others stay as they were in `out`."""
    rows, width = packed.sections[section], packed.groups * 128
    if out is None:
        out = torch.empty(packed.slices, rows, width, dtype=dtype, device=packed.planes.device)
    first = packed.section_tiles[section - 1] if section else 0
    grid = (triton.cdiv(rows, 16), triton.cdiv(packed.groups, _WARPS))
    unpack_kernel[grid](
        packed.planes, packed.ranges, counts, gain, out.view(torch.int32), packed.planes.stride(0), out.stride(0) // 2,
        packed.groups, first, rows,
        SLICES=packed.slices, WARPS=_WARPS, DTYPE=_TYPES[dtype], ASM=asm, num_warps=_WARPS,
    )  # fmt: skip
    return out
