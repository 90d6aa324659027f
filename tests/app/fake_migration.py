"""A deterministic stand-in for `mobiquant_core.migration.measure`, with a report of the same shape."""

from dataclasses import dataclass

import numpy as np
from fake_engine import BITS_BY_DEPTH, FakeEngine, _noise


@dataclass
class Sets:
    overlap: np.ndarray
    jaccard: np.ndarray
    spearman: np.ndarray


@dataclass
class Report:
    token_ids: list
    token_texts: list
    linears: list
    bits_by_depth: tuple
    error: str
    top_percent: float
    first_skipped: bool
    set_size: int
    chance: float
    chance_jaccard: float
    errors: np.ndarray
    per_linear: Sets
    reference_loss: np.ndarray
    loss_increase: np.ndarray
    model_level: Sets
    ranks: np.ndarray


def _sets(errors: np.ndarray, size: int) -> Sets:
    order = np.argsort(-errors, axis=-1, kind="stable")
    members = np.zeros(errors.shape, dtype=bool)
    np.put_along_axis(members, order[..., :size], True, axis=-1)
    shared = (members[..., :, None, :] & members[..., None, :, :]).sum(-1)
    ranks = np.argsort(order, axis=-1).astype(float)
    ranks -= ranks.mean(-1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(-1))
    spearman = ranks @ np.swapaxes(ranks, -1, -2) / (norms[..., :, None] * norms[..., None, :])
    return Sets(shared / size, shared / (2 * size - shared), spearman)


def measure(engine: FakeEngine, ids, *, top_percent=10.0, error="relative", skip_first=True, cancel=None) -> Report:
    tokens, first = np.array(ids), int(skip_first)
    rows, depth = np.arange(len(engine.linears))[:, None, None], np.arange(4)[None, :, None]
    errors = (0.6 * _noise(tokens, rows, 1) + _noise(tokens, rows, depth + 2)) / 4.0**depth
    if error == "absolute":
        errors[..., 0] += 10
    increase = (0.5 * _noise(tokens, 7)[None] + _noise(tokens, np.arange(4)[:, None] + 20)) / 4.0 ** depth[0]
    increase[:, 0] = np.nan
    size = max(1, round((len(ids) - first) * top_percent / 100))
    ranks = np.zeros(increase.shape, dtype=np.int32)
    ranks[:, 1:] = 1 + np.argsort(np.argsort(-increase[:, 1:], axis=1), axis=1)
    chance = size / (len(ids) - first)
    return Report(
        list(ids),
        [engine._word(int(i)) for i in ids],
        engine.linears,
        BITS_BY_DEPTH,
        error,
        top_percent,
        skip_first,
        size,
        chance,
        chance / (2 - chance),
        errors.astype(np.float32),
        _sets(errors[..., first:], size),
        np.ones(len(ids), np.float32),
        increase.astype(np.float32),
        _sets(increase[:, 1:], size),
        ranks,
    )
