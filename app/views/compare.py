"""Two runs of one text, or of one prompt, beside each other: where they differ and what that costs in loss.

`data` compares two traces as far as their tokens are the same, because a cell of one text says nothing about a
cell of another. Losses are nats per token, divergence is KL(full precision || run). It runs no model.
"""

from typing import NamedTuple

import numpy as np

from app.views import allocation, theme
from app.views.text import label, visible
from mobiquant_core.trace import Trace, average_bits, token_bits


class CompareData(NamedTuple):
    names: tuple[str, str]
    measured: tuple[float, float]
    """Average bits of each run over its own tokens."""
    first_difference: int | None
    """Position of the first differing token; None where one text is the beginning of the other."""
    common: int
    """Number of leading tokens that are the same in both."""
    same_text: bool
    difference: np.ndarray
    """float32 [layers, common]: bits of B minus bits of A."""
    token_difference: np.ndarray
    """float32 [common]: the same, weight-averaged over all linears."""
    loss: tuple[np.ndarray, np.ndarray]
    reference_loss: np.ndarray | None
    kl: tuple[np.ndarray | None, np.ndarray | None]
    labels: list[str]


def first_difference(a: list[int], b: list[int]) -> int | None:
    """The first position where both texts have a token and the tokens differ."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)


def name_of(trace: Trace) -> str:
    return f"{trace.settings.policy} {trace.settings.requested_bits:.1f}"


def data(a: Trace, b: Trace, projections: str = "all") -> CompareData:
    at = first_difference(a.columns.token_ids, b.columns.token_ids)
    common = min(a.tokens, b.tokens) if at is None else at
    bits = [allocation.data(trace, projections).bits[:, :common] for trace in (a, b)]
    per_token = [token_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)[:common] for trace in (a, b)]
    measured = [average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth) for trace in (a, b)]
    same_text = common == a.tokens == b.tokens
    return CompareData(
        names=(name_of(a), name_of(b)),
        measured=(measured[0], measured[1]),
        first_difference=at,
        common=common,
        same_text=same_text,
        difference=bits[1] - bits[0],
        token_difference=per_token[1] - per_token[0],
        loss=(a.columns.loss, b.columns.loss),
        reference_loss=a.columns.reference_loss if same_text else None,
        kl=(a.columns.reference_kl, b.columns.reference_kl),
        labels=[label(text) for text in max((a, b), key=lambda trace: trace.tokens).columns.token_texts],
    )


def matched_budget(trace: Trace, bits: float) -> float:
    """The requested budget at which this trace's own scores would have spent `bits`; global thresholds only."""
    weights = np.array([info.weights for info in trace.linears], dtype=np.float64)
    values = np.asarray(trace.bits_by_depth, dtype=np.float64)

    def spent(threshold: float) -> float:
        depths = (trace.columns.scores > threshold).sum(axis=-1)
        return float((values[depths].mean(axis=1) * weights).sum() / weights.sum())

    low, high = 0, len(trace.budget_grid) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if spent(float(trace.threshold_grid[middle])) < bits else (low, middle)
    near = min(range(max(low - 1, 0), low + 1), key=lambda at: abs(spent(float(trace.threshold_grid[at])) - bits))
    return float(trace.budget_grid[near])


def mean(values: np.ndarray | None) -> float | None:
    """Mean of the finite entries; None where there are none."""
    if values is None:
        return None
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else None


def summary(info: CompareData) -> dict:
    """The numbers of the cards; None where a run has none of that kind."""
    return {
        "measured": list(info.measured),
        "loss": [mean(values) for values in info.loss],
        "kl": [mean(values) for values in info.kl],
        "referenceLoss": mean(info.reference_loss),
        "tokens": [len(values) for values in info.loss],
    }


def sentence(info: CompareData, texts: list[str]) -> str:
    """What the comparison says, including when it says little."""
    gap = info.measured[1] - info.measured[0]
    spent = f"A spent {info.measured[0]:.2f} bits, B {info.measured[1]:.2f}"
    if not info.same_text:
        if info.first_difference is None:
            return f"{spent}. The texts have different lengths; only the first {info.common} tokens are compared."
        return (
            f"{spent}. The texts part at token {info.first_difference}: from there on the two runs read different "
            "words, so only the tokens before it are compared cell by cell."
        )
    means = summary(info)
    if None in means["kl"] or not info.common:
        return f"{spent} on the same {info.common} tokens."
    a, b = means["kl"]
    nearer, factor = ("B", a / b) if b < a else ("A", b / a if a else 1.0)
    verdict = "both are equally near to full precision"
    if factor >= 1.02:
        verdict = f"{nearer} is nearer to full precision: its divergence is {factor:.2f} times smaller"
    equal = "at equal average bits"
    if abs(gap) >= 0.05:
        equal = f"while B spent {abs(gap):.2f} bits {'more' if gap > 0 else 'less'}"
    return f"{spent} on the same {info.common} tokens; {verdict}, {equal}. {_largest(info, texts)}"


def _largest(info: CompareData, texts: list[str]) -> str:
    at = int(np.argmax(np.abs(info.token_difference)))
    change = float(info.token_difference[at])
    if abs(change) < 0.05:
        return "No token was treated differently."
    word = "more" if change > 0 else "fewer"
    return f"The largest change: “{visible(texts[at])}” (token {at}) got {abs(change):.1f} bits {word} in B."


def layouts() -> dict[str, dict]:
    """Layouts of the maps, shared by A, B and the difference so that their columns stand below each other."""
    pane = theme.layout(
        250,
        margin={"l": 46, "r": 10, "t": 6, "b": 36},
        xaxis=theme.axis("", showgrid=False, ticks="outside", ticklen=3),
        yaxis=theme.axis("layer", showgrid=False),
    )
    return {"compareMap": pane, "compareLines": _lines_layout("nats")}


def _lines_layout(unit: str) -> dict:
    return theme.layout(
        270,
        showlegend=True,
        legend={"orientation": "h", "y": 1.16, "x": 0},
        margin={"l": 54, "r": 12, "t": 28, "b": 36},
        xaxis=theme.axis("", showgrid=False, ticks="outside", ticklen=3),
        yaxis=theme.axis(unit, rangemode="tozero"),
    )


def difference_figure(info: CompareData) -> dict:
    """B minus A, diverging and symmetric about a neutral centre."""
    reach = float(np.nanmax(np.abs(info.difference))) if info.difference.size else 0.0
    reach = reach or 1.0
    cells = {
        "type": "heatmap",
        "z": [[None if np.isnan(value) else float(value) for value in row] for row in info.difference],
        "zmin": -reach,
        "zmax": reach,
        "colorscale": "mbq:diverging",
        "colorbar": {"title": {"text": "bits, B − A"}, "thickness": 10},
        "hovertemplate": "layer %{y}, token %{x}<br>B − A: %{z:.2f} bits<extra></extra>",
    }
    base = layouts()["compareMap"]
    base["xaxis"] |= _ticks(info.labels[: info.common])
    return {"data": [cells], "layout": base}


def loss_figure(info: CompareData) -> dict:
    """Loss of every token in both runs, and in full precision where both read the same text."""
    lines = [
        _line("A · " + info.names[0], info.loss[0], "mbq:second", "solid", "circle"),
        _line("B · " + info.names[1], info.loss[1], "mbq:accent", "solid", "square"),
    ]
    if info.reference_loss is not None:
        lines.append(_line("full precision", info.reference_loss, "mbq:ink", "dot", "diamond"))
    return _lines(info, lines, "loss of the token, nats")


def kl_figure(info: CompareData) -> dict:
    """Divergence of the prediction made from each token."""
    looks = (("A · ", "mbq:second", "circle"), ("B · ", "mbq:accent", "square"))
    lines = [
        _line(prefix + name, values, colour, "solid", symbol)
        for (prefix, colour, symbol), name, values in zip(looks, info.names, info.kl, strict=True)
        if values is not None
    ]
    return _lines(info, lines, "KL to full precision, nats")


def _line(name: str, values: np.ndarray, colour: str, dash: str, symbol: str) -> dict:
    shown = [None if not np.isfinite(value) else round(float(value), 5) for value in values]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "y": shown,
        "line": {"color": colour, "dash": dash, "width": 1.7},
        "marker": {"size": 5, "symbol": symbol},
        "hovertemplate": "token %{x}: %{y:.3f} nats<extra>%{fullData.name}</extra>",
    }


def _lines(info: CompareData, lines: list[dict], unit: str) -> dict:
    base = _lines_layout(unit)
    base["xaxis"] |= _ticks(info.labels)
    if info.first_difference is not None:
        at = info.first_difference - 0.5
        base["shapes"] = [
            {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1}
            | {"line": {"color": "mbq:ink", "dash": "dash", "width": 1.2}}
        ]
        base["annotations"] = [
            {"x": at, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top", "showarrow": False}
            | {"text": " texts part here", "font": {"size": 11, "color": "mbq:ink"}}
        ]
    return {"data": lines, "layout": base}


_MOST_WORDS = 70


def _ticks(labels: list[str]) -> dict:
    """Words while they fit a wide page, positions beyond that."""
    if len(labels) > _MOST_WORDS:
        return {"title": {"text": "token position", "font": {"size": 12}}}
    return {"tickvals": list(range(len(labels))), "ticktext": labels, "tickangle": -60}
