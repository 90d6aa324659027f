"""Activations as two signed bytes per value and a scale per group, the form the plane kernels multiply.

x = scale * (256 * high + low), exact to one part in 65,000 of the group's largest value: a product errs by about 1e-5
of |W| |x|, by a few 1e-4 where one value dwarfs its group, always below bf16's own rounding. It knows no weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8
from torch import Tensor

from mobiquant_core.kernels.lanes import begin_dependent, wait_for_inputs

LARGEST: tl.constexpr = tl.constexpr(127 * 256 + 127)
_GROUPS_PER_PROGRAM = 8


@dataclass(frozen=True)
class SplitActivations:
    """Tokens as bytes, columns in the order in which lanes read a group, and (scale, sum) of every group."""

    bytes: Int8[Tensor, "tokens 2 padded_in"]
    scales: Float[Tensor, "tokens groups 2"]

    @property
    def tokens(self) -> int:
        return self.bytes.shape[0]

    @classmethod
    def empty(cls, tokens: int, in_features: int, device: torch.device | str) -> "SplitActivations":
        groups = -(-in_features // 128)
        return cls(
            torch.empty(tokens, 2, groups * 128, dtype=torch.int8, device=device),
            torch.empty(tokens, groups, 2, dtype=torch.float32, device=device),
        )


@triton.jit
def as_bytes(b_x):
    """(high, low, scale, sum) of whole groups [groups, 128]: x = scale * (256 * high + low)."""
    b_largest = tl.max(tl.abs(b_x), 1)
    b_scale = tl.maximum(b_largest, 1e-30) / LARGEST
    b_q = tl.floor(b_x * (1.0 / b_scale)[:, None] + 0.5).to(tl.int32)
    b_high = (b_q + 128) >> 8
    b_low = b_q - b_high * 256
    return b_high, b_low, b_scale, tl.sum(b_q, 1).to(tl.float32) * b_scale


@triton.jit
def split_groups(b_x, p_x, p_m, i_group, NG):
    """Writes whole groups [groups, 128] of one token; p_x and p_m point at that token."""
    b_high, b_low, b_scale, b_sum = as_bytes(b_x)
    m_x = tl.broadcast_to((i_group < NG)[:, None], b_x.shape)
    # Lane c of four multiplies columns s * 32 + c * 8 ... + 7 for s = 0..3: stored together, they are two wide loads.
    i_column = tl.arange(0, 128)
    o_lane = (i_column // 8 % 4) * 32 + (i_column // 32) * 8 + i_column % 8
    o_x = i_group[:, None] * 128 + o_lane[None, :]
    tl.store(p_x + o_x, b_high.to(tl.int8), mask=m_x)
    tl.store(p_x + NG * 128 + o_x, b_low.to(tl.int8), mask=m_x)
    tl.store(p_m + i_group * 2, b_scale, mask=i_group < NG)
    tl.store(p_m + i_group * 2 + 1, b_sum, mask=i_group < NG)


@triton.jit
def split_kernel(p_in, p_x, p_m, in_features, NG, GROUPS: tl.constexpr, PDL: tl.constexpr):
    begin_dependent(PDL)
    wait_for_inputs(PDL)
    i_token = tl.program_id(0).to(tl.int64)
    i_group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    i_column = i_group[:, None] * 128 + tl.arange(0, 128)[None, :]
    b_x = tl.load(p_in + i_token * in_features + i_column, mask=i_column < in_features, other=0.0).to(tl.float32)
    split_groups(b_x, p_x + i_token * 2 * NG * 128, p_m + i_token * NG * 2, i_group, NG)


def split(
    x: Float[Tensor, "tokens in_features"], out: SplitActivations | None = None, *, dependent: bool = False
) -> SplitActivations:
    """Tokens as two bytes per value; `dependent` overlaps it with the kernel before."""
    tokens, in_features = x.shape
    out = SplitActivations.empty(tokens, in_features, x.device) if out is None else out
    groups = out.scales.shape[1]
    grid = (tokens, triton.cdiv(groups, _GROUPS_PER_PROGRAM))
    split_kernel[grid](
        x.contiguous(), out.bytes, out.scales, in_features, groups, GROUPS=_GROUPS_PER_PROGRAM, PDL=dependent,
        num_warps=4, launch_pdl=dependent,
    )  # fmt: skip
    return out
