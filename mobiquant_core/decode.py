"""The three steps of generation: prefill, decode_one_token, sample.

Any transformers causal model runs through them, quantized or not; who routes and who records is set around the call.
They know token ids and nothing about text.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from mobiquant_core.errors import CheckpointError

CANDIDATES = 64
"""Tokens among which a device draws the next one."""
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


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a run are drawn, so that every path draws the same ones."""

    temperature: float
    """0 takes the likeliest."""
    top_k: int
    """How many of the likeliest may be drawn; 0 for all."""
    uniforms: Float[Tensor, " tokens"]
    """On the host, a number in [0, 1) for each token to come: the share of the probability that lies before it."""

    @property
    def on_device(self) -> bool:
        """Whether a device that keeps CANDIDATES tokens can draw them."""
        return self.temperature == 0 or 0 < self.top_k <= CANDIDATES


def sample(logits: Float[Tensor, " vocabulary"], sampling: Sampling, index: int) -> int:
    """The id of a run's token `index`: the likeliest at temperature 0, else the one of the likeliest, in falling order
    and of equal ones the lowest id first, up to which the probabilities pass the token's number."""
    logits = logits.detach().float().cpu()
    # The sum, one fast pass, is finite only where all are; a sum that overflows is looked at closely.
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise not_finite()
    if sampling.temperature == 0:
        return int(logits.argmax())
    count = sampling.top_k if 0 < sampling.top_k < logits.numel() else logits.numel()
    largest, ids = logits.topk(count)
    order = torch.from_numpy(np.lexsort((ids.numpy(), -largest.numpy())))
    until = torch.softmax(largest[order] / sampling.temperature, dim=0).cumsum(0)
    passed = int((until <= sampling.uniforms[index] * until[-1]).sum())
    return int(ids[order[min(passed, count - 1)]])


def not_finite() -> CheckpointError:
    """What there is to say about a prediction that nothing can be drawn from."""
    return CheckpointError(
        "The model's prediction is not a finite number, so no token can be drawn. "
        "Its weights are damaged or overflow in this number type; load another copy."
    )


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
