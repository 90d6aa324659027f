"""What the notebooks share: the bundled model, a text it was not trained on, and the look of figures.

It measures nothing; every number of a lesson is computed in the lesson.
"""

import html
import sys
import warnings
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Said on import where Jupyter has no progress widgets; none are used.
warnings.filterwarnings("ignore", message="IProgress not found")

import plotly.graph_objects as go  # noqa: E402
import plotly.io as pio  # noqa: E402
import torch  # noqa: E402
from IPython import get_ipython  # noqa: E402
from IPython.display import HTML, Markdown, display  # noqa: E402
from transformers.utils import logging  # noqa: E402

from app.views.theme import LIGHT, colorscale  # noqa: E402
from mobiquant_core.engine import Engine  # noqa: E402
from mobiquant_core.loading import load_engine  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "assets" / "results.json"
READING = (HERE / "reading.txt").read_text("utf-8").strip()
"""A story and an encyclopedia article, about 1,000 tokens, written for these notebooks."""
BITS = [2, 4, 6, 8]
BIT_COLOURS = LIGHT["bits"]
BIT_LINES = ["#8fb339", "#2fa59c", "#2072b2", "#081d58"]
"""As BIT_COLOURS, but every one dark enough for a thin line on white."""
BIT_SCALE = colorscale("bits", "light")
INK, MUTED, ACCENT, SECOND = (LIGHT[role] for role in ("ink", "muted", "accent", "second"))
POLICY_COLOURS = {"router": SECOND, "layer": ACCENT, "uniform": INK, "norm": "#3d8b5f", "random": "#8a97a5"}

if get_ipython() is None:
    # Outside Jupyter plotly would open a browser for every figure.
    pio.renderers.default = "json"
pio.templates["lesson"] = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 64, "r": 16, "t": 56, "b": 56},
        "title": {"font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left"},
        "xaxis": {"gridcolor": LIGHT["grid"], "zeroline": False, "linecolor": LIGHT["line"], "automargin": True},
        "yaxis": {"gridcolor": LIGHT["grid"], "zeroline": False, "linecolor": LIGHT["line"], "automargin": True},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "height": 380,
    }
)
logging.disable_progress_bar()
torch.set_grad_enabled(False)


@cache
def engine() -> Engine:
    """The bundled model on the CPU: sliced, calibrated, its full-precision original beside it."""
    return load_engine("demo", device="cpu")


def show(figure: go.Figure) -> None:
    """Shows a figure in the look of the lessons; nothing is offered to be sent anywhere."""
    figure.update_layout(template="lesson")
    figure.show(config={"showSendToCloud": False, "displaylogo": False})


def say(text: str) -> None:
    """Shows Markdown."""
    display(Markdown(text))


def table(head: list[str], rows: list[list]) -> None:
    """Shows rows of strings and numbers."""
    lines = [head, ["---"] * len(head), *rows]
    say("\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines))


def token_strip(texts: list[str], values: list[float], least: float, most: float) -> None:
    """Shows tokens on a ground of their value, from pale (`least`) to dark (`most`)."""
    chips = []
    for text, value in zip(texts, values, strict=True):
        share = min(max((value - least) / (most - least), 0.0), 1.0)
        colour = "#ffffff" if share > 0.85 else INK
        ground = f"color-mix(in srgb, {LIGHT['bits'][2]} {share:.0%}, {LIGHT['bits'][0]})"
        shown = html.escape(text).replace("\n", "↵")
        style = f"background:{ground};color:{colour};padding:1px 0;white-space:pre-wrap"
        chips.append(f'<span style="{style}" title="{value:.2f}">{shown}</span>')
    display(HTML(f'<div style="line-height:1.9;font-family:monospace">{"".join(chips)}</div>'))
