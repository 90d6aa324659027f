"""Products of a whole prompt with the linears of a Llama-3-8B, at one depth and at mixed ones, beside bf16 cuBLAS.

Linears that read the same input are multiplied as in a model: fused, each at depths of its own, beside one bf16 product
of all their rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobiquant_core.bench.kernel import SHAPES, exact, random_packed, relative_error
from mobiquant_core.bench.timing import steady_microseconds
from mobiquant_core.kernels import gpu, many_tokens, prompt_product
from mobiquant_core.packing import PackedWeight, section

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


def draw_depths(mix: tuple[float, ...], sections: int, tokens: int) -> Tensor:
    shares = torch.tensor(mix, device="cuda").expand(sections, -1)
    return (torch.multinomial(shares, tokens, replacement=True) + 1).to(torch.uint8)


def as_in_a_model(packed: PackedWeight, x: Tensor, depths: Tensor) -> Sequence[Tensor]:
    """Results of every section: by one launch where a pass makes them together, else by one for each."""
    if gpu.whole_prompt(packed, x):
        return prompt_product.multiply(packed, x, depths)
    return [gpu.mixed_linear(section(packed, index), x, own) for index, own in enumerate(depths)]


def by_dense_weights(packed: PackedWeight, x: Tensor, depths: Tensor) -> Sequence[Tensor]:
    return [many_tokens.multiply(section(packed, index), x, own) for index, own in enumerate(depths)]


def measure(tokens: int = TOKENS) -> list[dict[str, Any]]:
    """One row per input and mix of depths: the road that is taken, and the one by dense weights; and one per mix for
    all products of a layer."""
    rows = [row for name in SHAPES for row in _measure_shape(name, tokens)]
    return rows + [_layer([row for row in rows if row["mix"] == mix]) for mix in MIXES]


def _measure_shape(name: str, tokens: int) -> list[dict[str, Any]]:
    sections, width = SHAPES[name]
    packed = random_packed(sections, width)
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    dense = torch.randn(sum(sections), width, device="cuda", dtype=torch.bfloat16) * 0.02
    rows = []
    for mix, shares in MIXES.items():
        depths = draw_depths(shares, len(sections), tokens)
        some = torch.randperm(tokens, device="cuda")[:64]
        y = torch.cat([part[some] for part in as_in_a_model(packed, x, depths)], dim=1)
        # All at the clocks that the card's power limit leaves each of them, one right after another.
        bf16, whole, dense_road = (
            steady_microseconds(call)
            for call in (
                lambda: torch.nn.functional.linear(x, dense),
                lambda d=depths: as_in_a_model(packed, x, d),
                lambda d=depths: by_dense_weights(packed, x, d),
            )
        )
        rows.append(
            {
                "shape": name,
                "rows": sum(sections),
                "columns": width,
                "tokens": tokens,
                "mix": mix,
                "bf16_microseconds": bf16,
                "microseconds": whole,
                "share_of_bf16_speed": bf16 / whole,
                "dense_weights_microseconds": dense_road,
                "error": relative_error(y, exact(packed, x[some], depths[:, some])),
            }
        )
    return rows


def _layer(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All products of a layer after one another."""
    spent = ("bf16_microseconds", "microseconds", "dense_weights_microseconds")
    total = {key: sum(row[key] for row in rows) for key in spent}
    return {
        "shape": "layer",
        "tokens": rows[0]["tokens"],
        "mix": rows[0]["mix"],
        **total,
        "share_of_bf16_speed": total["bf16_microseconds"] / total["microseconds"],
        "error": max(row["error"] for row in rows),
    }


def measure_crossover() -> list[dict[str, Any]]:
    """Few tokens of mixed depths, in microseconds: pieces of 16 straight from planes, dense weights, the product for
    prompts where it runs."""
    rows = []
    for name, (sections, width) in SHAPES.items():
        packed = random_packed(sections[:1], width)
        for tokens in FEW_TOKENS:
            x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
            depths = draw_depths(MIXES["3 bits mixed"], 1, tokens)
            roads = {"pieces": gpu.in_pieces, "dense_weights": many_tokens.multiply}
            if prompt_product.takes(x):
                roads["prompt"] = lambda p, x, d: prompt_product.multiply(p, x, d[None])[0]
            row: dict[str, Any] = {"shape": name, "rows": sections[0], "tokens": tokens}
            for label, road in roads.items():
                row[label] = steady_microseconds(lambda d=depths[0], p=packed, x=x, road=road: road(p, x, d), 0.1)
            rows.append(row)
    return rows
