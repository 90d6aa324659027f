"""Hand-made traces, small enough to check by head."""

import numpy as np

from mobiquant_core.trace import Columns, LinearInfo, RunSettings, Timing, Trace


def tiny_trace(depths: list[list[int]], texts: list[str] | None = None) -> Trace:
    """Two layers of q_proj (1 weight) and up_proj (3 weights); depths is [4][T]."""
    table = np.array(depths, dtype=np.uint8).reshape(4, -1)
    tokens = table.shape[1]
    rows = np.arange(3, dtype=np.float32)[:, None] + np.zeros(tokens, np.float32)
    columns = Columns(
        token_ids=list(range(tokens)),
        token_texts=texts or [f" t{i}" for i in range(tokens)],
        depths=table,
        scores=np.zeros((4, tokens, 3), np.float32),
        residual_max=10.0**rows,
        residual_top3=np.stack([10.0**rows, 5.0**rows, 2.0**rows], axis=-1),
        residual_median=np.ones((3, tokens), np.float32),
        top_ids=np.zeros((tokens, 5), np.int32),
        top_texts=[["a", "b", "c", "d", "e"]] * tokens,
        top_probabilities=np.zeros((tokens, 5), np.float32),
        loss=np.ones(tokens, np.float32),
    )
    linears = [LinearInfo(layer, name, size) for layer in (0, 1) for name, size in (("q_proj", 1), ("up_proj", 3))]
    settings = RunSettings("tiny", "analyze", "router", "global", 4.0, 0, 0.0, 0)
    grid = np.linspace(2, 8, 121, dtype=np.float32)
    return Trace(settings, linears, (2, 4, 6, 8), np.zeros(4), grid, -grid, tokens, columns, Timing(), {})
