"""Products of one to sixteen tokens with every linear of a Llama-3-8B, beside bf16 cuBLAS and torch's own int4.

Every time stands beside the error against float64 over the same dequantized weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobiquant_core.bench.timing import copies_for, graph_microseconds
from mobiquant_core.kernels import few_tokens, reference
from mobiquant_core.kernels.tuning import Tuning
from mobiquant_core.packing import PackedWeight, unpack

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "qkv": ((4096, 1024, 1024), 4096),
    "o": ((4096,), 4096),
    "gate_up": ((14336, 14336), 4096),
    "down": ((4096,), 14336),
}
"""Rows of the fused projections, and columns."""
BITS_BY_DEPTH = (2, 4, 6, 8)


def random_packed(sections: tuple[int, ...], in_features: int, device: str = "cuda", slices: int = 4) -> PackedWeight:
    """Random codes with ranges such that values are about as large as a model's weights."""
    tiles, groups = sum(-(-rows // 16) for rows in sections), -(-in_features // 128)
    planes = torch.empty(slices, tiles, groups, 128, dtype=torch.int32, device=device)
    planes.random_(-(2**31), 2**31 - 1)
    step = torch.rand(tiles, groups, 16, device=device) * 0.02 + 0.01
    low = (step.half().view(torch.int16).int()) & 0xFFFF
    ranges = low | (-2 * step * torch.rand_like(step)).half().view(torch.int16).int() << 16
    return PackedWeight(planes, ranges, in_features, sections)


def exact(packed: PackedWeight, x: Tensor, depths: Tensor) -> Tensor:
    """The definition in float64: [tokens, rows], `depths` uint8 [sections, tokens]."""
    codes, edge, step = unpack(packed)
    parts, first = [], 0
    for rows, depth in zip(packed.sections, depths, strict=True):
        own = slice(first, first + rows)
        fields = (codes[own], edge[own], step[own])
        bits = tuple(2 * (k + 1) for k in range(packed.slices))
        parts.append(reference.mixed_linear(x.double(), *fields, depth, bits_by_depth=bits))
        first += rows
    return torch.cat(parts, dim=1)


def magnitude(packed: PackedWeight, x: Tensor, depths: Tensor) -> Tensor:
    """|W| |x| in float64: what rounding errors are proportional to where the terms of a product cancel."""
    codes, edge, step = unpack(packed)
    bits = tuple(2 * (k + 1) for k in range(packed.slices))
    total = torch.zeros(x.shape[0], packed.out_features, dtype=torch.float64, device=x.device)
    for depth in range(1, packed.slices + 1):
        dense = reference.dequantize(codes, edge, step, depth, bits, torch.float64)[:, : x.shape[1]].abs()
        first = 0
        for rows, chosen in zip(packed.sections, depths, strict=True):
            own = slice(first, first + rows)
            total[:, own] += (x.double().abs() @ dense[own].t()) * (chosen == depth).double()[:, None]
            first += rows
    return total


def relative_error(result: Tensor, truth: Tensor) -> float:
    return ((result.double() - truth).norm() / truth.norm()).item()


class Case:
    """One shape with its rotated copies, activations and outputs."""

    def __init__(self, name: str, tokens: int = 1, dtype: torch.dtype = torch.bfloat16) -> None:
        self.name = name
        self.sections, self.in_features = SHAPES[name]
        first = random_packed(self.sections, self.in_features)
        copies = copies_for(first.stored_bytes(1))
        # The codes of the copies do not matter for time; that they are other addresses does.
        self.weights = [first]
        for _ in range(copies - 1):
            planes, ranges = first.planes.clone(), first.ranges.clone()
            self.weights.append(PackedWeight(planes, ranges, self.in_features, self.sections))
        self.x = torch.randn(tokens, self.in_features, device="cuda", dtype=dtype)
        self.depths = torch.ones(len(self.sections), tokens, dtype=torch.uint8, device="cuda")
        self._truth: tuple[tuple[int, ...], Tensor] | None = None
        self.outputs = [torch.empty(tokens, first.out_features, device="cuda", dtype=dtype) for _ in self.weights]

    def calls(self, tuning: Tuning | None, dependent: bool) -> list[Callable[[], object]]:
        """One call for every copy, on activations prepared before for the depths now set."""
        x = few_tokens.prepare(self.x, self.depths)

        def call(index: int) -> object:
            weight, out = self.weights[index], self.outputs[index]
            return few_tokens.multiply(weight, x, self.depths, out, dependent=dependent, tuning=tuning)

        return [lambda index=index: call(index) for index in range(len(self.weights))]

    def error(self, tuning: Tuning | None, dependent: bool = False) -> float:
        """Relative error of the first copy's product, its output filled with NaN before."""
        self.outputs[0].fill_(float("nan"))
        self.calls(tuning, dependent)[0]()
        return relative_error(self.outputs[0], self.truth())

    def truth(self) -> Tensor:
        """The float64 result at the depths now set."""
        key = tuple(self.depths.flatten().tolist())
        if self._truth is None or self._truth[0] != key:
            self._truth = (key, exact(self.weights[0], self.x, self.depths))
        return self._truth[1]

    def measure(self, tuning: Tuning | None, bandwidth: float, dependent: bool = True) -> dict[str, Any]:
        """Time and share of the memory limit at the depths now set; the deepest token decides what is read."""
        micros = graph_microseconds(self.calls(tuning, dependent))
        bytes_read = self.weights[0].stored_bytes(int(self.depths.max()))
        return {"microseconds": round(micros, 3), "share_of_limit": round(bytes_read / bandwidth / micros * 1e6, 4)}


def bf16_microseconds(name: str, tokens: int) -> float:
    """The same product by cuBLAS, its weights rotated as well."""
    sections, in_features = SHAPES[name]
    rows = sum(sections)
    copies = copies_for(rows * in_features * 2)
    weights = [torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(copies)]
    x = torch.randn(tokens, in_features, device="cuda", dtype=torch.bfloat16)
    return graph_microseconds([lambda w=w: torch.nn.functional.linear(x, w) for w in weights])


def int4_microseconds(name: str, tokens: int) -> float:
    """The same product by torch's tinygemm kernel."""
    sections, in_features = SHAPES[name]
    rows = sum(sections)
    codes = torch.randint(0, 256, (rows, in_features // 2), dtype=torch.uint8, device="cuda")
    first = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    weights = [first.clone() for _ in range(copies_for(rows * in_features / 2))]
    ranges = torch.randn(in_features // 128, rows, 2, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, in_features, device="cuda", dtype=torch.bfloat16)
    return graph_microseconds([lambda w=w: torch.ops.aten._weight_int4pack_mm(x, w, 128, ranges) for w in weights])
