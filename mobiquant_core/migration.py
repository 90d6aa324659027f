"""Outlier migration: which tokens carry most of the quantization error, and whether they change with precision.

Per linear by output error, and at model level by rise in loss; always beside what chance alone would give.
It measures and draws nothing; "no migration here" is a possible outcome.
"""

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mobiquant_core.analysis import FullPrecision, output_at, squared_errors
from mobiquant_core.decode import PREFILL_CHUNK, DecodeState, prefill
from mobiquant_core.engine import Engine
from mobiquant_core.errors import Cancelled, PromptError
from mobiquant_core.linear import MobiLinear
from mobiquant_core.recording import token_losses
from mobiquant_core.routing import Depths, FixedDepth
from mobiquant_core.trace import LinearInfo

ERROR_KINDS = ("relative", "absolute")
_FEWEST_TOKENS = 5
_EPSILON = 1e-20


@dataclass(frozen=True)
class SetComparison:
    """Agreement of the outlier sets of every pair of depths; leading axes may count linears."""

    overlap: np.ndarray
    """float32 [..., S, S]: share of one set that is in the other; migration rate is 1 - overlap."""
    jaccard: np.ndarray
    spearman: np.ndarray
    """float32 [..., S, S]: rank correlation over all tokens; NaN where every token is alike."""


@dataclass(frozen=True)
class MigrationReport:
    """What moved. T tokens, S depths; position 0 is in the arrays, but outside the sets where it was left out."""

    token_ids: list[int]
    token_texts: list[str]
    linears: list[LinearInfo]
    bits_by_depth: tuple[int, ...]
    error: str
    """`relative` or `absolute`."""
    top_percent: float
    first_skipped: bool
    set_size: int
    chance: float
    """Expected overlap of two random sets of this size; `chance_jaccard` likewise."""
    chance_jaccard: float
    errors: np.ndarray
    """float32 [linears, S, T]."""
    per_linear: SetComparison
    reference_loss: np.ndarray
    """float32 [T]: full-precision loss of each token; NaN for the first."""
    loss_increase: np.ndarray
    """float32 [S, T]: loss at each depth minus the full-precision loss; NaN for the first."""
    model_level: SetComparison
    ranks: np.ndarray
    """int32 [S, T]: place of each token by loss increase, 1 is the largest; 0 for tokens left out."""


def measure(
    engine: Engine,
    ids: list[int],
    *,
    top_percent: float = 10.0,
    error: str = "relative",
    skip_first: bool = True,
    cancel: threading.Event | None = None,
) -> MigrationReport:
    """Compare the outlier tokens of a text (ids with BOS) between all depths, on full-depth inputs."""
    if error not in ERROR_KINDS:
        raise PromptError(f"The error kind {error!r} is unknown. Choose one of: {', '.join(ERROR_KINDS)}.")
    if not 0 < top_percent <= 50:
        raise PromptError(f"top_percent={top_percent!r} cannot be used: give a number above 0, at most 50.")
    if not _FEWEST_TOKENS <= len(ids) <= engine.context_length:
        raise PromptError(
            f"The text has {len(ids):,} tokens; outlier sets need from {_FEWEST_TOKENS} to {engine.context_length:,}."
        )
    quantized = engine.quantized
    depths = quantized.config.depths
    sweep = _ErrorSweep(engine, error)
    with sweep:
        losses = [_losses(engine, ids, None, cancel)]
    losses += [_losses(engine, ids, FixedDepth(depth), cancel) for depth in range(1, depths)]
    by_depth = np.stack([*losses[1:], losses[0]])
    reference = by_depth[-1] if engine.reference is None else _reference_losses(engine, ids, cancel)
    increase = by_depth - reference
    first = 1 if skip_first else 0
    errors = sweep.errors()
    size = max(1, round((len(ids) - first) * top_percent / 100))
    ranks = np.zeros(increase.shape, dtype=np.int32)
    # The first token has no loss, so at model level it is never part of a set.
    ranks[:, 1:] = 1 + np.argsort(np.argsort(-increase[:, 1:], axis=1, kind="stable"), axis=1)
    chance = size / (len(ids) - first)
    return MigrationReport(
        token_ids=list(ids),
        token_texts=engine.texts_of(ids),
        linears=list(quantized.linear_infos),
        bits_by_depth=quantized.config.bits_by_depth,
        error=error,
        top_percent=float(top_percent),
        first_skipped=skip_first,
        set_size=size,
        chance=chance,
        chance_jaccard=chance / (2 - chance),
        errors=errors,
        per_linear=compare_sets(errors[..., first:], size),
        reference_loss=reference,
        loss_increase=increase,
        model_level=compare_sets(increase[:, 1:], size),
        ranks=ranks,
    )


def compare_sets(errors: np.ndarray, size: int) -> SetComparison:
    """Agreement of the `size` largest of the last axis between all pairs of the axis before it."""
    tokens = errors.shape[-1]
    members = np.zeros(errors.shape, dtype=bool)
    np.put_along_axis(members, np.argsort(-errors, axis=-1, kind="stable")[..., :size], True, axis=-1)
    shared = (members[..., :, None, :] & members[..., None, :, :]).sum(-1)
    size = min(size, tokens)
    ranks = average_ranks(errors)
    centred = ranks - ranks.mean(-1, keepdims=True)
    norms = np.sqrt((centred**2).sum(-1))
    products = centred @ np.swapaxes(centred, -1, -2)
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = products / (norms[..., :, None] * norms[..., None, :])
    return SetComparison(
        (shared / size).astype(np.float32),
        (shared / (2 * size - shared)).astype(np.float32),
        spearman.astype(np.float32),
    )


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis, equal values sharing the mean of their places; float64."""
    flat = values.reshape(-1, values.shape[-1])
    ranks = np.empty(flat.shape, dtype=np.float64)
    for row, result in zip(flat, ranks, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        result[:] = ((2 * last - counts + 1) / 2)[inverse]
    return ranks.reshape(values.shape)


class _ErrorSweep(FixedDepth):
    """Runs everything at full depth and measures, on the way, every linear's error at every depth."""

    def __init__(self, engine: Engine, error: str) -> None:
        super().__init__(engine.quantized.config.depths)
        self._exact = FullPrecision(engine.quantized)
        self._relative = error == "relative"
        self._parts: dict[int, list[Tensor]] = {}

    def depths(self, linear: MobiLinear, x: Tensor) -> Depths:
        tokens = x.reshape(-1, x.shape[-1])
        exact = self._exact.product(linear, tokens)
        rows = []
        for depth in range(1, linear.config.depths + 1):
            error, size = squared_errors(output_at(linear, tokens, depth), exact, linear.bias)
            rows.append(error / (size + _EPSILON) if self._relative else error)
        self._parts.setdefault(linear.index, []).append(torch.stack(rows).cpu())
        return super().depths(linear, x)

    def errors(self) -> np.ndarray:
        """float32 [linears, depths, tokens]."""
        return torch.stack([torch.cat(self._parts[index], dim=1) for index in sorted(self._parts)]).numpy()


def _losses(engine: Engine, ids: list[int], fixed: FixedDepth | None, cancel: threading.Event | None) -> np.ndarray:
    """float32 [T]: loss of each token in the quantized model, under `fixed` or the pass already active."""
    if fixed is None:
        return _run(engine.quantized.model, ids, cancel)
    with fixed:
        return _run(engine.quantized.model, ids, cancel)


def _reference_losses(engine: Engine, ids: list[int], cancel: threading.Event | None) -> np.ndarray:
    return _run(engine.reference_model(), ids, cancel)


def _run(model: torch.nn.Module, ids: list[int], cancel: threading.Event | None) -> np.ndarray:
    state, previous, parts = DecodeState(), None, []
    for start in range(0, len(ids), PREFILL_CHUNK):
        if cancel is not None and cancel.is_set():
            raise Cancelled("The measurement was stopped.")
        chunk = ids[start : start + PREFILL_CHUNK]
        logits = prefill(model, state, chunk)
        parts.append(token_losses(previous, logits, chunk))
        previous = logits[-1]
    losses = np.concatenate(parts)
    losses[0] = math.nan
    return losses
