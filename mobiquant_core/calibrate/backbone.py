"""A causal model taken apart into embedding, decoder layers and head, so that layers can run one by one.

It knows the transformers layer call, nothing of quantization. Windows have no padding: attention is plainly causal.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


class Backbone:
    """The parts of one model, sharing its modules."""

    def __init__(self, model: PreTrainedModel) -> None:
        # Layers are called without a mask; only sdpa reads that as causal.
        model.set_attn_implementation("sdpa")
        self.model = model
        self.layers: nn.ModuleList = model.get_submodule("model.layers")  # pyright: ignore[reportAttributeAccessIssue]
        self.norm = model.get_submodule("model.norm")
        self.head = cast(nn.Module, model.get_output_embeddings())
        self._rotary: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._masks: dict[int, Tensor] = {}

    def embed(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        return self.model.get_input_embeddings()(ids)

    def run_layer(
        self, index: int, hidden: Float[Tensor, "batch tokens hidden"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        positions, cosine, sine = self._positions(hidden)
        rotary = (cosine.to(hidden.dtype), sine.to(hidden.dtype))
        output = self.layers[index](
            hidden,
            attention_mask=self._mask(hidden),
            position_ids=positions,
            position_embeddings=rotary,
            use_cache=False,
        )
        return output[0] if isinstance(output, tuple) else output

    def finish(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens vocabulary"]:
        return self.head(self.norm(hidden)).float()

    def logits(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        hidden = self.embed(ids)
        for index in range(len(self.layers)):
            hidden = self.run_layer(index, hidden)
        return self.finish(hidden)

    def _mask(self, hidden: Tensor) -> Tensor | None:
        """None is causal too, but then torch shares key-value heads between query heads, which on a GPU has only a
        slow form for 32 bits; with a mask they are repeated."""
        tokens = hidden.shape[1]
        if not hidden.is_cuda or hidden.dtype != torch.float32:
            return None
        if tokens not in self._masks:
            self._masks[tokens] = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=hidden.device).tril()
        return self._masks[tokens]

    def _positions(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary tables of this length, made once: they are the same for every layer and window."""
        tokens = hidden.shape[1]
        if tokens not in self._rotary:
            positions = torch.arange(tokens, device=hidden.device).unsqueeze(0)
            with torch.no_grad():
                cosine, sine = self.model.get_submodule("model.rotary_emb")(hidden, positions)
            self._rotary[tokens] = positions, cosine, sine
        return self._rotary[tokens]
