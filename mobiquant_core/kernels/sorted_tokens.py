"""Activations of 5 to 16 tokens sorted by depth, in the order in which lanes read them.

Every tile of four slots holds tokens of one depth, places left over stay empty, so 16 tokens make 4 to 7 tiles. Sorting
happens here, once per input, not in every program of the product. It knows no weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor

from mobiquant_core.kernels.activation import as_bytes

_GROUPS_PER_PROGRAM = 8
"""A multiple of the warps of one tile, so that groups they read beyond the end are there, as zeros."""
SLOTS: tl.constexpr = tl.constexpr(32)
PLAN: tl.constexpr = tl.constexpr(72)


@dataclass(frozen=True)
class SortedActivations:
    """What the product reads, once for every section, as the sections' depths differ.

    bytes: every tile's halves of the columns, its slots, high bytes before low. terms: every slot's scale over 64, half
    a cell times the sum, sum (fp32 bits), mask of the code bits. plan: token of every slot or -1, depth of every slot,
    then the number of tiles, the deepest depth, and the depth if there is only one, else 0.
    """

    bytes: Int8[Tensor, "sections groups tiles 1024"]
    terms: Int32[Tensor, "sections groups tiles 16"]
    plan: Int32[Tensor, "sections numbers"]
    tokens: int


def tiles_for(tokens: int) -> int:
    """Tiles of four slots at one depth: a kernel is compiled for 2 and for 4."""
    return 2 if tokens <= 8 else 4


@triton.jit
def _tile_ends(b_depth):
    """Ends of the tiles of depths 1 to 4, as scalars."""
    counts = tl.sum(tl.where(b_depth > 0, 1 << (8 * tl.maximum(b_depth - 1, 0)), 0), 0)
    end1 = ((counts & 255) + 3) // 4
    end2 = end1 + ((counts >> 8 & 255) + 3) // 4
    end3 = end2 + ((counts >> 16 & 255) + 3) // 4
    return end1, end2, end3, end3 + ((counts >> 24 & 255) + 3) // 4


@triton.jit
def _slots(p_depth, b_depth, tokens, ends):
    """Slot of each of 16 tokens: its place among those of its depth is counted by comparing all with all."""
    i_own, i_other = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    b_own = tl.load(p_depth + i_own, mask=i_own < tokens, other=0)
    b_other = tl.load(p_depth + i_other, mask=i_other < tokens, other=0)
    b_place = tl.sum(((b_own == b_other) & (i_other < i_own)).to(tl.int32), 1)
    b_start = tl.where(b_depth == 2, ends[0], tl.where(b_depth == 3, ends[1], tl.where(b_depth == 4, ends[2], 0)))
    return tl.where(b_depth > 0, 4 * b_start + b_place, -1)


@triton.jit
def _store_plan(p_plan, b_slot, ends):
    """Who is in which slot, and at which depth; then what the product asks for at its start."""
    i_slot, i_token = tl.arange(0, SLOTS), tl.arange(0, 16)[None, :]
    b_token = tl.max(tl.where(b_slot[None, :] == i_slot[:, None], i_token, -1), 1)
    b_depth, deepest, depths = 1 + i_slot * 0, ends[0] * 0 + 1, (ends[0] > 0).to(tl.int32)
    for k in tl.static_range(1, 4):
        b_depth += (i_slot // 4 >= ends[k - 1]).to(tl.int32)
        deepest = tl.where(ends[k] > ends[k - 1], k + 1, deepest)
        depths += (ends[k] > ends[k - 1]).to(tl.int32)
    tl.store(p_plan + i_slot, b_token)
    tl.store(p_plan + SLOTS + i_slot, b_depth)
    tl.store(p_plan + 2 * SLOTS, ends[3])
    tl.store(p_plan + 2 * SLOTS + 1, deepest)
    tl.store(p_plan + 2 * SLOTS + 2, tl.where(depths == 1, deepest, 0))


@triton.jit
def sort_kernel(
    p_in, p_depth, p_x, p_m, p_plan, in_features, padded, tokens, TILES: tl.constexpr, GROUPS: tl.constexpr
):
    """One token's bytes and terms for some groups, at its slot; groups past the end become zeros."""
    i_token, section = tl.program_id(0), tl.program_id(2).to(tl.int64)
    p_depth += section * tokens
    i_any = tl.arange(0, 16)
    b_depth = tl.load(p_depth + i_any, mask=i_any < tokens, other=0).to(tl.int32)
    ends = _tile_ends(b_depth)
    b_slot = _slots(p_depth, b_depth, tokens, ends)
    if (i_token == 0) & (tl.program_id(1) == 0):
        _store_plan(p_plan + section * PLAN, b_slot, ends)
    slot = tl.sum(tl.where(i_any == i_token, b_slot, 0), 0)
    depth = tl.load(p_depth + i_token).to(tl.int32)
    i_group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    i_column = i_group[:, None] * 128 + tl.arange(0, 128)[None, :]
    m_x = i_column < in_features
    b_x = tl.load(p_in + i_token.to(tl.int64) * in_features + i_column, mask=m_x, other=0.0).to(tl.float32)
    b_high, b_low, b_scale, b_sum = as_bytes(b_x)
    i_unit = (section * padded + i_group) * TILES + slot // 4
    # Lane c of four multiplies columns s * 32 + c * 8 ... + 7: s = 0 and 1 stand together, then s = 2 and 3.
    i_own = tl.arange(0, 128)
    o_lane = (i_own // 64) * 512 + (i_own // 8 % 4) * 16 + (i_own // 32 % 2) * 8 + i_own % 8
    o_x = i_unit[:, None] * 1024 + (slot % 4) * 128 + o_lane[None, :]
    tl.store(p_x + o_x, b_high.to(tl.int8))
    tl.store(p_x + o_x + 64, b_low.to(tl.int8))
    p_own = p_m + i_unit * 16 + (slot % 4) * 4
    # Codes stand at the top of their bytes, so a step of every depth is the first slice's over 64.
    tl.store(p_own, (b_scale * 0.015625).to(tl.int32, bitcast=True))
    tl.store(p_own + 1, (b_sum * tl.exp2((1 - 2 * depth).to(tl.float32))).to(tl.int32, bitcast=True))
    tl.store(p_own + 2, b_sum.to(tl.int32, bitcast=True))
    # Every lane asks for the mask, those of empty slots as well: the first token of a tile writes it for all four.
    o_mask = i_unit[:, None] * 16 + tl.arange(0, 4)[None, :] * 4 + 3
    tl.store(p_m + o_mask, tl.zeros_like(o_mask).to(tl.int32) + _mask_of(depth), mask=o_mask * 0 + slot % 4 == 0)


@triton.jit
def _mask_of(depth):
    """The top 2 depth bits of every byte."""
    mask = tl.where(depth == 1, -0x3F3F3F40, tl.where(depth == 2, -0x0F0F0F10, -0x03030304))
    return tl.where(depth == 4, -1, mask)


def sort(x: Float[Tensor, "tokens in_features"], depths: UInt8[Tensor, "sections tokens"], slices: int = 4,
         ) -> SortedActivations:  # fmt: skip
    """5 to 16 tokens as bytes, four of one depth to a tile."""
    tokens, in_features = x.shape
    sections, device = depths.shape[0], x.device
    groups = -(-in_features // (128 * _GROUPS_PER_PROGRAM)) * _GROUPS_PER_PROGRAM
    tiles = tiles_for(tokens) + slices - 1
    out = SortedActivations(
        torch.empty(sections, groups, tiles, 1024, dtype=torch.int8, device=device),
        torch.empty(sections, groups, tiles, 16, dtype=torch.int32, device=device),
        torch.empty(sections, PLAN.value, dtype=torch.int32, device=device),
        tokens,
    )
    sort_kernel[(tokens, groups // _GROUPS_PER_PROGRAM, sections)](
        x.contiguous(), depths.contiguous(), out.bytes, out.terms, out.plan, in_features, groups, tokens,
        TILES=tiles, GROUPS=_GROUPS_PER_PROGRAM, num_warps=4,
    )  # fmt: skip
    return out
