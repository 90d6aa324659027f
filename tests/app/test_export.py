"""Exports: every decision once, no formula in a spreadsheet, no foreign address in a page."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import export
from app.views import allocation
from tests.app.fake_engine import FakeEngine


@pytest.fixture
def trace():
    return FakeEngine(layers=2, delay=0.0).analyze([0, 3, 9], budget=4.0, errors=True)


def rows_of(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def test_one_line_per_token_and_linear(trace):
    rows = rows_of(export.csv_text(trace, "r1"))
    assert len(rows) == 3 * 14
    assert rows[0].keys() == {*export.CSV_COLUMNS, "score_slice_2", "score_slice_3", "score_slice_4", "error"}
    bits = {1: "2", 2: "4", 3: "6", 4: "8"}
    expected = [bits[int(depth)] for depth in trace.columns.depths.T.reshape(-1)]
    assert [row["bits"] for row in rows] == expected


def test_negative_scores_stay_numbers(trace):
    trace.columns.scores[:] = -1.5
    assert {row["score_slice_2"] for row in rows_of(export.csv_text(trace, "r"))} == {"-1.5"}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_no_token_text_is_a_formula(text):
    trace = FakeEngine(layers=1, delay=0.0).analyze([0], budget=4.0)
    trace.columns.token_texts[0] = text
    shown = export.cell(text)
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert shown.removeprefix("'") == text.removeprefix("'")
    assert shown in list(csv.reader(io.StringIO(export.csv_text(trace, "r"), newline="")))[1]


def test_the_page_holds_its_library_and_escapes_what_it_is_given(trace):
    figure = allocation.figure(allocation.data(trace))
    page = export.html_page("<run>", {"model": "a & b"}, [("Map", "</script><b>", figure)])
    assert "&lt;run&gt;" in page and "a &amp; b" in page and "</script><b>" not in page
    assert page.count("<script>") == 2 and "src=" not in page.split("<script>")[0]
    assert '"showSendToCloud": false' in page and "mbq:" not in page.split("<script>")[-1]


def test_figures_with_missing_values_are_refused_rather_than_written_as_nan(trace):
    figure = {"data": [{"type": "scatter", "y": [np.nan]}], "layout": {}}
    with pytest.raises(ValueError, match="JSON"):
        export.html_page("x", {}, [("y", "", figure)])
