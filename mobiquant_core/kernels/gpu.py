"""Products over planes for any number of tokens: which kernel, in what pieces. Imported only where Triton can run."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.kernels import few_tokens, many_tokens, prompt_product
from mobiquant_core.kernels.unpack import unpack_depths
from mobiquant_core.packing import PackedWeight

MOST_IN_PIECES = 48
"""Up to so many tokens, pieces of 16 through the planes beat writing dense weights first (measured on an H200)."""
LEAST_IN_A_PROMPT = 33
"""From here on, where pieces of 16 take three launches, the product for prompts is the quickest on every shape of a
Llama-3-8B (measured on an H200)."""
LEAST_ROWS = 128
"""What one program of that product multiplies; on single rows its weights' rounding can show where terms cancel."""


def whole_prompt(packed: PackedWeight, x: Float[Tensor, "tokens in_features"]) -> bool:
    """Whether so many tokens are multiplied straight from planes in one launch, which wins at one depth as well."""
    large = x.shape[0] >= LEAST_IN_A_PROMPT and min(packed.sections) >= LEAST_ROWS
    return large and prompt_product.takes(x, len(packed.sections)) and prompt_product.works(x.device)


def mixed_linear(
    packed: PackedWeight,
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
) -> Float[Tensor, "tokens out"]:
    """Every token times the weight at its own depth, in the type of x."""
    if whole_prompt(packed, x):
        return prompt_product.multiply(packed, x, depths[None], bias, shift, gain)[0]
    if x.shape[0] > MOST_IN_PIECES and x.dtype in (torch.bfloat16, torch.float16):
        return many_tokens.multiply(packed, x, depths, bias, shift, gain)
    return in_pieces(packed, x, depths, bias, shift, gain)


def in_pieces(
    packed: PackedWeight,
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
) -> Float[Tensor, "tokens out"]:
    """The same, sixteen tokens at a time."""
    out = x.new_empty(x.shape[0], packed.out_features)
    for first in range(0, x.shape[0], few_tokens.MOST_TOKENS):
        piece = slice(first, first + few_tokens.MOST_TOKENS)
        own = depths[None, piece].contiguous()
        few_tokens.multiply(
            packed, few_tokens.prepare(x[piece], own), own, out[piece], bias, shift, gain, asm=x.is_cuda
        )
    return out


def dense(
    packed: PackedWeight, depth: int, dtype: torch.dtype, gain: Float[Tensor, "depths out"] | None = None
) -> Float[Tensor, "out in_features"]:
    """The 16-bit weight at one depth, gain included."""
    counts = torch.zeros(packed.slices + 1, dtype=torch.int32, device=packed.planes.device)
    counts[depth] = 1
    # Only the depth asked for is written, so the others need no memory: the one plane stands for all of them.
    out = torch.empty(1, packed.out_features, packed.groups * 128, dtype=dtype, device=packed.planes.device)
    written = unpack_depths(packed, counts, dtype, gain=gain, out=out.expand(packed.slices, -1, -1), asm=out.is_cuda)
    return written[0, :, : packed.in_features]
