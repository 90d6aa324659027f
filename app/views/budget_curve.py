"""Quality against bits: perplexity over that of full precision, for every policy and baseline of a stored study.

`read_results` takes what `benchmarks/calibration_study.py` or `mobiquant evaluate --json` wrote and keeps what can
be drawn; where the file is missing or odd there is simply no curve, and the page says so.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from app.views import theme
from app.views.text import escape_text

SIZE_LIMIT = 5_000_000
HIGHEST = 6.0
POLICY_ORDER = ("router", "layer", "uniform", "norm", "random", "oracle", "fixed depth")
_LOOKS = {
    "router": ("mbq:second", "solid", "circle"),
    "layer": ("mbq:accent", "solid", "square"),
    "uniform": ("mbq:ink", "dash", "diamond"),
    "norm": ("mbq:muted", "dash", "triangle-up"),
    "random": ("mbq:line", "dot", "x"),
    "oracle": ("mbq:bits.2", "dashdot", "star"),
    "fixed depth": ("mbq:ink", "solid", "circle-open"),
}
_RIVALS = {"rtn": "round to nearest", "gptq": "GPTQ", "bit-specific": "calibrated for one width"}
_RIVAL_SYMBOLS = {"rtn": "cross-open", "gptq": "hexagon-open", "bit-specific": "star-open"}


class Point(NamedTuple):
    bits: float
    ratio: float


class CurveData(NamedTuple):
    policies: dict[str, list[Point]]
    rivals: dict[str, list[Point]]
    """Methods that make one model for one width."""
    text: str
    tokens: int
    device: str
    command: str


EMPTY = CurveData({}, {}, "", 0, "", "")


def read_results(path: Path) -> CurveData:
    """Nothing is trusted: a file that cannot be read, or rows without finite numbers, leave the curve empty."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            return EMPTY
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return EMPTY
    return data(body) if isinstance(body, dict) else EMPTY


def data(body: dict[str, Any]) -> CurveData:
    """A study's JSON, or the `rows` of one evaluation."""
    rows, text = _rows(body)
    policies: dict[str, list[Point]] = {}
    for row in rows:
        point = _point(row.get("measured_bits"), row.get("ratio"))
        name = row.get("policy")
        if point and isinstance(name, str) and name in POLICY_ORDER:
            policies.setdefault(name, []).append(point)
    ordered = {name: sorted(policies[name]) for name in POLICY_ORDER if name in policies}
    tokens = max((row["tokens"] for row in rows if isinstance(row.get("tokens"), int)), default=0)
    device = str(body.get("device", "") or "")[:100]
    return CurveData(ordered, _rivals(body), text, tokens, device, _command(body))


def _rows(body: dict[str, Any]) -> tuple[list[dict], str]:
    """The longest table of the first text measured for an elastic model, and what that text is called."""
    tables = [(body.get("rows"), str(body.get("text", "the evaluation text")))]
    elastic = body.get("elastic")
    for variant in elastic.values() if isinstance(elastic, dict) else ():
        if isinstance(variant, dict):
            tables.append((variant.get("wikitext2"), "WikiText-2 test"))
    usable = [(table, name) for table, name in tables if isinstance(table, list)]
    if not usable:
        return [], ""
    table, name = max(usable, key=lambda entry: len(entry[0]))
    return [row for row in table if isinstance(row, dict)], name


def _rivals(body: dict[str, Any]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    plain = body.get("plain_baselines")
    for row in plain if isinstance(plain, list) else ():
        point = _point(row.get("bits"), row.get("ratio")) if isinstance(row, dict) else None
        if point and row.get("method") in _RIVALS:
            found.setdefault(row["method"], []).append(point)
    specific = body.get("bit_specific_ratio")
    for bits, ratio in specific.items() if isinstance(specific, dict) else ():
        point = _point(float(bits) if str(bits).isdigit() else None, ratio)
        if point:
            found.setdefault("bit-specific", []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def _point(bits: Any, ratio: Any) -> Point | None:
    for value in (bits, ratio):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            return None
    return Point(float(bits), float(ratio)) if bits <= 8.5 else None


def _command(body: dict[str, Any]) -> str:
    command = body.get("command")
    if isinstance(command, str):
        return command[:300]
    return "python -m benchmarks.calibration_study" if "elastic" in body else ""


def sentence(info: CurveData) -> str:
    """Router against layer at the budgets where both were measured; says so where the router does not win."""
    if not info.policies:
        return "No stored measurement was found."
    router, layer = info.policies.get("router", []), info.policies.get("layer", [])
    pairs = [(r, at) for r in router if 2 < r.bits <= 4.2 and (at := interpolate(layer, r.bits)) is not None]
    if not pairs:
        return f"Measured on {info.text}, {info.tokens:,} tokens."
    point, other = max(pairs, key=lambda pair: pair[1] / pair[0].ratio)
    if other <= point.ratio:
        return f"On {info.text} the router does not beat the layer policy at any measured budget up to 4 bits."
    return (
        f"On {info.text} ({info.tokens:,} tokens), at {point.bits:.2f} measured bits the router's perplexity is "
        f"{(point.ratio - 1) * 100:.1f} % above full precision, the layer policy's {(other - 1) * 100:.1f} %."
    )


def off_chart(info: CurveData) -> str:
    """The rivals that lie above the axis, named with their figures: what is not drawn is said."""
    top = 10 ** figure(info)["layout"]["yaxis"]["range"][1]
    beyond = [
        f"{_RIVALS[method]} at {point.bits:g} bits {point.ratio:.4g}×"
        for method, points in info.rivals.items()
        for point in points
        if point.ratio > top
    ]
    return f"Above the chart: {', '.join(beyond)}." if beyond else ""


def interpolate(points: list[Point], bits: float) -> float | None:
    """Ratio at `bits`, linear in log ratio between neighbours; None outside the measured range."""
    for left, right in pairwise(points):
        if left.bits <= bits <= right.bits and right.bits > left.bits:
            share = (bits - left.bits) / (right.bits - left.bits)
            return math.exp((1 - share) * math.log(left.ratio) + share * math.log(right.ratio))
    return None


def figure(info: CurveData) -> dict:
    """Both axes start where full precision is reached; ratios are drawn on a logarithmic axis."""
    lines = [_line(name, points) for name, points in info.policies.items()]
    for method, points in info.rivals.items():
        lines.append(
            _scatter(_RIVALS[method], points, "markers")
            | {"marker": {"size": 11, "symbol": _RIVAL_SYMBOLS[method], "color": "mbq:ink", "line": {"width": 2}}}
        )
    ratios = [point.ratio for points in info.policies.values() for point in points]
    base = theme.layout(
        420,
        showlegend=True,
        legend={"x": 1, "xanchor": "right", "y": 1, "bgcolor": "mbq:ground"},
        margin={"l": 64, "r": 14, "t": 10, "b": 48},
        xaxis=theme.axis("measured bits per weight, average", range=[1.9, 8.1], dtick=1),
        yaxis=theme.axis("perplexity ÷ full precision", type="log", **_log_axis(ratios)),
    )
    level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "layer": "below"}
    base["shapes"] = [level | {"line": {"color": "mbq:line", "width": 1, "dash": "dot"}}]
    return {"data": lines, "layout": base}


def _log_axis(ratios: list[float]) -> dict:
    top = min(max(ratios, default=2.0) * 1.08, HIGHEST)
    low = min(min(ratios, default=1.0), 1.0) * 0.985
    marks = [mark for mark in (1, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5) if low <= mark <= top]
    names = [f"{mark:g}×" for mark in marks]
    return {"range": [math.log10(low), math.log10(top)], "tickvals": marks, "ticktext": names}


def _line(name: str, points: list[Point]) -> dict:
    colour, dash, symbol = _LOOKS[name]
    mode = "markers" if name == "fixed depth" else "lines+markers"
    marker = {"size": 8, "symbol": symbol, "color": colour}
    return _scatter(name, points, mode) | {"line": {"color": colour, "dash": dash, "width": 2}, "marker": marker}


def _scatter(name: str, points: list[Point], mode: str) -> dict:
    return {
        "type": "scatter",
        "mode": mode,
        "name": escape_text(name),
        "x": [round(point.bits, 4) for point in points],
        "y": [round(point.ratio, 5) for point in points],
        "hovertemplate": "%{x:.2f} bits: %{y:.3f} × full precision<extra>%{fullData.name}</extra>",
    }
