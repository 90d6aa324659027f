"""Does a policy choose as the oracle would? Equal depths and rank correlation on the same text.

The oracle sees the true error reduction of every slice for this very token; agreement is shown beside what two
policies with the same spending but no common knowledge would reach.
"""

from typing import NamedTuple

import numpy as np

from app.views import theme
from mobiquant_core.trace import Trace, token_bits


class AgreementData(NamedTuple):
    equal: float
    """Share of decisions with equal depth, weighted by the linear's size."""
    chance: float
    """The same if depths were shuffled over tokens inside every linear."""
    spearman_scores: float
    """Median over linears of the rank correlation, over tokens, of slice 2's scores; NaN if it cannot be told."""
    spearman_tokens: float
    """Rank correlation of the tokens' average bits."""
    by_layer: np.ndarray
    """float [layers]: share of equal depth."""
    chance_by_layer: np.ndarray
    confusion: np.ndarray
    """float [S, S]: share of decisions with policy depth (row) and oracle depth (column)."""
    bits: tuple[int, ...]
    policy: str
    tokens: int


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation with ties averaged; NaN where one side is constant or too short."""
    if len(a) < 3:
        return float("nan")
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    deviations = [rank - rank.mean() for rank in ranks]
    scale = np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum())
    return float((deviations[0] * deviations[1]).sum() / scale) if scale > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    return (upper - (counts - 1) / 2)[inverse]


def data(trace: Trace, oracle: Trace) -> AgreementData:
    """Both traces must be of the same tokens."""
    mine, best = trace.columns.depths, oracle.columns.depths
    if trace.columns.token_ids != oracle.columns.token_ids:
        raise ValueError("agreement needs two runs of the same tokens")
    depths = len(trace.bits_by_depth)
    weights = np.array([info.weights for info in trace.linears], dtype=np.float64)
    layers = np.array([info.layer for info in trace.linears])
    equal = (mine == best).mean(axis=1)
    shares = [np.stack([(d == k + 1).mean(axis=1) for k in range(depths)], axis=1) for d in (mine, best)]
    chance = (shares[0] * shares[1]).sum(axis=1)
    confusion = np.array([[((mine == i + 1) & (best == j + 1)).mean() for j in range(depths)] for i in range(depths)])
    scores = [columns.scores[:, 1:, 0] for columns in (trace.columns, oracle.columns)]
    per_linear = np.array([spearman(a, b) for a, b in zip(*scores, strict=True)])
    known = per_linear[np.isfinite(per_linear)]
    tokens = [token_bits(each.columns.depths, each.linears, each.bits_by_depth)[1:] for each in (trace, oracle)]
    layer_weight = np.bincount(layers, weights)
    return AgreementData(
        equal=float((equal * weights).sum() / weights.sum()),
        chance=float((chance * weights).sum() / weights.sum()),
        spearman_scores=float(np.median(known)) if known.size else float("nan"),
        spearman_tokens=spearman(*tokens),
        by_layer=np.bincount(layers, equal * weights) / layer_weight,
        chance_by_layer=np.bincount(layers, chance * weights) / layer_weight,
        confusion=confusion,
        bits=tuple(trace.bits_by_depth),
        policy=trace.settings.policy,
        tokens=trace.tokens,
    )


def sentence(info: AgreementData) -> str:
    said = (
        f"Over {info.tokens} tokens the {info.policy} policy chose the oracle's depth in {100 * info.equal:.0f} % of "
        f"the decisions; shuffling its choices over tokens would give {100 * info.chance:.0f} %."
    )
    if not np.isfinite(info.spearman_scores):
        return said + " Its scores do not look at tokens, so they have no rank correlation."
    return f"{said} Median rank correlation of slice 2's scores, linear by linear: {info.spearman_scores:.2f}."


def layer_figure(info: AgreementData) -> dict:
    layers = list(range(len(info.by_layer)))
    bars = {
        "type": "bar",
        "name": "equal depth",
        "x": layers,
        "y": [round(100 * float(value), 2) for value in info.by_layer],
        "marker": {"color": "mbq:accent"},
        "hovertemplate": "layer %{x}: %{y:.0f} %<extra>equal depth</extra>",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "shuffled over tokens",
        "x": layers,
        "y": [round(100 * float(value), 2) for value in info.chance_by_layer],
        "marker": {"symbol": "line-ew-open", "size": 18, "color": "mbq:second"}
        | {"line": {"width": 2.5, "color": "mbq:second"}},
        "hovertemplate": "layer %{x}: %{y:.0f} %<extra>shuffled</extra>",
    }
    base = theme.layout(
        270,
        showlegend=True,
        legend={"orientation": "h", "y": 1.16, "x": 0},
        margin={"l": 52, "r": 8, "t": 28, "b": 44},
        xaxis=theme.axis("layer", dtick=max(1, len(layers) // 12), showgrid=False),
        yaxis=theme.axis("% of decisions", range=[0, 100]),
    )
    return {"data": [bars, marks], "layout": base}


def confusion_figure(info: AgreementData) -> dict:
    names = [f"{bits} bits" for bits in info.bits]
    cells = {
        "type": "heatmap",
        "z": [[round(100 * float(value), 2) for value in row] for row in info.confusion],
        "x": names,
        "y": names,
        "zmin": 0,
        "zmax": max(100 * float(info.confusion.max()), 1.0),
        "colorscale": "mbq:bits",
        "showscale": False,
        "texttemplate": "%{z:.1f} %",
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "this policy %{y}, oracle %{x}: %{z:.1f} % of decisions<extra></extra>",
    }
    base = theme.layout(
        270,
        margin={"l": 64, "r": 8, "t": 8, "b": 44},
        xaxis=theme.axis("the oracle's depth", showgrid=False, type="category"),
        yaxis=theme.axis("this policy's depth", showgrid=False, type="category", autorange="reversed"),
    )
    return {"data": [cells], "layout": base}
