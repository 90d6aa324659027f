"""Colours and chart furniture, for both grounds, in one place; the page reads them too.

Figures name colours by role (`mbq:ink`); `resolve` puts a ground's colours in, here for files and in
`static/plot.js` for the page. The bit palettes are monotone in lightness and safe for colour-blind readers.
"""

from typing import Any

FONT = "'IBM Plex Sans', ui-sans-serif, system-ui, sans-serif"
MONO = "'IBM Plex Mono', ui-monospace, Consolas, monospace"

# 2, 4, 6, 8 bits: YlGnBu on light ground (more ink, more bits), Cividis on dark ground (more light, more bits).
LIGHT = {
    "bits": ["#eef8b3", "#69c5be", "#2072b2", "#081d58"],
    "ink": "#17212b",
    "muted": "#5b6875",
    "grid": "#e6eaee",
    "line": "#8a97a5",
    "ground": "#ffffff",
    "accent": "#1d66a3",
    "second": "#b3541e",
    "diverging": ["#7f3b08", "#e08214", "#f7f7f7", "#8073ac", "#2d004b"],
    "heat": ["#fff7ec", "#fdd49e", "#fc8d59", "#d7301f", "#7f0000"],
}
DARK = {
    "bits": ["#032554", "#5b606e", "#a69d74", "#f9e33d"],
    "ink": "#e6ebf0",
    "muted": "#9fadba",
    "grid": "#2a343e",
    "line": "#6f7f8e",
    "ground": "#161d24",
    "accent": "#7cb8ea",
    "second": "#f0a35e",
    "diverging": ["#fdb863", "#a5642a", "#262d35", "#6a60a8", "#cfc8f0"],
    "heat": ["#1b1030", "#5c1a63", "#b5344f", "#f0813c", "#fcf3a3"],
}
GROUNDS = {"light": LIGHT, "dark": DARK}


def axis(title: str = "", **more: Any) -> dict:
    """A plain axis: thin grid, no zero line, title that names the unit."""
    base = {"title": {"text": title, "font": {"size": 12}}, "gridcolor": "mbq:grid", "zeroline": False}
    return base | {"linecolor": "mbq:line", "tickfont": {"size": 11}, "automargin": True} | more


def layout(height: int, **more: Any) -> dict:
    """What every chart of the page shares."""
    base = {
        "height": height,
        "font": {"family": FONT, "color": "mbq:muted", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "zoom",
    }
    return base | more


def colorscale(name: str, ground: str) -> list[list]:
    """Evenly spaced stops of a palette, as plotly wants them."""
    colours = GROUNDS[ground][name]
    return [[index / (len(colours) - 1), colour] for index, colour in enumerate(colours)]


def resolve(value: Any, ground: str) -> Any:
    """A figure with every `mbq:` role replaced by a colour or a colour scale of `light` or `dark`."""
    if isinstance(value, dict):
        return {key: resolve(item, ground) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, ground) for item in value]
    if isinstance(value, str) and value.startswith("mbq:"):
        role = value.removeprefix("mbq:")
        name, _, index = role.partition(".")
        if index:
            return GROUNDS[ground][name][int(index)]
        return colorscale(name, ground) if isinstance(GROUNDS[ground][name], list) else GROUNDS[ground][name]
    return value
