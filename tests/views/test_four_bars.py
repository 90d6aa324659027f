"""The four bars say what the stored numbers say, and nothing where the experiment is not whole."""

import json

import plotly.graph_objects as go
import pytest

from app.views import four_bars, theme

STUDY = {
    "bars": {
        "calibrated 3, run 3": 1.15,
        "calibrated 3, run 4": 1.13,
        "calibrated 3, outliers at 3": 1.14,
        "calibrated 4, run 4": 1.03,
    },
    "bars_run": {"command": "python -m study", "device": "CPU", "tokens": 32704},
    "elastic": {"final": {"wikitext2": [{"policy": "router", "bits": 4.0, "ratio": 1.01}]}},
}


def with_bars(**changes) -> dict:
    return {**STUDY, "bars": {**STUDY["bars"], **changes}}


def test_the_sentence_says_so_where_the_outliers_do_not_help():
    text = four_bars.sentence(four_bars.data(STUDY))
    assert (
        "is 13.0 % above full precision (at 3 bits 15.0 %)" in text
        and "does not help on this model: 14.0 %" in text
        and "4.0 bits: 1.0 %" in text
    )


def test_the_sentence_says_so_where_they_do():
    better = with_bars(**{"calibrated 3, outliers at 3": 1.1})
    assert "at 3 bits helps: 10.0 %" in four_bars.sentence(four_bars.data(better))


def test_a_fourth_bit_that_hurts_is_said_to_hurt():
    worse = with_bars(**{"calibrated 3, run 3": 1.02})
    assert "(at 3 bits 2.0 %: the fourth bit makes it worse)" in four_bars.sentence(four_bars.data(worse))


def test_the_source_names_device_tokens_and_command():
    source = four_bars.data(STUDY).source
    assert all(part in source for part in ("32,704 tokens", "CPU", "python -m study"))


def test_the_figure_is_valid_and_prints_its_values():
    done = theme.resolve(four_bars.figure(four_bars.data(STUDY)), "dark")
    assert go.Figure(done).data[0].text == ("13.0 %", "14.0 %", "3.0 %", "1.0 %")
    assert "mbq:" not in json.dumps(done)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"bars": 3},
        with_bars(**{"calibrated 4, run 4": float("nan")}),
        {**STUDY, "elastic": {}},
        {**STUDY, "bars": {}},
    ],
)
def test_half_an_experiment_is_none(body):
    assert four_bars.data(body) is None


def test_a_missing_or_damaged_file_is_none(tmp_path):
    assert four_bars.read_bars(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text("{")
    assert four_bars.read_bars(tmp_path / "bad.json") is None
