"""Products of a whole prompt with every linear of a Llama-3-8B, at one depth and at mixed ones, beside bf16 cuBLAS."""

from typing import Any

import torch

from mobiquant_core.bench.kernel import SHAPES, exact, random_packed, relative_error
from mobiquant_core.bench.timing import graph_microseconds
from mobiquant_core.kernels import many_tokens
from mobiquant_core.kernels.unpack import unpack_depths

TOKENS = 2048
MIXES: dict[str, tuple[float, ...]] = {
    "2 bits": (1.0,),
    "4 bits": (0.0, 1.0),
    "8 bits": (0.0, 0.0, 0.0, 1.0),
    "3 bits mixed": (0.5, 0.5),
    "5 bits mixed": (0.25, 0.25, 0.25, 0.25),
}
"""Share of tokens at each depth."""


def draw_depths(mix: tuple[float, ...], tokens: int) -> torch.Tensor:
    shares = torch.tensor(mix, device="cuda")
    return (torch.multinomial(shares, tokens, replacement=True) + 1).to(torch.uint8)


def measure(tokens: int = TOKENS) -> list[dict[str, Any]]:
    """One row per linear and mix of depths, with the parts of the road: sort, unpack, product, gather."""
    rows = []
    for name, (sections, width) in SHAPES.items():
        packed = random_packed(sections[:1], width)
        x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
        dense = torch.randn(sections[0], width, device="cuda", dtype=torch.bfloat16) * 0.02
        bf16 = graph_microseconds([lambda x=x, w=dense: torch.nn.functional.linear(x, w)] * 3)
        for mix, shares in MIXES.items():
            depths = draw_depths(shares, tokens)
            y = many_tokens.multiply(packed, x, depths)
            some = torch.randperm(tokens, device="cuda")[:64]
            error = relative_error(y[some], exact(packed, x[some], depths[some][None]))
            whole = graph_microseconds([lambda d=depths, p=packed, x=x: many_tokens.multiply(p, x, d)] * 3)
            order = many_tokens.order_by_depth(depths, 4)
            weights = unpack_depths(packed, order.counts, x.dtype)
            sort = graph_microseconds([lambda d=depths: many_tokens.order_by_depth(d, 4)] * 3)
            unpack = graph_microseconds(
                [lambda p=packed, o=order, w=weights: unpack_depths(p, o.counts, torch.bfloat16, out=w)] * 3
            )
            rows.append(
                {
                    "shape": name,
                    "rows": sections[0],
                    "columns": width,
                    "tokens": tokens,
                    "mix": mix,
                    "bf16_microseconds": bf16,
                    "microseconds": whole,
                    "share_of_bf16_speed": bf16 / whole,
                    "sort": sort,
                    "unpack": unpack,
                    "error": error,
                }
            )
    return rows
