"""A deterministic stand-in for the engine: same contract, no torch, no weights.

Scores come from a hash of (token, linear), thresholds from their quantiles, so budgets are met as the real
policies meet them. Its words are nonsense, its arithmetic is consistent.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mobiquant_core.errors import Cancelled, PromptError
from mobiquant_core.trace import Columns, LinearInfo, RunSettings, Step, Timing, Trace, average_bits

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = (512 * 512, 512 * 256, 512 * 256, 512 * 512, 512 * 1536, 512 * 1536, 512 * 1536)
BITS_BY_DEPTH = (2, 4, 6, 8)
WORDS = [
    "",
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "was",
    "for",
    "as",
    "on",
    "with",
    "by",
    "at",
    "Paris",
    "river",
    "light",
    "town",
    "old",
    "king",
    "sea",
    "stone",
    "bird",
]


def _noise(*keys: np.ndarray | int) -> np.ndarray:
    """Uniform [0, 1) from whole-number keys, broadcast; the same everywhere and always."""
    mixed = np.full(1, 0x9E3779B97F4A7C15, dtype=np.uint64)
    for key in keys:
        mixed = (mixed ^ np.asarray(key, dtype=np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = mixed ^ (mixed >> np.uint64(29))
    value = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
    return value if any(np.ndim(key) for key in keys) else value[0]


def _corrected(budget: float, index: int) -> float:
    """What a budget controller would ask for: now more, now less, and never anything but an exact end."""
    return budget if budget in (2, 8) else min(max(budget + 0.1 * (-1) ** index, 2.0), 8.0)


@dataclass
class FakeQuantized:
    config: object = None


@dataclass
class FakeEngine:
    """Ten layers of seven linears by default; `delay` is the time of one decode step."""

    layers: int = 10
    delay: float = 0.02
    context: int = 2048
    device: str = "cpu"
    model_name: str = "fake"
    steps_taken: int = 0
    reference: object | None = None
    fail_at: int | None = None
    quantized: FakeQuantized = field(default_factory=FakeQuantized)

    def __post_init__(self) -> None:
        self.linears = [
            LinearInfo(layer, name, size)
            for layer in range(self.layers)
            for name, size in zip(PROJECTIONS, SIZES, strict=True)
        ]
        self.budget_grid = np.linspace(2, 8, 121, dtype=np.float32)
        sample = self._scores(np.arange(64), np.arange(64) * 7 + 1)
        self.threshold_grid = np.array([self._threshold(sample, bits) for bits in self.budget_grid], dtype=np.float32)

    def encode(self, text: str) -> list[int]:
        if not text.strip():
            raise PromptError("The prompt is empty. Type a few words.")
        ids = [0, *(2 + sum(word.encode(errors="replace")) % 8000 for word in text.split())]
        if len(ids) > self.context:
            raise PromptError(f"The prompt has {len(ids)} tokens; the limit is {self.context}. Shorten it.")
        # Added to, not replaced: several visitors may have encoded before one of them runs.
        self._texts = getattr(self, "_texts", {}) | {
            0: "<bos>",
            **{2 + sum(w.encode(errors="replace")) % 8000: " " + w for w in text.split()},
        }
        return ids

    def generate(
        self,
        prompt_ids: list[int],
        *,
        budget: float,
        policy: str = "router",
        mode: str = "global",
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int = 0,
        cancel: threading.Event | None = None,
    ) -> Iterator[Step]:
        self._budget = budget
        columns = self._columns(np.array(prompt_ids), 0, budget)
        depths = columns.depths
        yield Step("prefill", 0, columns, self.delay, self._measured(depths))
        last = prompt_ids[-1]
        for index in range(max_new_tokens):
            if cancel is not None and cancel.is_set():
                raise Cancelled("Stopped.")
            if self.fail_at == index:
                raise RuntimeError("secret path /root/weights of the fake engine")
            time.sleep(self.delay)
            self.steps_taken += 1
            last = 2 + int(_noise(last, index, seed) * 8000)
            columns = self._columns(np.array([last]), len(prompt_ids) + index, _corrected(budget, index))
            depths = np.concatenate([depths, columns.depths], axis=1)
            yield Step("decode", len(prompt_ids) + index, columns, self.delay, self._measured(depths))

    def analyze(
        self,
        ids: list[int],
        *,
        budget: float,
        policy: str = "router",
        mode: str = "global",
        errors: bool = False,
        reference: bool = False,
        cancel: threading.Event | None = None,
    ) -> Trace:
        columns = self._columns(np.array(ids), 0, budget, errors=errors)
        if reference:
            columns.reference_loss = columns.loss * 0.9
            columns.reference_kl = np.abs(columns.loss) * 0.1
        settings = RunSettings(self.model_name, "analyze", policy, mode, budget, 0, 0.0, 0)
        return self._trace(columns, settings, Timing(self.delay), len(ids))

    def assemble(self, steps: list[Step], settings: RunSettings) -> Trace:
        parts = [step.columns for step in steps]
        joined = {}
        for name in ("token_ids", "token_texts", "top_texts"):
            joined[name] = [item for part in parts for item in getattr(part, name)]
        for name in ("depths", "scores", "residual_max", "residual_top3", "residual_median"):
            joined[name] = np.concatenate([getattr(part, name) for part in parts], axis=1)
        joined["thresholds"] = np.concatenate([part.thresholds for part in parts], axis=1)
        for name in ("top_ids", "top_probabilities", "loss"):
            joined[name] = np.concatenate([getattr(part, name) for part in parts], axis=0)
        timing = Timing(steps[0].seconds, [step.seconds for step in steps[1:]])
        return self._trace(Columns(**joined), settings, timing, len(parts[0].token_ids))

    def _trace(self, columns: Columns, settings: RunSettings, timing: Timing, prompt_tokens: int) -> Trace:
        threshold = np.interp(settings.requested_bits, self.budget_grid, self.threshold_grid)
        return Trace(
            settings=settings,
            linears=self.linears,
            bits_by_depth=BITS_BY_DEPTH,
            thresholds=np.full(len(self.linears), threshold, dtype=np.float32),
            budget_grid=self.budget_grid,
            threshold_grid=self.threshold_grid,
            prompt_tokens=prompt_tokens,
            columns=columns,
            timing=timing,
            machine={"device": "cpu", "path": "reference", "date": "2026-01-01"},
        )

    def _scores(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        linear = np.arange(len(self.linears))[:, None]
        layer = np.array([info.layer for info in self.linears])[:, None]
        base = 2.2 * _noise(ids[None, :], linear) + 1.4 * _noise(ids, 99)[None, :] + 0.6 * _noise(linear, 5)
        base = base - 0.05 * layer + np.where(positions[None, :] == 0, 1.5, 0.0)
        drops = np.array([0.0, 1.1, 2.3])
        return (base[..., None] - drops).astype(np.float32)

    def _threshold(self, scores: np.ndarray, bits: float) -> float:
        if bits <= 2:
            return np.inf
        if bits >= 8:
            return -np.inf
        weights = np.broadcast_to(np.array([i.weights for i in self.linears])[:, None, None], scores.shape)
        order = np.argsort(-scores, axis=None)
        share = np.cumsum(weights.reshape(-1)[order]) / weights.sum()
        return float(scores.reshape(-1)[order][np.searchsorted(share, (bits - 2) / 6)])

    def _measured(self, depths: np.ndarray) -> float:
        return average_bits(depths, self.linears, BITS_BY_DEPTH)

    def _columns(self, ids: np.ndarray, position: int, budget: float, errors: bool = False) -> Columns:
        positions = position + np.arange(len(ids))
        scores = self._scores(ids, positions)
        threshold = np.interp(budget, self.budget_grid, self.threshold_grid)
        depths = (1 + (scores > threshold).sum(axis=-1)).astype(np.uint8)
        rows = np.arange(self.layers + 1)[:, None]
        massive = np.where((positions[None, :] == 0) & (rows >= 2), 800.0, 8.0) * (
            0.8 + 0.4 * _noise(ids[None, :], rows)
        )
        top3 = massive[..., None] * np.array([1.0, 0.7, 0.5])
        tops = [[self._word(int(i) + k) for k in range(5)] for i in ids]
        probabilities = np.array([0.4, 0.2, 0.1, 0.05, 0.02])[None, :] * (0.5 + _noise(ids, 3)[:, None])
        loss = (1.0 + 4 * _noise(ids, 11)).astype(np.float32)
        if position == 0:
            loss[0] = np.nan
        return Columns(
            token_ids=[int(i) for i in ids],
            token_texts=[self._word(int(i)) for i in ids],
            depths=depths,
            scores=scores,
            residual_max=massive.astype(np.float32),
            residual_top3=top3.astype(np.float32),
            residual_median=(1.0 + 0.1 * rows + 0 * massive).astype(np.float32),
            top_ids=np.stack([ids + k for k in range(5)], axis=1).astype(np.int32),
            top_texts=tops,
            top_probabilities=probabilities.astype(np.float32),
            loss=loss,
            errors=(0.4 / 4.0 ** (depths - 1)).astype(np.float32) if errors else None,
            thresholds=np.full((1, len(ids)), threshold, np.float32),
        )

    def _word(self, token: int) -> str:
        return getattr(self, "_texts", {}).get(token) or " " + WORDS[token % len(WORDS)]
