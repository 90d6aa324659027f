"""Many tokens times planes: sort tokens by depth on the device, write the weight once per depth, let cuBLAS multiply.

Nothing is read back by the host, so no launch waits for a count.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from mobiquant_core.kernels.unpack import unpack_depths
from mobiquant_core.packing import PackedWeight

_BLOCK = 1024


@dataclass(frozen=True)
class TokenOrder:
    """Tokens sorted by depth: `tokens[i]` is at place i, token t is at `places[t]`; counts[k] tokens have depth k."""

    tokens: Int32[Tensor, " tokens"]
    places: Int32[Tensor, " tokens"]
    counts: Int32[Tensor, " depths_and_one"]
    ends: Int32[Tensor, " depths"]


@triton.jit
def _sort_kernel(p_depth, p_token, p_place, p_count, p_end, tokens, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """Stable counting sort by one program: depths are few and tokens a few thousand."""
    i_block = tl.arange(0, BLOCK)
    first = 0
    for k in tl.static_range(1, SLICES + 1):
        start = first
        for i in range(0, tl.cdiv(tokens, BLOCK)):
            i_token = i * BLOCK + i_block
            b_depth = tl.load(p_depth + i_token, mask=i_token < tokens, other=0)
            b_here = (b_depth == k).to(tl.int32)
            b_place = first + tl.cumsum(b_here, 0) - 1
            tl.store(p_place + i_token, b_place, mask=b_here != 0)
            tl.store(p_token + b_place, i_token, mask=b_here != 0)
            first += tl.sum(b_here, 0)
        tl.store(p_count + k, first - start)
        tl.store(p_end + k - 1, first)


def order_by_depth(depths: UInt8[Tensor, " tokens"], slices: int) -> TokenOrder:
    """The order of tokens by depth, made on their device."""
    tokens, device = depths.numel(), depths.device
    order = TokenOrder(
        *(torch.empty(n, dtype=torch.int32, device=device) for n in (tokens, tokens, slices + 1, slices))
    )
    _sort_kernel[(1,)](
        depths, order.tokens, order.places, order.counts, order.ends, tokens, SLICES=slices, BLOCK=_BLOCK, num_warps=8
    )
    return order


def multiply(
    packed: PackedWeight,
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
    *,
    section: int = 0,
) -> Float[Tensor, "tokens out"]:
    """Every token times one section at its own depth, in the 16-bit type of x."""
    order = order_by_depth(depths, packed.slices)
    dense = unpack_depths(packed, order.counts, x.dtype, section, gain)
    width = dense.shape[-1]
    if width != x.shape[1]:
        x = torch.nn.functional.pad(x, (0, width - x.shape[1]))
    grouped = _by_depth(x.index_select(0, order.tokens), dense, order)
    y = grouped.index_select(0, order.places)
    if bias is not None:
        y += bias.to(y.dtype)
    return y if shift is None else y + shift.to(y.dtype)[depths.long() - 1]


def _by_depth(
    x: Float[Tensor, "tokens width"], dense: Float[Tensor, "depths out width"], order: TokenOrder
) -> Float[Tensor, "tokens out"]:
    """Sorted tokens times the weight of their depth."""
    if x.dtype == torch.bfloat16:
        return torch.nn.functional.grouped_mm(x, dense.transpose(-2, -1), offs=order.ends)
    # torch multiplies groups in bf16 only; for fp16 the host has to know where they end.
    y = x.new_empty(x.shape[0], dense.shape[1])
    first = 0
    for depth, end in enumerate(order.ends.tolist()):
        if end > first:
            torch.mm(x[first:end], dense[depth].t(), out=y[first:end])
        first = end
    return y
