"""The three steps of generation: prefill, decode_one_token, sample.

Any transformers causal model runs through them, quantized or not; who routes and who records is set around the call.
They know token ids and nothing about text.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from mobiquant_core.errors import CheckpointError

PREFILL_CHUNK = 256
"""Tokens per forward of a prompt: the grain of cancellation, and the bound on memory for logits."""


@dataclass
class DecodeState:
    """A sequence under way: what attention remembers of it, and how many tokens that is.

    `cache` is made on the first forward; a fixed-size cache for a captured graph can be put here instead.
    """

    cache: Any = None
    position: int = 0


def prefill(model: nn.Module, state: DecodeState, ids: list[int]) -> Float[Tensor, "tokens vocabulary"]:
    """Process known tokens after those in `state`; the prediction made from each of them, float32."""
    inputs = torch.tensor([ids], dtype=torch.long, device=device_of(model))
    if state.cache is None:
        state.cache = DynamicCache(config=model.config)  # pyright: ignore[reportArgumentType] - nn.Module hides it
    with torch.no_grad():
        output = model(input_ids=inputs, use_cache=True, **{cache_keyword(type(model)): state.cache})
    state.position += len(ids)
    return output.logits[0].float()


@functools.cache
def cache_keyword(model: type[nn.Module]) -> str:
    """What a model calls the cache it is given: transformers 5.24 renamed `past_key_values` to `cache`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def decode_one_token(model: nn.Module, state: DecodeState, token_id: int) -> Float[Tensor, "1 vocabulary"]:
    """Process one token; a seam of its own, since a captured graph replaces exactly this step."""
    return prefill(model, state, [token_id])


def sample(logits: Float[Tensor, " vocabulary"], *, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """The next token id: the likeliest at temperature 0, else drawn from the `top_k` likeliest (0: from all)."""
    logits = logits.detach().float().cpu()
    # The sum, one fast pass, is finite only where all are; a sum that overflows is looked at closely.
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise CheckpointError(
            "The model's prediction is not a finite number, so no token can be drawn. "
            "Its weights are damaged or overflow in this number type; load another copy."
        )
    if temperature == 0:
        return int(logits.argmax())
    candidates = None
    if 0 < top_k < logits.numel():
        logits, candidates = logits.topk(top_k)
    probabilities = torch.softmax((logits - logits.max()) / temperature, dim=-1)
    choice = int(torch.multinomial(probabilities, 1, generator=generator))
    return choice if candidates is None else int(candidates[choice])


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
