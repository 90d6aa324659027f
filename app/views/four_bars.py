"""The outlier-migration experiment as bars: models calibrated for one width, read at another, beside an elastic one.

Reads the `bars` of a stored study; where there are none the page says so. It measures nothing.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from app.views import theme
from app.views.budget_curve import SIZE_LIMIT

LABELS = {
    "calibrated 3, run 4": "calibrated 3,<br>run at 4",
    "calibrated 3, outliers at 3": "the same,<br>outliers at 3",
    "calibrated 4, run 4": "calibrated 4,<br>run at 4",
    "elastic": "one elastic<br>model at 4.0",
}


class FourBars(NamedTuple):
    ratios: dict[str, float]
    """Perplexity over full precision, by the keys of LABELS."""
    three: float | None
    """Calibrated and run at 3 bits: what the fourth bit should improve on."""
    source: str


def read_bars(path: Path) -> FourBars | None:
    """None where the file is missing, odd, or without the whole experiment."""
    try:
        body = json.loads(path.read_text("utf-8")) if path.stat().st_size <= SIZE_LIMIT else None
    except (OSError, ValueError, RecursionError):
        return None
    return data(body) if isinstance(body, dict) else None


def data(body: dict[str, Any]) -> FourBars | None:
    """The four ratios of a study."""
    stored, run = body.get("bars"), body.get("bars_run")
    if not isinstance(stored, dict):
        return None
    found: dict[str, Any] = {name: stored.get(name) for name in LABELS} | {"elastic": _elastic(body)}
    ratios = {name: value for name, value in found.items() if _is_ratio(value)}
    if len(ratios) < len(LABELS):
        return None
    run = run if isinstance(run, dict) else {}
    three = stored.get("calibrated 3, run 3")
    source = (
        f"Stored result, WikiText-2 test, {run.get('tokens', 0):,} tokens. The first three bars: "
        f"{run.get('device', 'an unnamed device')}, “{run.get('command', '')}”. "
        "The last: as in the curve of the Router lab."
    )
    return FourBars(ratios, three if _is_ratio(three) else None, source[:500])


def sentence(bars: FourBars) -> str:
    """What the four say, the part of the claim that does not show included."""
    excess = {name: (ratio - 1) * 100 for name, ratio in bars.ratios.items()}
    first, kept, own = (excess[name] for name in list(LABELS)[:3])
    text = f"Calibrated for 3 bits and read at 4, perplexity is {first:.1f} % above full precision"
    if bars.three is not None:
        at_three = (bars.three - 1) * 100
        text += f" (at 3 bits {at_three:.1f} %{': the fourth bit makes it worse' if at_three < first else ''})"
    text += f"; calibrated for 4 bits, {own:.1f} %. Keeping the outlier tokens at 3 bits "
    text += f"helps: {kept:.1f} %." if kept < first else f"does not help on this model: {kept:.1f} %."
    return f"{text} One elastic model at 4.0 bits: {excess['elastic']:.1f} %."


def figure(bars: FourBars) -> dict:
    """Bars of the excess over full precision, values printed."""
    values = [(bars.ratios[name] - 1) * 100 for name in LABELS]
    drawn = {
        "type": "bar",
        "x": list(LABELS.values()),
        "y": [round(value, 3) for value in values],
        "text": [f"{value:.1f} %" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": ["mbq:accent", "mbq:accent", "mbq:accent", "mbq:second"]},
        "hovertemplate": "%{x}: %{y:.2f} % above full precision<extra></extra>",
    }
    base = theme.layout(
        300,
        margin={"l": 58, "r": 12, "t": 18, "b": 54},
        xaxis=theme.axis("", tickangle=0),
        yaxis=theme.axis("perplexity above full precision, %", rangemode="tozero"),
    )
    return {"data": [drawn], "layout": base}


def _elastic(body: dict[str, Any]) -> Any:
    elastic = body.get("elastic")
    for variant in elastic.values() if isinstance(elastic, dict) else ():
        rows = variant.get("wikitext2") if isinstance(variant, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("policy") == "router" and row.get("bits") == 4.0:
                return row.get("ratio")
    return None


def _is_ratio(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0
