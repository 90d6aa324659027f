"""Many tokens times planes: by the product for prompts where there is one, or else by dense weights.

The other road sorts tokens by depth on the device, writes the weight once per depth and lets cuBLAS multiply. Nothing
is read back by the host, so no launch waits for a count.
"""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from mobiquant_core.kernels import prompt_product
from mobiquant_core.kernels.unpack import unpack_depths
from mobiquant_core.packing import PackedWeight

LEAST_TOKENS = 512
"""From here on the product for prompts is taken: an estimate between 128 tokens of two depths, where on an H200 pieces
of 16 are about as quick, and 2,048, where it beats dense weights by 1.2 to 1.7."""
LEAST_ROWS = 128
"""What one program multiplies; on single rows its weights' rounding can show where terms cancel."""
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
    road = prompt_product.multiply if by_planes(packed, x, section) else by_dense_weights
    return road(packed, x, depths, bias, shift, gain, section=section)


def by_planes(packed: PackedWeight, x: Float[Tensor, "tokens in_features"], section: int = 0) -> bool:
    """Whether the product for prompts takes these tokens, and wins."""
    large = x.shape[0] >= LEAST_TOKENS and packed.sections[section] >= LEAST_ROWS
    # Trying it waits for the card, which a graph that is being captured does not allow.
    return large and prompt_product.takes(x) and not torch.cuda.is_current_stream_capturing() and _works(x.device)


@cache
def _works(device: torch.device) -> bool:
    """Whether the product for prompts compiles here and agrees with the other road, tried once on a small weight.

    Several blocks of rows, groups and widths of tiles, of mixed depths and of one.
    """
    generator = torch.Generator(device).manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (4, 9, 6, 128), generator=generator, device=device, dtype=torch.int32)
    # Steps of 2^-6 and edges of -2^-5.
    ranges = torch.full((9, 6, 16), 0x2400 - 0x58000000, dtype=torch.int32, device=device)
    packed = PackedWeight(words, ranges, 768, (144,))
    x = torch.randn(512, 768, generator=generator, device=device).bfloat16()
    mixed = (torch.arange(512, device=device) - 300).clamp(0) % 4 + 1
    try:
        agrees = True
        for depths in (mixed.to(torch.uint8), torch.full((512,), 2, dtype=torch.uint8, device=device)):
            expected = by_dense_weights(packed, x, depths)
            agrees &= torch.allclose(prompt_product.multiply(packed, x, depths), expected, rtol=0.02, atol=0.02)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Gluon is young: whatever its compiler raises on another version, prompts take the other road.
        agrees = False
    if not agrees:
        warnings.warn("Prompts take dense weights: the product straight from planes does not work here.", stacklevel=2)
    return agrees


def by_dense_weights(
    packed: PackedWeight,
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
    *,
    section: int = 0,
) -> Float[Tensor, "tokens out"]:
    """`multiply` on every card: a dense weight for each depth that occurs, then one product for all of them."""
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
