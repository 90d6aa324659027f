"""How a policy's scores are spread, slice by slice, and which of them lie above the threshold.

A decision is one token at one linear; each has one score per residual slice. Slice 1 is always read and has none.
"""

from typing import NamedTuple

import numpy as np

from app.views import theme
from mobiquant_core.trace import Trace

_BINS = 56
_TAIL = 0.5


class ScoreData(NamedTuple):
    centres: np.ndarray
    """float [bins]: middle of each bin."""
    shares: np.ndarray
    """float [S - 1, bins]: per cent of the slice's decisions in each bin; tails are counted in the outer bins."""
    on: np.ndarray
    """float [S - 1]: share of decisions at which the slice is read."""
    thresholds: tuple[float, float, float]
    """Lowest, median and highest over linears and tokens: the budget controller moves them while decoding."""
    decisions: int


def data(trace: Trace) -> ScoreData:
    scores = np.asarray(trace.columns.scores, dtype=np.float64)
    extra = scores.shape[-1]
    flat = scores.reshape(-1, extra)
    finite = flat[np.isfinite(flat)]
    low, high = np.percentile(finite, [_TAIL, 100 - _TAIL]) if finite.size else (0.0, 1.0)
    used = trace.token_thresholds()
    limits = used[np.isfinite(used)]
    if limits.size and finite.size:
        low, high = min(low, float(np.median(limits))), max(high, float(np.median(limits)))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(np.clip(flat[:, e], low, high), edges)[0] for e in range(extra)]
    total = max(len(flat), 1)
    depths = np.asarray(trace.columns.depths)
    on = np.array([np.mean(depths > e + 1) if depths.size else 0.0 for e in range(extra)])
    low_t, middle, high_t = (float(f(used)) for f in (np.min, np.median, np.max))
    shares = 100 * np.array(counts, dtype=np.float64).reshape(extra, _BINS) / total
    return ScoreData((edges[:-1] + edges[1:]) / 2, shares, on, (low_t, middle, high_t), len(flat))


def sentence(info: ScoreData) -> str:
    parts = [f"slice {index + 2} at {100 * share:.0f} %" for index, share in enumerate(info.on)]
    if not parts:
        return "This model has one slice only: there is nothing to decide."
    return f"Of {info.decisions:,} decisions (token × linear) the threshold switches on {', '.join(parts)}."


def figure(info: ScoreData) -> dict:
    """One filled outline per slice, a line at the threshold."""
    lines = []
    for index, row in enumerate(info.shares):
        colour = f"mbq:bits.{min(index + 1, 3)}"
        lines.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"slice {index + 2}: on for {100 * info.on[index]:.0f} %",
                "x": [round(float(value), 5) for value in info.centres],
                "y": [round(float(value), 4) for value in row],
                "line": {"shape": "hvh", "width": 2, "color": colour},
                "fill": "tozeroy",
                "opacity": 0.9,
                "hovertemplate": "score %{x:.2f}: %{y:.1f} % of decisions<extra>%{fullData.name}</extra>",
            }
        )
    base = theme.layout(
        300,
        showlegend=True,
        legend={"orientation": "h", "y": 1.14, "x": 0},
        margin={"l": 54, "r": 14, "t": 30, "b": 46},
        xaxis=theme.axis("score (log of loss reduction per weight)"),
        yaxis=theme.axis("% of decisions", rangemode="tozero"),
    )
    low, middle, high = info.thresholds
    if np.isfinite(middle):
        base["shapes"], base["annotations"] = _threshold(low, middle, high)
    return {"data": lines, "layout": base}


def _threshold(low: float, middle: float, high: float) -> tuple[list[dict], list[dict]]:
    line = {"type": "line", "xref": "x", "yref": "paper", "x0": middle, "x1": middle, "y0": 0, "y1": 1}
    shapes = [line | {"line": {"color": "mbq:second", "width": 2.2}}]
    text = "threshold"
    if high > low and np.isfinite(low) and np.isfinite(high):
        band = {"type": "rect", "xref": "x", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1, "layer": "below"}
        shapes.append(band | {"fillcolor": "mbq:grid", "opacity": 0.6, "line": {"width": 0}})
        text = "thresholds: median, and band of all that were used"
    mark = {"x": middle, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "showarrow": False}
    return shapes, [mark | {"text": " " + text, "font": {"size": 12, "color": "mbq:second"}}]
