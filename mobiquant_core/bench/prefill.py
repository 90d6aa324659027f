"""Products of a whole prompt with every linear of a Llama-3-8B, at one depth and at mixed ones, beside bf16 cuBLAS."""

from typing import Any

import torch

from mobiquant_core.bench.kernel import SHAPES, exact, random_packed, relative_error
from mobiquant_core.bench.timing import graph_microseconds
from mobiquant_core.kernels import gpu, many_tokens, prompt_product

TOKENS = 2048
MIXES: dict[str, tuple[float, ...]] = {
    "2 bits": (1.0,),
    "4 bits": (0.0, 1.0),
    "8 bits": (0.0, 0.0, 0.0, 1.0),
    "3 bits mixed": (0.5, 0.5),
    "4 bits mixed": (0.35, 0.4, 0.15, 0.1),
    "5 bits mixed": (0.25, 0.25, 0.25, 0.25),
}
"""Share of tokens at each depth."""
FEW_TOKENS = (17, 32, 48, 64, 128, 256, 512, 1024)
"""Numbers of tokens about which it changes which road is the quicker one."""


def draw_depths(mix: tuple[float, ...], tokens: int) -> torch.Tensor:
    shares = torch.tensor(mix, device="cuda")
    return (torch.multinomial(shares, tokens, replacement=True) + 1).to(torch.uint8)


def measure(tokens: int = TOKENS) -> list[dict[str, Any]]:
    """One row per linear and mix of depths: the road that is taken, and the one by dense weights."""
    rows = []
    for name, (sections, width) in SHAPES.items():
        packed = random_packed(sections[:1], width)
        x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
        dense = torch.randn(sections[0], width, device="cuda", dtype=torch.bfloat16) * 0.02
        bf16 = graph_microseconds([lambda x=x, w=dense: torch.nn.functional.linear(x, w)] * 3)
        for mix, shares in MIXES.items():
            depths = draw_depths(shares, tokens)
            y = gpu.mixed_linear(packed, x, depths)
            some = torch.randperm(tokens, device="cuda")[:64]
            error = relative_error(y[some], exact(packed, x[some], depths[some][None]))
            whole, dense_road = (
                graph_microseconds([lambda d=depths, p=packed, x=x, road=road: road(p, x, d)] * 3)
                for road in (gpu.mixed_linear, many_tokens.multiply)
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
                    "dense_weights_microseconds": dense_road,
                    "error": error,
                }
            )
    return rows


def measure_crossover() -> list[dict[str, Any]]:
    """Few tokens of mixed depths, in microseconds: pieces of 16 straight from planes, dense weights, the product for
    prompts where it runs."""
    rows = []
    for name, (sections, width) in SHAPES.items():
        packed = random_packed(sections[:1], width)
        for tokens in FEW_TOKENS:
            x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
            depths = draw_depths(MIXES["3 bits mixed"], tokens)
            roads = {"pieces": gpu.in_pieces, "dense_weights": many_tokens.multiply}
            if prompt_product.takes(x):
                roads["prompt"] = lambda p, x, d: prompt_product.multiply(p, x, d[None])
            row: dict[str, Any] = {"shape": name, "rows": sections[0], "tokens": tokens}
            for label, road in roads.items():
                row[label] = graph_microseconds([lambda d=depths, p=packed, x=x, road=road: road(p, x, d)] * 3)
            rows.append(row)
    return rows
