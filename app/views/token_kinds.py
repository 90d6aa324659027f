"""Which kinds of token a policy gives more bits: mean per kind, with the number of tokens behind it.

A kind is read off the token's text alone, the same for every tokenizer that marks a word start by a space.
"""

from typing import NamedTuple

import numpy as np

from app.views import theme
from app.views.text import label
from mobiquant_core.trace import Trace, token_bits

FIRST, PUNCTUATION, NUMBER = "first token", "punctuation", "number"
START, CONTINUATION, SPACE = "word start", "word continuation", "space or new line"
KINDS = (FIRST, START, CONTINUATION, NUMBER, PUNCTUATION, SPACE)


class KindData(NamedTuple):
    kinds: list[str]
    mean: np.ndarray
    """float [kinds]: weight-averaged bits."""
    deviation: np.ndarray
    """float [kinds]: standard deviation over the tokens of the kind."""
    count: np.ndarray
    bits: np.ndarray
    """float [T]: of every token."""
    row_of: np.ndarray
    """int [T]: index into `kinds`."""
    labels: list[str]


def kind_of(text: str, position: int) -> str:
    """One of KINDS. Position 0 is its own kind: it is BOS, or plays the part of it."""
    if position == 0:
        return FIRST
    bare = text.strip()
    if not bare:
        return SPACE
    if any(character.isdigit() for character in bare) and not any(character.isalpha() for character in bare):
        return NUMBER
    if not any(character.isalnum() for character in bare):
        return PUNCTUATION
    return START if text[0].isspace() or text[0] == "▁" else CONTINUATION


def data(trace: Trace) -> KindData:
    """Only kinds that occur."""
    bits = token_bits(trace.columns.depths, trace.linears, trace.bits_by_depth).astype(np.float64)
    names = [kind_of(text, at) for at, text in enumerate(trace.columns.token_texts)]
    kinds = [kind for kind in KINDS if kind in names]
    rows = np.array([kinds.index(name) for name in names], dtype=np.int64)
    groups = [bits[rows == index] for index in range(len(kinds))]
    return KindData(
        kinds,
        np.array([group.mean() for group in groups]),
        np.array([group.std() for group in groups]),
        np.array([len(group) for group in groups], dtype=np.int64),
        bits,
        rows,
        [label(text) for text in trace.columns.token_texts],
    )


def sentence(info: KindData) -> str:
    """The largest and smallest mean among kinds with enough tokens to speak of."""
    usable = [index for index in range(len(info.kinds)) if info.count[index] >= 3]
    if len(usable) < 2:
        return "This text is too short to compare kinds of token."
    most = max(usable, key=lambda index: info.mean[index])
    least = min(usable, key=lambda index: info.mean[index])
    if info.mean[most] - info.mean[least] < 0.05:
        return "No kind of token got more bits than another."
    return (
        f"On this text, {info.kinds[most]} tokens got {info.mean[most]:.2f} bits on average (n = {info.count[most]}), "
        f"{info.kinds[least]} tokens {info.mean[least]:.2f} (n = {info.count[least]})."
    )


def figure(info: KindData) -> dict:
    """A bar per kind with its mean and n, a dot per token."""
    names = [f"{kind} (n={count})" for kind, count in zip(info.kinds, info.count, strict=True)]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(names))),
        "x": [round(float(value), 4) for value in info.mean],
        "width": 0.56,
        "marker": {"color": "mbq:grid", "line": {"color": "mbq:line", "width": 1}},
        "hovertemplate": "mean %{x:.2f} bits<extra></extra>",
    }
    # Golden-ratio offsets: spread evenly, and the same at every drawing.
    offsets = (np.arange(len(info.bits)) * 0.618034 % 1 - 0.5) * 0.42
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [round(float(value), 4) for value in info.bits],
        "y": [round(float(value), 4) for value in info.row_of + offsets],
        "text": info.labels,
        "marker": {"size": 6, "color": "mbq:accent", "opacity": 0.65, "line": {"width": 0}},
        "hovertemplate": "%{text}: %{x:.2f} bits<extra></extra>",
    }
    base = theme.layout(
        int(80 + 54 * max(len(names), 1)),
        margin={"l": 150, "r": 46, "t": 8, "b": 44},
        xaxis=theme.axis("bits per weight", range=[0, 8.2], dtick=2),
        yaxis=theme.axis("", tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False),
    )
    base["annotations"] = [
        {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 6, "y": index, "showarrow": False}
        | {"text": f"{value:.2f}", "font": {"size": 12.5, "color": "mbq:ink"}}
        for index, value in enumerate(info.mean)
    ]
    return {"data": [bars, dots], "layout": base}
