"""The only door for text of a prompt, a model or a tokenizer into HTML or plotly labels.

Plotly reads a subset of HTML, and `$...$` as mathematics, in every label; neither may come from a token.
"""

_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;", "$": "&#36;"}
_VISIBLE = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x00": "␀"}
EMPTY = "∅"


def escape_text(text: str) -> str:
    """Text that shows as itself wherever it is put."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def visible(text: str) -> str:
    """A token as a label: line ends and tabs get a sign, the leading space goes, nothing becomes a sign for it."""
    shown = "".join(_VISIBLE.get(character, character) for character in text)
    return shown.strip(" ") or ("␣" if shown else EMPTY)


def label(text: str, limit: int = 14) -> str:
    """A token as a short, safe plotly label."""
    shown = visible(text)
    return escape_text(shown if len(shown) <= limit else shown[: limit - 1] + "…")
