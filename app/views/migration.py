"""Outlier migration: ranks of tokens by sensitivity at each precision, set overlap, and one honest sentence.

`data` reads a report (any object with the fields of `mobiquant_core.migration.MigrationReport`) for the whole
model or for one linear; figures draw it. Overlap is always shown beside what chance alone would give.
"""

from typing import Any, NamedTuple

import numpy as np

from app.views import theme
from app.views.text import label

WHOLE_MODEL = -1
_MOST_LINES = 40


class MigrationData(NamedTuple):
    bits: list[int]
    ranks: np.ndarray
    """int [S, T]: 1 is the token hurt most; 0 for tokens left out."""
    overlap: np.ndarray
    """float [S, S]: share of one outlier set that is in the other."""
    spearman: np.ndarray
    set_size: int
    chance: float
    labels: list[str]


def ranks_of(errors: np.ndarray, first: int) -> np.ndarray:
    """int32 [..., T]: place by error, largest first; 0 for the `first` tokens that are left out."""
    ranks = np.zeros(errors.shape, dtype=np.int32)
    ranks[..., first:] = 1 + np.argsort(np.argsort(-errors[..., first:], axis=-1, kind="stable"), axis=-1)
    return ranks


def data(report: Any, linear: int = WHOLE_MODEL) -> MigrationData:
    """Of the whole model (by rise in loss) or of one linear (by output error)."""
    if linear == WHOLE_MODEL:
        ranks, sets = report.ranks, report.model_level
        overlap, spearman = sets.overlap, sets.spearman
    else:
        ranks = ranks_of(report.errors[linear], int(report.first_skipped))
        overlap, spearman = report.per_linear.overlap[linear], report.per_linear.spearman[linear]
    labels = [label(text) for text in report.token_texts]
    bits = [int(value) for value in report.bits_by_depth]
    return MigrationData(bits, ranks, overlap, spearman, report.set_size, report.chance, labels)


def sentence(info: MigrationData, where: str) -> str:
    """What the numbers say for this text, with the chance level in the same breath."""
    if len(info.bits) < 2:
        return "One precision alone cannot show migration."
    low, high = info.bits[0], info.bits[1]
    kept = round(float(info.overlap[0, 1]) * info.set_size)
    left = info.set_size - kept
    by_chance = info.chance * info.set_size
    verdict = "the set moves almost as much as chance would move it"
    if kept > max(2 * by_chance, by_chance + 1):
        verdict = "the set stays mostly together" if kept > 0.7 * info.set_size else "part of the set stays, part moves"
    return (
        f"{where}: of the {info.set_size} tokens hurt most at {low} bits, {left} are not among the {info.set_size} "
        f"hurt most at {high} bits. Two random sets would share {by_chance:.1f}; these share {kept}: {verdict}."
    )


def leading(info: MigrationData) -> list[int]:
    """Tokens inside the outlier set at some precision, worst first, at most as many as a chart can carry."""
    best = np.where(info.ranks > 0, info.ranks, np.iinfo(np.int32).max).min(axis=0) if info.ranks.size else np.empty(0)
    order = np.argsort(best, kind="stable")
    return [int(token) for token in order if best[token] <= info.set_size][:_MOST_LINES]


def layouts() -> dict[str, dict]:
    bump = theme.layout(
        430,
        margin={"l": 54, "r": 110, "t": 8, "b": 44},
        xaxis=theme.axis("bits per weight", showgrid=True),
        yaxis=theme.axis("rank (1: hurt most)", autorange="reversed"),
    )
    matrix = theme.layout(
        230,
        margin={"l": 44, "r": 8, "t": 6, "b": 40},
        xaxis=theme.axis("bits", showgrid=False, constrain="domain"),
        yaxis=theme.axis("bits", showgrid=False, autorange="reversed", scaleanchor="x", constrain="domain"),
    )
    curve = theme.layout(
        250,
        showlegend=True,
        legend={"orientation": "h", "y": 1.16, "x": 0},
        margin={"l": 54, "r": 12, "t": 26, "b": 44},
        xaxis=theme.axis("layer"),
        yaxis=theme.axis("overlap of outlier sets", range=[0, 1.04]),
    )
    return {"bump": bump, "matrix": matrix, "layerOverlap": curve}


def bump_figure(info: MigrationData) -> dict:
    """Lines of the tokens that are outliers somewhere; crossing lines are migration."""
    lines = []
    for token in leading(info):
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": info.bits,
                "y": info.ranks[:, token].tolist(),
                "line": {"color": "mbq:accent", "width": 1.6},
                "name": f"{token} {info.labels[token]}",
                "hovertemplate": "%{fullData.name}<br>rank %{y} at %{x} bits<extra></extra>",
            }
        )
    base = layouts()["bump"]
    base["xaxis"] |= {"tickvals": info.bits}
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.5, "y1": info.set_size + 0.5}
    base["shapes"] = [band | {"fillcolor": "mbq:grid", "opacity": 0.5, "line": {"width": 0}, "layer": "below"}]
    return {"data": lines, "layout": base}


def overlap_figure(info: MigrationData) -> dict:
    """Overlap of the outlier sets of every two precisions, values printed."""
    values = np.nan_to_num(np.asarray(info.overlap, dtype=np.float64))
    names = [str(value) for value in info.bits]
    cells = {
        "type": "heatmap",
        "z": values.tolist(),
        "zmin": 0,
        "zmax": 1,
        "colorscale": "mbq:bits",
        "showscale": False,
        "texttemplate": "%{z:.2f}",
        "hovertemplate": f"share %{{z:.2f}} (chance {info.chance:.2f})<extra></extra>",
    }
    base = layouts()["matrix"]
    for name in ("xaxis", "yaxis"):
        base[name] |= {"tickvals": list(range(len(names))), "ticktext": names}
    return {"data": [cells], "layout": base}
