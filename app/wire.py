"""Trace records -> the numbered messages that the page's store reads.

One message is one compact JSON string; arrays are base64, token-major, so that the page appends new tokens
without moving old ones. It knows no gradio and no engine. `static/store.js` is the reader.
"""

import base64
import json
import uuid
from typing import Any

import numpy as np

from mobiquant_core.trace import Columns, Step, Trace

DEFAULT_GROUP_SIZE = 128


def encode(array: np.ndarray, dtype: str = "<f4") -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode("ascii")


def _token_major(array: np.ndarray) -> np.ndarray:
    """[rows, T, ...] -> [T, rows, ...]."""
    return np.swapaxes(array, 0, 1)


def columns_of(columns: Columns) -> dict:
    """The wire form of consecutive tokens; optional arrays are absent where they were not recorded."""
    wire = {
        "n": len(columns.token_ids),
        "ids": [int(token) for token in columns.token_ids],
        "texts": list(columns.token_texts),
        "depths": encode(_token_major(columns.depths), "u1"),
        "scores": encode(_token_major(columns.scores)),
        "residualMax": encode(_token_major(columns.residual_max)),
        "residualTop3": encode(_token_major(columns.residual_top3)),
        "residualMedian": encode(_token_major(columns.residual_median)),
        "topTexts": [list(texts) for texts in columns.top_texts],
        "topProbabilities": encode(columns.top_probabilities),
        "loss": encode(columns.loss),
    }
    if columns.thresholds is not None:
        wire["thresholds"] = encode(_token_major(columns.thresholds))
    if columns.errors is not None:
        wire["errors"] = encode(_token_major(columns.errors))
    if columns.reference_loss is not None:
        wire["referenceLoss"] = encode(columns.reference_loss)
    if columns.reference_kl is not None:
        wire["referenceKl"] = encode(columns.reference_kl)
    return wire


def _dump(message: dict) -> str:
    # NaN in JSON would stop the page's parser; every float array travels in base64 instead.
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


def run_message(
    trace: Trace, run: str, seq: int, *, state: str, measured: float, group_size: int = DEFAULT_GROUP_SIZE
) -> str:
    """The opening message of a run, or a resynchronisation: settings, thresholds and every column so far.

    `state` is `running`, `done` or `stopped`.
    """
    settings = trace.settings
    meta = {
        "model": settings.model,
        "kind": settings.kind,
        "policy": settings.policy,
        "mode": settings.threshold_mode,
        "requestedBits": settings.requested_bits,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "linears": [[info.layer, info.projection, info.weights] for info in trace.linears],
        "bitsByDepth": list(trace.bits_by_depth),
        "promptTokens": trace.prompt_tokens,
        "machine": dict(trace.machine),
        "notes": list(trace.notes),
        "groupOverheadBits": 32 / group_size,
        "thresholdRows": 0 if trace.columns.thresholds is None else len(trace.columns.thresholds),
    }
    arrays = {
        "thresholds": encode(trace.thresholds),
        "budgetGrid": encode(trace.budget_grid),
        "thresholdGrid": encode(trace.threshold_grid),
    }
    timing = {"prefill": trace.timing.prefill_seconds, "decode": [round(s, 6) for s in trace.timing.decode_seconds]}
    return _dump(
        {"kind": "run", "run": run, "seq": seq, "state": state, "measured": measured, "meta": meta}
        | {"arrays": arrays, "timing": timing, "columns": columns_of(trace.columns)}
    )


def columns_message(steps: list[Step], run: str, seq: int, measured: float) -> str:
    """Tokens that were decoded since the last message; `start` is the position of the first of them."""
    timing = {"decode": [round(step.seconds, 6) for step in steps]}
    body = {"start": steps[0].position, "timing": timing, "parts": [columns_of(step.columns) for step in steps]}
    return _dump({"kind": "columns", "run": run, "seq": seq, "measured": measured, **body})


def done_message(run: str, seq: int, measured: float, state: str, notes: list[str]) -> str:
    return _dump({"kind": "done", "run": run, "seq": seq, "measured": measured, "state": state, "notes": notes})


def migration_message(
    report: Any, run: str, sentences: list[str], linear_ranks: np.ndarray, reference_ranks: np.ndarray
) -> str:
    """A migration report for the page; `sentences` starts with the whole model's, then one for each linear.

    `linear_ranks` is int [linears, S, T], as `views.migration.ranks_of` makes it; `reference_ranks` int [T] ranks the
    tokens by their loss at full precision.
    """
    body = {
        "error": report.error,
        "skipFirst": bool(report.first_skipped),
        "topPercent": float(report.top_percent),
        "setSize": int(report.set_size),
        "chance": float(report.chance),
        "bits": [int(bits) for bits in report.bits_by_depth],
        "linears": [[info.layer, info.projection, info.weights] for info in report.linears],
        "texts": list(report.token_texts),
        "sentences": sentences,
        "modelRanks": encode(report.ranks, "<u2"),
        "linearRanks": encode(linear_ranks, "<u2"),
        "modelOverlap": encode(report.model_level.overlap),
        "modelSpearman": encode(report.model_level.spearman),
        "linearOverlap": encode(report.per_linear.overlap),
        "linearSpearman": encode(report.per_linear.spearman),
        "lossIncrease": encode(report.loss_increase),
        "referenceRanks": encode(reference_ranks, "<u2"),
    }
    return _dump({"kind": "migration", "run": run} | body)


def surface_message(surface: Any, run: str) -> str:
    """|h| after one layer (a `mobiquant_core.outliers.ChannelSurface`): float32 [tokens, channels]."""
    channels = [int(channel) for channel in surface.channels]
    body = {"layer": int(surface.layer), "channels": channels, "magnitude": encode(surface.magnitude)}
    return _dump({"kind": "surface", "run": run} | body)


def marked(message: str) -> str:
    """The message with a mark that no other has: a component given an equal value again would tell nobody."""
    return f'{message[:-1]},"mark":"{uuid.uuid4().hex}"}}'


def failed_message(kind: str) -> str:
    """Tells the page that what it waits for will not come; the reason went out as a toast."""
    return _dump({"kind": "failed", "what": kind})
