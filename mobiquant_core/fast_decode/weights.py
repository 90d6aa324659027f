"""What a decode step reads: packed weights and router parameters per site, norms, tables. It runs nothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from mobiquant_core.kernels.step_launches import PADDED_EXTRA, PADDED_HEADS
from mobiquant_core.packing import PackedWeight


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
    def qkv_rows(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class RouterWeights:
    """A perceptron router as its kernel reads it; sizes padded to a power of two."""

    direction: Float16[Tensor, "hidden in_features"]
    small: Float[Tensor, " parameters"]

    @property
    def hidden(self) -> int:
        return self.direction.shape[0]


@dataclass(frozen=True)
class SiteWeights:
    """One fused product and its router."""

    weight: PackedWeight | Tensor
    """Planes, or a dense 16-bit matrix for the baseline."""
    router: RouterWeights | None
    """Its depths: without a router they are the fixed ones of the step's control."""
    first_linear: int
    bias: Tensor | None = None
    shift: Tensor | None = None
    gain: Tensor | None = None

    @property
    def hidden(self) -> int:
        """Half the numbers of a router part."""
        return 16 if self.router is None else self.router.hidden


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
    head: Tensor
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

        for tensor in (self.embedding, self.final_norm, self.head, self.rotary):
            add(tensor)
        for layer in self.layers:
            for tensor in (layer.attention_norm, layer.mlp_norm, layer.query_norm, layer.key_norm):
                add(tensor)
            for site in (layer.attention_input, layer.attention_output, layer.mlp_input, layer.mlp_output):
                packed = site.weight
                parts = (packed.planes, packed.ranges) if isinstance(packed, PackedWeight) else (packed,)
                router = () if site.router is None else (site.router.direction, site.router.small)
                for tensor in (*parts, *router, site.bias, site.shift, site.gain):
                    add(tensor)
        return sum(seen.values())


def pack_router(
    direction: Float[Tensor, "hidden in_features"],
    size: Float[Tensor, "hidden 2"],
    hidden_bias: Float[Tensor, " hidden"],
    output: Float[Tensor, "scores hidden"],
    base: Float[Tensor, " scores"],
    heads: int,
) -> RouterWeights:
    """The parameters of an MlpRouter in the kernel's order: sizes, bias, base, output, each head and slice padded."""
    hidden = max(16, 1 << (direction.shape[0] - 1).bit_length())
    extra, device = output.shape[0] // heads, direction.device
    sizes = torch.zeros(3, hidden, device=device)
    sizes[:2, : size.shape[0]] = size.t()
    sizes[2, : size.shape[0]] = hidden_bias
    # A slice that does not exist must never be chosen; without limit its score stays below every threshold.
    bases = torch.full((PADDED_EXTRA, PADDED_HEADS), float("-inf"), device=device)
    bases[:extra, :heads] = base.view(heads, extra).t()
    outputs = torch.zeros(PADDED_EXTRA, PADDED_HEADS, hidden, device=device)
    outputs[:extra, :heads, : output.shape[1]] = output.view(heads, extra, -1).transpose(0, 1)
    padded = torch.zeros(hidden, direction.shape[1], dtype=torch.float16, device=device)
    padded[: direction.shape[0]] = direction
    return RouterWeights(padded, torch.cat([sizes.flatten(), bases.flatten(), outputs.flatten()]))
