"""What a decode step reads: packed weights and router parameters per site, norms, tables. It runs nothing."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from mobiquant_core.kernels.step_launches import PADDED_EXTRA, PADDED_HEADS
from mobiquant_core.packing import PackedWeight

SKETCH_HIDDEN = 16
"""Rows of a sketch router: a score for each head and slice, padded, and the centre."""


@dataclass(frozen=True)
class StepShape:
    """The numbers of a decoder that its kernels need."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    norm_eps: float
    window: int = 2**30
    """Positions a token may look back; practically endless where there is no sliding window."""

    @property
    def linears(self) -> int:
        """Those that a budget decides about, in canonical order; the output head comes after them."""
        return 7 * self.layers

    @property
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class RouterWeights:
    """A router as its kernel reads it; sizes padded to a power of two."""

    direction: Float16[Tensor, "hidden in_features"]
    """A perceptron's first layer; a sketch router's energies, then its centre as the last row."""
    small: Float[Tensor, " parameters"]
    kind: Literal["mlp", "sketch"] = "mlp"

    @property
    def hidden(self) -> int:
        return self.direction.shape[0]


@dataclass(frozen=True)
class SiteWeights:
    """One fused product and its router."""

    weight: PackedWeight | Tensor
    """Planes, or a dense 16-bit matrix for the baseline."""
    router: RouterWeights | None
    """Its depths: without a router they are its leader's decision or the fixed ones of the step's control."""
    first_linear: int
    bias: Tensor | None = None
    shift: Tensor | None = None
    gain: Tensor | None = None
    followers: int = 0
    """Linears behind its own that its router decides about as well."""
    follows: bool = False
    """Whether the product before it in the layer has found its depth already."""

    @property
    def hidden(self) -> int:
        """Half the numbers of a router part."""
        return 16 if self.router is None else self.router.hidden

    @property
    def sketch(self) -> bool:
        return self.router is not None and self.router.kind == "sketch"

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Everything the product can read besides its input."""
        packed = self.weight
        parts = (packed.planes, packed.ranges) if isinstance(packed, PackedWeight) else (packed,)
        router = () if self.router is None else (self.router.direction, self.router.small)
        return (*parts, *router, self.bias, self.shift, self.gain)


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: Tensor
    mlp_norm: Tensor
    attention_input: SiteWeights
    attention_output: SiteWeights
    mlp_input: SiteWeights
    mlp_output: SiteWeights
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None


@dataclass(frozen=True)
class StepWeights:
    shape: StepShape
    embedding: Tensor
    final_norm: Tensor
    head: SiteWeights
    """The output head: dense where it is tied to the embedding or the rest is, else planes that are all read."""
    rotary: Float[Tensor, "positions head_dim"]
    """cos and then sin of every position, half a head each."""
    layers: tuple[LayerWeights, ...]

    @property
    def dense(self) -> bool:
        """Whether these are the 16-bit baseline's weights."""
        return isinstance(self.layers[0].attention_input.weight, Tensor)

    def stored_bytes(self) -> int:
        """Everything a step can read, the KV cache aside; a tied head counts once."""
        seen: dict[int, int] = {}

        def add(tensor: Tensor | None) -> None:
            if tensor is not None:
                seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()

        for tensor in (self.embedding, self.final_norm, self.rotary, *self.head.tensors()):
            add(tensor)
        for layer in self.layers:
            for tensor in (layer.attention_norm, layer.mlp_norm, layer.query_norm, layer.key_norm):
                add(tensor)
            for site in (layer.attention_input, layer.attention_output, layer.mlp_input, layer.mlp_output):
                for tensor in site.tensors():
                    add(tensor)
        return sum(seen.values())


def pack_router(
    direction: Float[Tensor, "hidden in_features"],
    size: Float[Tensor, " hidden"],
    hidden_bias: Float[Tensor, " hidden"],
    output: Float[Tensor, "scores hidden"],
    base: Float[Tensor, " scores"],
    heads: int,
) -> RouterWeights:
    """The parameters of an MlpRouter in the kernel's order: size, bias, base, output, each head and slice padded."""
    hidden = max(16, 1 << (direction.shape[0] - 1).bit_length())
    extra, device = output.shape[0] // heads, direction.device
    first = torch.zeros(2, hidden, device=device)
    first[:, : size.shape[0]] = torch.stack([size, hidden_bias])
    # A slice that does not exist must never be chosen; without limit its score stays below every threshold.
    bases = torch.full((PADDED_EXTRA, PADDED_HEADS), float("-inf"), device=device)
    bases[:extra, :heads] = base.view(heads, extra).t()
    outputs = torch.zeros(PADDED_EXTRA, PADDED_HEADS, hidden, device=device)
    outputs[:extra, :heads, : output.shape[1]] = output.view(heads, extra, -1).transpose(0, 1)
    padded = torch.zeros(hidden, direction.shape[1], dtype=torch.float16, device=device)
    padded[: direction.shape[0]] = direction
    return RouterWeights(padded, torch.cat([first.flatten(), bases.flatten(), outputs.flatten()]))


def pack_sketch(
    energy: Float[Tensor, "scores in_features"],
    offset: Float[Tensor, " scores"],
    centre: Float[Tensor, " in_features"],
    heads: int,
) -> RouterWeights:
    """The parameters of a SketchRouter in the kernel's order: offsets, then the centre's energy in every score."""
    extra, device = energy.shape[0] // heads, energy.device
    rows = torch.zeros(PADDED_EXTRA, PADDED_HEADS, energy.shape[1], device=device)
    rows[:extra, :heads] = energy.view(heads, extra, -1).transpose(0, 1)
    # As for a perceptron: a slice that does not exist stays below every threshold.
    offsets = torch.full((PADDED_EXTRA, PADDED_HEADS), float("-inf"), device=device)
    offsets[:extra, :heads] = offset.view(heads, extra).t()
    padded = torch.zeros(SKETCH_HIDDEN, energy.shape[1], dtype=torch.float16, device=device)
    padded[: PADDED_EXTRA * PADDED_HEADS] = rows.flatten(0, 1)
    padded[-1] = centre
    # Of the numbers as the kernel reads them, and in fp64: it is what large sums are subtracted from.
    constants = padded[: PADDED_EXTRA * PADDED_HEADS].double() @ padded[-1].double().square()
    return RouterWeights(padded, torch.cat([offsets.flatten(), constants.float()]), "sketch")
