"""Layer x token map of allocated bits with its two marginals: data, then figure.

`data` aggregates a trace over chosen projections; `figure` draws it. The page streams the same picture from
`static/map.js` with the layout made here.
"""

from typing import NamedTuple

import numpy as np

from app.views import theme
from app.views.text import label
from mobiquant_core.trace import Trace, bits_of

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GROUPS = {"all": (), "attention": ATTENTION, "mlp": ("gate_proj", "up_proj", "down_proj")}


class AllocationData(NamedTuple):
    bits: np.ndarray
    """float32 [layers, T]: weight-averaged bits over the chosen projections."""
    per_token: np.ndarray
    per_layer: np.ndarray
    labels: list[str]
    projections: str


def chosen(trace: Trace, projections: str) -> np.ndarray:
    """bool [linears]: members of a group (`all`, `attention`, `mlp`) or of one projection."""
    wanted = GROUPS.get(projections, (projections,))
    return np.array([not wanted or info.projection in wanted for info in trace.linears], dtype=bool)


def data(trace: Trace, projections: str = "all") -> AllocationData:
    """Empty arrays where nothing matches."""
    mask = chosen(trace, projections)
    weights = np.array([info.weights for info in trace.linears], dtype=np.float64) * mask
    layers = np.array([info.layer for info in trace.linears], dtype=np.int64)
    count = int(layers.max()) + 1 if len(layers) else 0
    bits = bits_of(trace.columns.depths, trace.bits_by_depth).astype(np.float64)
    total = np.zeros((count, trace.tokens))
    np.add.at(total, layers, bits * weights[:, None])
    share = np.bincount(layers, weights=weights, minlength=count)
    present = share > 0
    grid = np.divide(total, share[:, None], out=np.full_like(total, np.nan), where=present[:, None])
    all_weight = max(float(share.sum()), 1.0)
    per_token = total.sum(axis=0) / all_weight
    per_layer = grid.mean(axis=1) if trace.tokens else np.full(count, np.nan)
    labels = [label(text) for text in trace.columns.token_texts]
    return AllocationData(grid.astype(np.float32), per_token, per_layer, labels, projections)


def layout(layers: int) -> dict:
    """Three panes: map, mean per token above, mean per layer at the right."""
    height = int(min(max(170 + 22 * layers, 320), 640))
    return theme.layout(
        height,
        margin={"l": 52, "r": 10, "t": 6, "b": 46},
        bargap=0.12,
        xaxis=theme.axis("", domain=[0, 0.87], showgrid=False, ticks="outside", ticklen=3),
        yaxis=theme.axis("layer", domain=[0, 0.8], showgrid=False, dtick=max(1, layers // 12)),
        xaxis2=theme.axis("mean bits", domain=[0.89, 1], range=[0, 8], dtick=4, anchor="y"),
        yaxis2=theme.axis("mean", domain=[0.84, 1], range=[0, 8], dtick=4, anchor="x"),
    )


def figure(info: AllocationData) -> dict:
    """The static picture; an empty trace gives empty panes."""
    layers, tokens = info.bits.shape
    shared = {"colorscale": "mbq:bits", "cmin": 2, "cmax": 8}
    cells = {
        "type": "heatmap",
        "z": info.bits.tolist(),
        "zmin": 2,
        "zmax": 8,
        "colorscale": "mbq:bits",
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "bits"}, "tickvals": [2, 4, 6, 8], "thickness": 10},
        "hovertemplate": "layer %{y}, token %{x}<br>%{z:.2f} bits<extra></extra>",
    }
    top = {
        "type": "bar",
        "y": info.per_token.tolist(),
        "yaxis": "y2",
        "marker": {"color": info.per_token.tolist(), **shared},
    }
    side = {
        "type": "bar",
        "orientation": "h",
        "x": info.per_layer.tolist(),
        "y": list(range(layers)),
        "xaxis": "x2",
        "marker": {"color": info.per_layer.tolist(), **shared},
    }
    base = layout(layers)
    base["xaxis"] |= {"tickvals": list(range(tokens)), "ticktext": info.labels, "tickangle": -60}
    return {"data": [cells, top, side], "layout": base}
