"""The definition of a sliced linear layer, in plain torch, for any floating type.

Every kernel is checked against this file. It does not know modules, routers or budgets.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from torch.nn import functional as F


def dequantize(
    codes: UInt8[Tensor, "out padded_in"],
    edge: Float16[Tensor, "out groups"],
    step: Float16[Tensor, "out groups"],
    depth: int,
    bits_by_depth: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "out padded_in"]:
    """Cell centres of the codes cut to `depth` slices: edge + step_k * (code_k + 1/2).

    `step` is the first slice's step; a deeper step is a power of two smaller, which fp32 holds exactly.
    """
    working = torch.promote_types(dtype, torch.float32)
    out, groups = edge.shape
    cut = codes >> (bits_by_depth[-1] - bits_by_depth[depth - 1])
    step_at_depth = step.to(working) * 2.0 ** (bits_by_depth[0] - bits_by_depth[depth - 1])
    centre = edge.to(working) + step_at_depth / 2
    grouped = cut.view(out, groups, -1).to(working)
    return torch.addcmul(centre.unsqueeze(-1), grouped, step_at_depth.unsqueeze(-1)).view(out, -1).to(dtype)


def mixed_linear(
    x: Float[Tensor, "tokens in_features"],
    codes: UInt8[Tensor, "out padded_in"],
    edge: Float16[Tensor, "out groups"],
    step: Float16[Tensor, "out groups"],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    *,
    bits_by_depth: tuple[int, ...],
) -> Float[Tensor, "tokens out"]:
    """Every token times the weight at its own depth: W_k x + bias + shift[k - 1]."""

    def dense(depth: int) -> Tensor:
        return dequantize(codes, edge, step, depth, bits_by_depth, x.dtype)[:, : x.shape[-1]]

    return grouped_linear(x, dense, depths, bias, shift)


def grouped_linear(
    x: Float[Tensor, "tokens in_features"],
    dense: Callable[[int], Tensor],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
) -> Float[Tensor, "tokens out"]:
    """The same with the dense weight of a depth given by a function: one product per depth that occurs."""
    counts = torch.bincount(depths).tolist()
    present = [depth for depth, count in enumerate(counts) if count]
    if len(present) == 1:
        return _at_one_depth(x, dense, present[0], bias, shift)
    result = None
    for depth in present:
        rows = torch.nonzero(depths == depth).squeeze(1)
        part = _at_one_depth(x.index_select(0, rows), dense, depth, bias, shift)
        if result is None:
            result = part.new_empty(x.shape[0], part.shape[1])
        result.index_copy_(0, rows, part)
    # Only an empty batch has no depth at all; it still needs an output of the right width.
    return _at_one_depth(x, dense, 1, bias, shift) if result is None else result


def _at_one_depth(
    x: Float[Tensor, "tokens in_features"],
    dense: Callable[[int], Tensor],
    depth: int,
    bias: Float[Tensor, " out"] | None,
    shift: Float[Tensor, "depths out"] | None,
) -> Float[Tensor, "tokens out"]:
    y = F.linear(x, dense(depth), bias)
    return y if shift is None else y + shift[depth - 1].to(y.dtype)
