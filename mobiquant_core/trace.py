"""What happened in a run: plain records of numpy arrays and strings.

It holds no model, no tensor and no figure; the app, the notebooks and the exports read it.
Columns are tokens in order of position. A column says how that token was *processed*: the depths its own
activations got, and the prediction that came out of it for the next token.
"""

from dataclasses import dataclass, field

import numpy as np

SCHEMA_VERSION = 2
"""Version 2 added `Columns.thresholds`; files of version 1 are still read."""


@dataclass(frozen=True)
class LinearInfo:
    """One quantized projection; its index in `Trace.linears` is the row of every per-linear array."""

    layer: int
    projection: str
    weights: int
    """Number of weights, the share this linear has in average bits."""


@dataclass(frozen=True)
class RunSettings:
    """What was asked for."""

    model: str
    kind: str
    """`generate` or `analyze` (teacher-forced)."""
    policy: str
    threshold_mode: str
    """`global` or `per_linear`."""
    requested_bits: float
    seed: int
    temperature: float
    max_new_tokens: int


@dataclass
class Columns:
    """Per-token arrays of consecutive tokens, `T` of them. A Step carries a few columns, a Trace all."""

    token_ids: list[int]
    token_texts: list[str]
    depths: np.ndarray
    """uint8 [linears, T]: slices used, 1 to S."""
    scores: np.ndarray
    """float32 [linears, T, S - 1]: the policy's score of every residual slice, non-increasing over slices."""
    residual_max: np.ndarray
    """float32 [layers + 1, T]: max |h| of the residual stream before layer 0 and after each layer."""
    residual_top3: np.ndarray
    """float32 [layers + 1, T, 3]: the three largest |h| over channels."""
    residual_median: np.ndarray
    """float32 [layers + 1, T]: median |h| over channels."""
    top_ids: np.ndarray
    """int32 [T, 5]: most likely next tokens after this one."""
    top_texts: list[list[str]]
    top_probabilities: np.ndarray
    """float32 [T, 5]."""
    loss: np.ndarray
    """float32 [T]: nats of this token given the ones before; NaN for the first."""
    errors: np.ndarray | None = None
    """float32 [linears, T]: relative output error at the depth used, against full precision; None if not asked."""
    reference_loss: np.ndarray | None = None
    """float32 [T]: the full-precision model's loss on the same tokens; None if not asked."""
    reference_kl: np.ndarray | None = None
    """float32 [T]: KL(full precision || this run) of the prediction made *from* this token; None if not asked."""
    thresholds: np.ndarray | None = None
    """float32 [1, T] in global mode, else [linears, T]: what this token's scores were compared with. The budget
    controller moves them while decoding, so they leave `Trace.thresholds`; None in runs of version 1."""


@dataclass
class Timing:
    """Measured seconds."""

    prefill_seconds: float = 0.0
    decode_seconds: list[float] = field(default_factory=list)
    """One entry per generated token."""

    @property
    def tokens_per_second(self) -> float:
        """Decode rate; 0 where nothing was decoded."""
        total = sum(self.decode_seconds)
        return len(self.decode_seconds) / total if total else 0.0


@dataclass
class Trace:
    """A whole run."""

    settings: RunSettings
    linears: list[LinearInfo]
    bits_by_depth: tuple[int, ...]
    thresholds: np.ndarray
    """float32 [linears]: what scores are compared with at the requested budget; all equal in global mode."""
    budget_grid: np.ndarray
    """float32 [121]: 2.00, 2.05 ... 8.00 for the default slices."""
    threshold_grid: np.ndarray
    """float32 [121] in global mode: threshold for each budget, so that a page can re-threshold scores."""
    prompt_tokens: int
    columns: Columns
    timing: Timing
    machine: dict[str, str]
    """Device name, versions, date; `path` is 'reference' or 'kernels', `decode` says so where a graph decoded."""
    notes: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.columns.token_ids)

    def token_thresholds(self) -> np.ndarray:
        """float32 [linears, T]: the threshold of every decision; the requested budget's where none was recorded."""
        recorded = self.columns.thresholds if self.columns.thresholds is not None else self.thresholds[:, None]
        return np.broadcast_to(recorded, (len(self.linears), self.tokens))


@dataclass(frozen=True)
class Step:
    """What `generate` yields: first the prompt's columns (phase `prefill`), then one column per new token."""

    phase: str
    """`prefill` or `decode`."""
    position: int
    """Position of the first column."""
    columns: Columns
    seconds: float
    measured_bits: float
    """Average bits over all tokens of the run so far."""
    captured: bool = False
    """Whether a captured decode step made it, not the model's modules."""


def bits_of(depths: np.ndarray, bits_by_depth: tuple[int, ...]) -> np.ndarray:
    """Bits per weight for an array of depths, same shape, float32."""
    return np.asarray((0, *bits_by_depth), dtype=np.float32)[depths]


def average_bits(depths: np.ndarray, linears: list[LinearInfo], bits_by_depth: tuple[int, ...]) -> float:
    """Weight-averaged bits over [linears, T] depths: the number every budget is about."""
    weights = np.array([info.weights for info in linears], dtype=np.float64)
    per_linear = bits_of(depths, bits_by_depth).mean(axis=1, dtype=np.float64)
    return float((per_linear * weights).sum() / weights.sum())


def token_bits(depths: np.ndarray, linears: list[LinearInfo], bits_by_depth: tuple[int, ...]) -> np.ndarray:
    """float32 [T]: weight-averaged bits of each token."""
    weights = np.array([info.weights for info in linears], dtype=np.float32)
    return (bits_of(depths, bits_by_depth) * weights[:, None]).sum(axis=0) / weights.sum()
