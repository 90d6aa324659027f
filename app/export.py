"""A run -> files for other programs: long CSV, JSON run file, and a page of figures that needs no network.

Pure: takes traces and figures, gives text. Text of tokens goes through one door each: `cell` for spreadsheets,
`escape_text` for markup.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import plotly

from app.views import theme
from app.views.text import escape_text
from mobiquant_core.trace import Trace, bits_of

CSV_COLUMNS = ("run", "phase", "position", "token_id", "token", "layer", "projection", "bits", "threshold")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
PLOTLY_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "sendDataToCloud"],
}


def cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: it gets a quote in front where it would be one."""
    return "'" + text if text.startswith(_FORMULA) else text


def csv_text(trace: Trace, run: str) -> str:
    """One line per token and linear: bits read and the score of every residual slice."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    extra = len(trace.bits_by_depth) - 1
    errors = ("error",) if trace.columns.errors is not None else ()
    writer.writerow((*CSV_COLUMNS, *(f"score_slice_{index + 2}" for index in range(extra)), *errors))
    writer.writerows(_lines(trace, cell(run)))
    return out.getvalue()


def _lines(trace: Trace, run: str) -> Iterator[tuple]:
    columns = trace.columns
    bits, thresholds = bits_of(columns.depths, trace.bits_by_depth), trace.token_thresholds()
    for at, (token, text) in enumerate(zip(columns.token_ids, columns.token_texts, strict=True)):
        phase = "prompt" if at < trace.prompt_tokens else "generated"
        for index, info in enumerate(trace.linears):
            known = (run, phase, at, token, cell(text), info.layer, cell(info.projection))
            values = (f"{bits[index, at]:g}", _number(thresholds[index, at]))
            scores = (_number(score) for score in columns.scores[index, at])
            error = () if columns.errors is None else (_number(columns.errors[index, at]),)
            yield (*known, *values, *scores, *error)


def _number(value: float) -> str:
    return f"{value:.5g}" if math.isfinite(value) else str(float(value))


@lru_cache(maxsize=1)
def plotly_source() -> str:
    """The plotly.js that ships with the Python package."""
    return (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text("utf-8")


def html_page(title: str, facts: dict[str, str], figures: list[tuple[str, str, dict]]) -> str:
    """One file: every (heading, sentence, figure) drawn by an embedded plotly.js, with nothing to fetch or upload."""
    rows = "".join(f"<dt>{escape_text(name)}</dt><dd>{escape_text(text)}</dd>" for name, text in facts.items())
    parts, calls = [], []
    for index, (heading, text, figure) in enumerate(figures):
        note = f"<p>{escape_text(text)}</p>" if text else ""
        parts.append(f'<section><h2>{escape_text(heading)}</h2>{note}<div id="f{index}"></div></section>')
        drawn = _script_json(theme.resolve(figure, "light"))
        calls.append(f"f=({drawn});Plotly.newPlot('f{index}',f.data,f.layout,{json.dumps(PLOTLY_CONFIG)});")
    return _PAGE.format(
        title=escape_text(title),
        facts=rows,
        sections="".join(parts),
        # Closing tags inside the library's strings must not end the script element.
        plotly=plotly_source().replace("</script", "<\\/script"),
        calls="".join(calls),
    )


def _script_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #17212b; background: #f5f7f9; }}
body {{ margin: 0 auto; max-width: 1100px; padding: 24px; }}
section {{ background: #fff; border: 1px solid #dfe4e9; border-radius: 8px; padding: 14px 18px; margin: 16px 0; }}
h1 {{ font-size: 22px; }} h2 {{ font-size: 16px; margin: 0; }} p {{ margin: 2px 0 8px; color: #55626f; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; }}
dt {{ color: #55626f; }} dd {{ margin: 0; }}
</style></head><body>
<h1>{title}</h1><dl>{facts}</dl>{sections}
<script>{plotly}</script><script>let f;{calls}</script>
</body></html>
"""
