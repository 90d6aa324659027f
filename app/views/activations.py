"""Activation outliers: the largest |h| of the residual stream, token by layer, and its top three per layer.

`map_data`/`curve_data` reduce a trace, `map_figure`/`curve_figure` draw. Magnitudes of *h*, the residual stream
before layer 0 and after each layer; both axes of magnitude are logarithmic.
"""

from typing import NamedTuple

import numpy as np

from app.views import theme
from app.views.text import label
from mobiquant_core.trace import Trace


class MagnitudeData(NamedTuple):
    log10: np.ndarray
    """float [layers + 1, T]; NaN where |h| is 0."""
    labels: list[str]


class CurveData(NamedTuple):
    top3: np.ndarray
    """float [layers + 1, 3]: the three largest |h| over tokens and channels."""
    median: np.ndarray
    """float [layers + 1]: median over tokens of the median over channels."""


def map_data(trace: Trace) -> MagnitudeData:
    largest = np.asarray(trace.columns.residual_max, dtype=np.float64)
    positive = np.where(largest > 0, largest, np.nan)
    return MagnitudeData(np.log10(positive), [label(text) for text in trace.columns.token_texts])


def curve_data(trace: Trace) -> CurveData:
    top3 = np.asarray(trace.columns.residual_top3, dtype=np.float64)
    flat = np.sort(top3.reshape(top3.shape[0], -1), axis=1)[:, ::-1][:, :3]
    median = np.asarray(trace.columns.residual_median, dtype=np.float64)
    return CurveData(flat, np.median(median, axis=1) if median.size else np.full(len(median), np.nan))


def layouts() -> dict[str, dict]:
    """The two static layouts, for the page and for files."""
    magnitude = theme.layout(
        380,
        margin={"l": 52, "r": 70, "t": 6, "b": 64},
        xaxis=theme.axis("", showgrid=False, ticks="outside", ticklen=3),
        yaxis=theme.axis("after layer", showgrid=False),
    )
    curves = theme.layout(
        340,
        showlegend=True,
        legend={"orientation": "h", "y": 1.12, "x": 0},
        margin={"l": 58, "r": 12, "t": 30, "b": 44},
        xaxis=theme.axis("residual stream after layer (emb.: before layer 0)"),
        yaxis=theme.axis("|h|", type="log", exponentformat="power", dtick=1),
    )
    channels = theme.layout(
        380,
        margin={"l": 58, "r": 12, "t": 6, "b": 64},
        xaxis=theme.axis("", showgrid=False, ticks="outside", ticklen=3),
        yaxis=theme.axis("channel, by number", showgrid=False),
    )
    surface = theme.layout(460, margin={"l": 0, "r": 0, "t": 0, "b": 0})
    spatial = {"color": "mbq:muted", "gridcolor": "mbq:grid", "showbackground": False}
    surface["scene"] = {
        "xaxis": spatial | {"title": {"text": "token position"}},
        "yaxis": spatial | {"title": {"text": "channel"}},
        "zaxis": spatial | {"title": {"text": "|h|"}, "type": "log", "dtick": 1},
        "aspectratio": {"x": 1.6, "y": 1.1, "z": 0.7},
        "camera": {"eye": {"x": -1.35, "y": -1.7, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.15}},
    }
    return {"magnitude": magnitude, "curves": curves, "channels": channels, "surface": surface}


def map_figure(info: MagnitudeData) -> dict:
    cells = {
        "type": "heatmap",
        "z": [[None if np.isnan(value) else float(value) for value in row] for row in info.log10],
        "colorscale": "mbq:heat",
        "colorbar": {"title": {"text": "max |h|"}, "thickness": 10},
        "hovertemplate": "after layer %{y}, token %{x}<br>log10 max |h| %{z:.2f}<extra></extra>",
    }
    base = layouts()["magnitude"]
    base["xaxis"] |= {"tickvals": list(range(len(info.labels))), "ticktext": info.labels, "tickangle": -60}
    return {"data": [cells], "layout": base}


def curve_figure(info: CurveData) -> dict:
    names = ("largest", "second", "third")
    lines = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "y": info.top3[:, index].tolist()}
        for index, name in enumerate(names[: info.top3.shape[1] if info.top3.size else 0])
    ]
    lines.append(
        {"type": "scatter", "mode": "lines", "name": "median", "y": info.median.tolist(), "line": {"dash": "dot"}}
    )
    return {"data": lines, "layout": layouts()["curves"]}
