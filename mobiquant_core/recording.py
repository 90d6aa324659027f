"""The residual stream of a forward and the predictions that came out of it, as arrays for the columns of a trace.

Hooks on the decoder layers keep references to the residual stream, and only while a recorder is active in this
context: another request on the same model is not recorded. Statistics are taken once per forward.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mobiquant_core.trace import Columns

TOP = 5
_active: ContextVar["ResidualRecorder | None"] = ContextVar("residual_recorder", default=None)


class ResidualRecorder:
    """The residual stream of one forward, and its statistics."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, hidden: Float[Tensor, "batch tokens channels"]) -> None:
        self._rows.append(hidden)

    def hidden(self) -> Float[Tensor, "rows tokens channels"]:
        """Before layer 0 and after every layer, batch and tokens in one axis."""
        return torch.stack([hidden.flatten(0, -2).to(self._rows[0].device) for hidden in self._rows])

    def statistics(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(max [rows, tokens], top3 [rows, tokens, 3], median [rows, tokens]) of |h| over channels, float32."""
        magnitude = self.hidden().abs().float()
        top3 = magnitude.topk(3, dim=-1).values.cpu().numpy()
        return top3[..., 0], top3, magnitude.median(dim=-1).values.cpu().numpy()


@contextlib.contextmanager
def recording(recorder: ResidualRecorder | None) -> Iterator[None]:
    """Make `recorder` the one that the residual hooks fill, in this context only."""
    token = _active.set(recorder)
    try:
        yield
    finally:
        _active.reset(token)


def install_residual_hooks(layers: list[nn.Module]) -> None:
    """Once per model: the input of the first decoder layer, then the output of every layer."""
    layers[0].register_forward_pre_hook(_before_first_layer, with_kwargs=True)
    for layer in layers:
        layer.register_forward_hook(_after_layer)


def _before_first_layer(_: nn.Module, args: tuple, kwargs: dict) -> None:
    if (recorder := _active.get()) is not None:
        recorder.add(args[0] if args else kwargs["hidden_states"])


def _after_layer(_: nn.Module, __: tuple, output: Tensor | tuple) -> None:
    if (recorder := _active.get()) is not None:
        recorder.add(output[0] if isinstance(output, tuple) else output)


def token_losses(
    previous: Float[Tensor, " vocabulary"] | None, logits: Float[Tensor, "tokens vocabulary"], ids: list[int]
) -> np.ndarray:
    """float32 [tokens]: nats of each token, predicted by the one before; NaN where there is none before."""
    losses = np.full(len(ids), math.nan, dtype=np.float32)
    first = 0 if previous is not None else 1
    sources = logits[: len(ids) - 1] if previous is None else torch.cat([previous[None], logits[: len(ids) - 1]])
    if len(sources):
        targets = torch.tensor(ids[first:], device=logits.device)
        losses[first:] = nn.functional.cross_entropy(sources, targets, reduction="none").cpu().numpy()
    return losses


def top_predictions(logits: Float[Tensor, "tokens vocabulary"]) -> tuple[np.ndarray, np.ndarray]:
    """(int32 ids, float32 probabilities), both [tokens, 5], of the likeliest next tokens."""
    values, ids = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    probabilities = torch.exp(values - logits.logsumexp(dim=-1, keepdim=True))
    return ids.to(torch.int32).cpu().numpy(), probabilities.cpu().numpy()


def join_columns(parts: list[Columns]) -> Columns:
    """Columns of consecutive tokens as one."""
    axis_one = ("depths", "scores", "residual_max", "residual_top3", "residual_median", "errors", "thresholds")
    axis_zero = ("top_ids", "top_probabilities", "loss", "reference_loss", "reference_kl")
    arrays = {}
    for names, axis in ((axis_one, 1), (axis_zero, 0)):
        for name in names:
            values = [getattr(part, name) for part in parts]
            arrays[name] = None if values[0] is None else np.concatenate(values, axis=axis)
    return Columns(
        token_ids=[token for part in parts for token in part.token_ids],
        token_texts=[text for part in parts for text in part.token_texts],
        top_texts=[texts for part in parts for texts in part.top_texts],
        **arrays,
    )
