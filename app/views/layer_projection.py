"""Average bits of every layer and projection over the tokens of a run: one cell per quantized linear."""

from typing import NamedTuple

import numpy as np

from app.views import theme
from app.views.text import escape_text
from mobiquant_core.trace import Trace, bits_of

_MOST_NUMBERS = 20
"""Rows beyond which digits in the cells would touch."""


class LayerProjectionData(NamedTuple):
    bits: np.ndarray
    """float [layers, projections]; NaN where a layer lacks the projection."""
    projections: list[str]


def data(trace: Trace) -> LayerProjectionData:
    names = list(dict.fromkeys(info.projection for info in trace.linears))
    layers = 1 + max((info.layer for info in trace.linears), default=-1)
    grid = np.full((layers, len(names)), np.nan)
    if trace.tokens:
        mean = bits_of(trace.columns.depths, trace.bits_by_depth).mean(axis=1)
        for info, value in zip(trace.linears, mean, strict=True):
            grid[info.layer, names.index(info.projection)] = value
    return LayerProjectionData(grid, names)


def sentence(info: LayerProjectionData) -> str:
    """The extremes, named."""
    if not info.bits.size or np.isnan(info.bits).all():
        return "No token has been processed yet."
    most = np.unravel_index(np.nanargmax(info.bits), info.bits.shape)
    least = np.unravel_index(np.nanargmin(info.bits), info.bits.shape)
    if info.bits[most] - info.bits[least] < 0.05:
        return "Every linear got the same bits."
    words = [f"{info.projections[at[1]]} of layer {at[0]} ({info.bits[at]:.1f} bits)" for at in (most, least)]
    return f"Most bits: {words[0]}. Fewest: {words[1]}."


def figure(info: LayerProjectionData) -> dict:
    layers = len(info.bits)
    cells = {
        "type": "heatmap",
        "z": [[None if np.isnan(value) else round(float(value), 3) for value in row] for row in info.bits],
        "x": [escape_text(name.removesuffix("_proj")) for name in info.projections],
        "zmin": 2,
        "zmax": 8,
        "colorscale": "mbq:bits",
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "bits", "side": "right"}, "tickvals": [2, 4, 6, 8], "thickness": 10},
        "hovertemplate": "layer %{y}, %{x}: %{z:.2f} bits<extra></extra>",
    }
    if layers <= _MOST_NUMBERS:
        cells["texttemplate"] = "%{z:.1f}"
    base = theme.layout(
        int(min(max(90 + 25 * layers, 220), 620)),
        margin={"l": 46, "r": 8, "t": 8, "b": 40},
        xaxis=theme.axis("", showgrid=False, type="category"),
        yaxis=theme.axis("layer", showgrid=False, dtick=max(1, layers // 12)),
    )
    return {"data": [cells], "layout": base}
