"""The nested quantizer under calibration in two launches a matrix: weights of all depths, and their gradients.

The definition is `calibrate.fake_quant.NestedWeights` in plain torch, some 150 launches each way: a calibration step of
a small model would wait for those, not for arithmetic. It knows one matrix and nothing of autograd.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.rounding import FARTHEST_HOME
from mobiquant_core.slicing import SMALLEST_STEP

_ROWS = 8
_FARTHEST_HOME: tl.constexpr = tl.constexpr(FARTHEST_HOME)
_SMALLEST_STEP: tl.constexpr = tl.constexpr(SMALLEST_STEP)


@triton.jit
def _held_at_home(b_cells, b_home, FIRST: tl.constexpr, TOTAL: tl.constexpr, PIVOT: tl.constexpr):
    """rounding.hold_at_home: (positions, which weights are held)."""
    BASE: tl.constexpr = 2.0 ** (TOTAL - FIRST)
    b_place = tl.minimum(tl.maximum(b_cells, 0.0), 2.0**TOTAL)
    b_first = b_home * BASE
    b_inside = tl.minimum(tl.maximum(b_place, b_first), b_first + (BASE - 0.5))
    m_held = tl.minimum(tl.floor(b_place * (1.0 / BASE)), 2.0**FIRST - 1) != b_home
    m_held = m_held & (tl.abs(b_inside - b_place) <= _FARTHEST_HOME * 2.0 ** (TOTAL - PIVOT))
    return tl.where(m_held, b_inside, b_cells), m_held


@triton.jit
def _crossings(b_cells, reach, FIRST: tl.constexpr, TOTAL: tl.constexpr, PIVOT: tl.constexpr, SETTLED: tl.constexpr,
               REACHES: tl.constexpr):  # fmt: skip
    """rounding.crossings: (finest code beyond the edge, direction, distance or infinity)."""
    BASE: tl.constexpr = 2.0 ** (TOTAL - FIRST)
    b_size = tl.zeros_like(b_cells) + 2.0 ** (TOTAL - PIVOT)
    if REACHES and FIRST < PIVOT and not SETTLED:
        b_place = b_cells * (1.0 / BASE)
        b_border = tl.floor(b_place + 0.5)
        m_near = (tl.abs(b_place - b_border) < reach) & (b_border > 0) & (b_border < 2.0**FIRST)
        b_size = tl.where(m_near, BASE, b_size)
    b_place = b_cells * (1.0 / b_size)
    b_edge = tl.floor(b_place + 0.5)
    b_direction = tl.where(b_place < b_edge, 1.0, -1.0)
    b_distance = tl.abs(b_place - b_edge)
    b_edge *= b_size
    m_closed = (b_edge <= 0) | (b_edge >= 2.0**TOTAL)
    if SETTLED:
        b_base = b_edge * (1.0 / BASE)
        m_closed = m_closed | (b_base == tl.floor(b_base))
    b_distance = tl.where(m_closed, float("inf"), b_distance)
    return b_edge + 0.5 * b_direction - 0.5, b_direction, b_distance


@triton.jit
def _codes(
    p_weight, p_low, p_high, p_lean, p_softness, p_home, reach, o_weight, o_group, m_weight, m_row,
    QUANTIZER: tl.constexpr,
):  # fmt: skip
    """Where every weight lies and would go: (low, step, cells, outside, code, moved, raw share, slope of the share)."""
    FIRST: tl.constexpr = QUANTIZER[0]
    TOTAL: tl.constexpr = QUANTIZER[1]
    PIVOT: tl.constexpr = QUANTIZER[2]
    b_low = tl.load(p_low + o_group, mask=m_row, other=0.0)[:, None]
    b_high = tl.load(p_high + o_group, mask=m_row, other=1.0)[:, None]
    b_step = tl.maximum((b_high - b_low) * 2.0 ** (-FIRST), _SMALLEST_STEP)
    b_weight = tl.load(p_weight + o_weight, mask=m_weight, other=0.0)
    b_cells = tl.div_rn(b_weight - b_low, tl.broadcast_to(b_step * 2.0 ** (FIRST - TOTAL), b_weight.shape))
    m_outside = b_cells < 0
    if p_home is not None:
        b_home = tl.load(p_home + o_weight, mask=m_weight, other=0).to(tl.float32)
        b_cells, m_outside = _held_at_home(b_cells, b_home, FIRST, TOTAL, PIVOT)
    m_outside = m_outside | (b_cells < 0) | (b_cells >= 2.0**TOTAL)
    b_code = tl.minimum(tl.maximum(tl.floor(b_cells), 0.0), 2.0**TOTAL - 1)
    b_moved, b_share, b_slope = b_code, tl.zeros_like(b_cells), tl.zeros_like(b_cells)
    if p_lean is not None:
        b_moved, b_direction, b_distance = _crossings(b_cells, reach, FIRST, TOTAL, PIVOT, p_home is not None,
                                                      QUANTIZER[3])  # fmt: skip
        b_slope = b_direction * (0.5 / tl.load(p_softness))
        b_lean = tl.load(p_lean + o_weight, mask=m_weight, other=0.0)
        b_share = tl.fma(b_lean, b_slope, 0.5 - b_distance * tl.abs(b_slope))
        b_slope = tl.where((b_share > 0) & (b_share < 1), b_slope, 0.0)
        b_share = tl.minimum(tl.maximum(b_share, 0.0), 1.0)
    return b_low, b_step, b_cells, m_outside, b_code, b_moved, b_share, b_slope


@triton.jit
def _places(rows, columns, groups, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """This program's rows in one group: (rows, which exist, their groups, their weights, which exist)."""
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i_column = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    m_row = i_row < rows
    m_weight = m_row[:, None] & (i_column < columns)[None, :]
    o_weight = i_row.to(tl.int64)[:, None] * columns + i_column[None, :]
    return i_row, m_row, i_row * groups + tl.program_id(1), o_weight, m_weight


@triton.jit
def _centre(b_code, b_moved, b_share, FINER: tl.constexpr):
    """(cell centres at one depth in its own cells, how many of them the whole move makes)."""
    b_cell = tl.floor(b_code * (1.0 / FINER))
    b_jump = tl.floor(b_moved * (1.0 / FINER)) - b_cell
    return b_cell + 0.5 + b_share * b_jump, b_jump


@triton.jit
def nested_weights_kernel(
    p_weight, p_low, p_high, p_lean, p_softness, p_home, p_gain, p_stack, reach, rows, columns, groups,
    QUANTIZER: tl.constexpr, BITS: tl.constexpr, DEPTHS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Weights of the first DEPTHS depths, times their gain. QUANTIZER: (bits of the base slice, of all, of the pivot
    depth, whether rounding reaches across base cells); BITS: of every depth."""
    i_row, m_row, o_group, o_weight, m_weight = _places(rows, columns, groups, ROWS, SIZE)
    b_low, b_step, _, _, b_code, b_moved, b_share, _ = _codes(
        p_weight, p_low, p_high, p_lean, p_softness, p_home, reach, o_weight, o_group, m_weight, m_row, QUANTIZER
    )  # fmt: skip
    o_stack = o_weight
    for depth in tl.static_range(DEPTHS):
        b_centre, _ = _centre(b_code, b_moved, b_share, 2.0 ** (QUANTIZER[1] - BITS[depth]))
        b_gain = tl.load(p_gain + depth * rows + i_row, mask=m_row, other=0.0)[:, None]
        b_value = (b_low + b_centre * (b_step * 2.0 ** (QUANTIZER[0] - BITS[depth]))) * b_gain
        tl.store(p_stack + o_stack, b_value.to(p_stack.dtype.element_ty), mask=m_weight)
        o_stack += rows.to(tl.int64) * columns


@triton.jit
def nested_gradients_kernel(
    p_weight, p_low, p_high, p_lean, p_softness, p_home, p_gain, p_gradient,
    p_by_low, p_by_high, p_by_lean, p_by_weight, p_by_gain, reach, rows, columns, groups,
    QUANTIZER: tl.constexpr, BITS: tl.constexpr, DEPTHS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of everything from those of the weights; of the gain, one sum a group. Constants as above."""
    i_row, m_row, o_group, o_weight, m_weight = _places(rows, columns, groups, ROWS, SIZE)
    b_low, b_step, b_cells, m_outside, b_code, b_moved, b_share, b_slope = _codes(
        p_weight, p_low, p_high, p_lean, p_softness, p_home, reach, o_weight, o_group, m_weight, m_row, QUANTIZER
    )  # fmt: skip
    b_by_step, b_by_edge = tl.zeros_like(b_cells), tl.zeros_like(b_cells)
    b_by_weight, b_by_share = tl.zeros_like(b_cells), tl.zeros_like(b_cells)
    o_stack = o_weight
    for depth in tl.static_range(DEPTHS):
        b_gradient = tl.load(p_gradient + o_stack, mask=m_weight, other=0.0).to(tl.float32)
        o_stack += rows.to(tl.int64) * columns
        b_centre, b_jump = _centre(b_code, b_moved, b_share, 2.0 ** (QUANTIZER[1] - BITS[depth]))
        b_width = b_step * 2.0 ** (QUANTIZER[0] - BITS[depth])
        b_by_gain = tl.sum(b_gradient * (b_low + b_centre * b_width), 1)
        tl.store(p_by_gain + (depth * rows + i_row) * groups + tl.program_id(1), b_by_gain, mask=m_row)
        b_gradient *= tl.load(p_gain + depth * rows + i_row, mask=m_row, other=0.0)[:, None]
        m_fixed = m_outside
        if depth == 0 and p_home is not None:
            # Settled base codes are constants: at depth 1 no value follows its weight.
            m_fixed = b_cells == b_cells
        b_residual = b_centre - tl.where(m_fixed, 0.0, b_cells * 2.0 ** (BITS[depth] - QUANTIZER[1]))
        b_by_step += b_gradient * b_residual * 2.0 ** (QUANTIZER[0] - BITS[depth])
        b_by_edge += tl.where(m_fixed, b_gradient, 0.0)
        b_by_weight += tl.where(m_fixed, 0.0, b_gradient)
        b_by_share += b_gradient * b_jump * b_width
    b_by_high = tl.sum(b_by_step, 1) * 2.0 ** (-QUANTIZER[0])
    tl.store(p_by_high + o_group, b_by_high, mask=m_row)
    tl.store(p_by_low + o_group, tl.sum(b_by_edge, 1) - b_by_high, mask=m_row)
    if p_by_weight is not None:
        tl.store(p_by_weight + o_weight, b_by_weight, mask=m_weight)
    if p_by_lean is not None:
        tl.store(p_by_lean + o_weight, b_by_share * b_slope, mask=m_weight)


def _constants(config: MobiQuantConfig, reaches: bool, depths: int) -> dict:
    quantizer = (config.slice_bits[0], config.total_bits, config.bits(min(2, config.depths)), reaches)
    return {"QUANTIZER": quantizer, "BITS": config.bits_by_depth, "DEPTHS": depths, "ROWS": _ROWS,
            "SIZE": config.group_size, "num_warps": 8}  # fmt: skip


def forward(
    weight: Float[Tensor, "out in_features"],
    low: Float[Tensor, "out groups"],
    high: Float[Tensor, "out groups"],
    lean: Float[Tensor, "out in_features"] | None,
    softness: Float[Tensor, ""] | None,
    reach: float,
    home: UInt8[Tensor, "out in_features"] | None,
    gain: Float[Tensor, "depths out"],
    config: MobiQuantConfig,
    dtype: torch.dtype,
) -> Float[Tensor, "depths out in_features"]:
    """Weights of as many depths as `gain` has."""
    (rows, columns), groups = weight.shape, low.shape[1]
    stack = torch.empty(len(gain), rows, columns, dtype=dtype, device=weight.device)
    nested_weights_kernel[(triton.cdiv(rows, _ROWS), groups)](
        weight, low, high, lean, softness, home, gain, stack, reach, rows, columns, groups,
        **_constants(config, reach > 0, len(gain)),
    )  # fmt: skip
    return stack


def backward(
    gradient: Float[Tensor, "depths out in_features"],
    weight: Float[Tensor, "out in_features"],
    low: Float[Tensor, "out groups"],
    high: Float[Tensor, "out groups"],
    lean: Float[Tensor, "out in_features"] | None,
    softness: Float[Tensor, ""] | None,
    reach: float,
    home: UInt8[Tensor, "out in_features"] | None,
    gain: Float[Tensor, "depths out"],
    config: MobiQuantConfig,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of (weight, low, high, lean, gain); None for what has none."""
    (rows, columns), groups = weight.shape, low.shape[1]
    by_low, by_high = torch.empty_like(low), torch.empty_like(high)
    by_weight = torch.empty_like(weight) if wants_weight else None
    by_lean = None if lean is None else torch.empty_like(lean)
    by_gain = torch.empty(len(gain), rows, groups, device=weight.device)
    nested_gradients_kernel[(triton.cdiv(rows, _ROWS), groups)](
        weight, low, high, lean, softness, home, gain, gradient.contiguous(),
        by_low, by_high, by_lean, by_weight, by_gain,
        reach, rows, columns, groups, **_constants(config, reach > 0, len(gain)),
    )  # fmt: skip
    return by_weight, by_low, by_high, by_lean, by_gain.sum(-1)
