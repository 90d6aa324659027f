"""Text shows as itself, whatever is in it."""

import html

from hypothesis import given
from hypothesis import strategies as st

from app.views.text import EMPTY, escape_text, label, visible


@given(st.text())
def test_escaping_can_be_undone_and_leaves_nothing_to_interpret(text):
    escaped = escape_text(text)
    assert html.unescape(escaped) == html.unescape(escaped.replace("&#36;", "$"))
    assert not set("<>\"'$") & set(escaped)
    if "\r" not in text and "\x00" not in text and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        assert html.unescape(escaped) == text


def test_tokens_are_made_visible():
    assert [visible(text) for text in (" fox", "\n", " ", "", "\t")] == ["fox", "⏎", "␣", EMPTY, "⇥"]


def test_labels_are_short_and_safe():
    assert label(" <b>bold</b>") == "&lt;b&gt;bold&lt;/b&gt;"
    assert label("x" * 30) == "x" * 13 + "…"
