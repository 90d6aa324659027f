"""A small made-up trace for tests of whatever reads traces."""

import numpy as np

from mobiquant_core.trace import Columns, LinearInfo, RunSettings, Timing, Trace

TEXTS = ["<|bos|>", "The", " caf", "⟨C3⟩", "<b>x</b>", "\ud83d\n"]


def sample_trace(tokens: int = 6, layers: int = 2, seed: int = 0) -> Trace:
    """Random but consistent arrays: shapes, ranges and orders are those of a real run."""
    generator = np.random.default_rng(seed)
    linears = [LinearInfo(layer, name, 256 * 256) for layer in range(layers) for name in ("q_proj", "down_proj")]
    scores = -np.sort(-generator.normal(size=(len(linears), tokens, 3)), axis=-1).astype(np.float32)
    columns = Columns(
        token_ids=list(range(tokens)),
        token_texts=[TEXTS[index % len(TEXTS)] for index in range(tokens)],
        depths=(1 + (scores > 0.1).sum(axis=-1)).astype(np.uint8),
        scores=scores,
        residual_max=generator.uniform(1, 900, (layers + 1, tokens)).astype(np.float32),
        residual_top3=generator.uniform(1, 900, (layers + 1, tokens, 3)).astype(np.float32),
        residual_median=generator.uniform(0, 2, (layers + 1, tokens)).astype(np.float32),
        top_ids=generator.integers(0, 8192, (tokens, 5)).astype(np.int32),
        top_texts=[list("abcde") for _ in range(tokens)],
        top_probabilities=generator.uniform(0, 1, (tokens, 5)).astype(np.float32),
        loss=np.r_[np.nan, generator.uniform(0, 9, tokens - 1)].astype(np.float32),
        thresholds=np.full((1, tokens), 0.1, np.float32),
    )
    return Trace(
        settings=RunSettings("demo", "generate", "router", "global", 3.5, 0, 0.8, tokens - 2),
        linears=linears,
        bits_by_depth=(2, 4, 6, 8),
        thresholds=np.full(len(linears), 0.1, np.float32),
        budget_grid=np.linspace(2, 8, 121, dtype=np.float32),
        threshold_grid=np.r_[np.inf, np.linspace(3, -3, 119), -np.inf].astype(np.float32),
        prompt_tokens=2,
        columns=columns,
        timing=Timing(0.1, [0.02] * (tokens - 2)),
        machine={"device": "cpu", "path": "reference"},
        notes=["made up"],
    )
