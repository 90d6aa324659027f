"""The stored study is read with suspicion and drawn with its source."""

import json

import pytest

from app.views import budget_curve

STUDY = {
    "device": "NVIDIA H200",
    "elastic": {
        "short": {"wikitext2": [{"policy": "router", "bits": 3.0, "measured_bits": 3.0, "ratio": 9.0, "tokens": 5}]},
        "final": {
            "wikitext2": [
                {"policy": "full precision", "bits": 16.0, "measured_bits": 16.0, "ratio": 1.0, "tokens": 100},
                {"policy": "router", "bits": 4.0, "measured_bits": 3.9, "ratio": 1.02, "tokens": 100},
                {"policy": "router", "bits": 3.0, "measured_bits": 3.0, "ratio": 1.1, "tokens": 100},
                {"policy": "layer", "bits": 2.5, "measured_bits": 2.5, "ratio": 1.6, "tokens": 100},
                {"policy": "layer", "bits": 3.5, "measured_bits": 3.5, "ratio": 1.1, "tokens": 100},
            ]
        },
    },
    "plain_baselines": [{"method": "rtn", "bits": 4, "ratio": 1.2}, {"method": "gptq", "bits": 4, "ratio": 1.1}],
    "bit_specific_ratio": {"2": 1.9, "3": 1.2, "odd": 4},
}


def test_the_longest_table_is_drawn_sorted_by_bits():
    info = budget_curve.data(STUDY)
    assert info.policies["router"] == [(3.0, 1.1), (3.9, 1.02)]
    assert (info.text, info.tokens, info.device) == ("WikiText-2 test", 100, "NVIDIA H200")
    assert info.rivals == {"rtn": [(4.0, 1.2)], "gptq": [(4.0, 1.1)], "bit-specific": [(2.0, 1.9), (3.0, 1.2)]}
    assert "full precision" not in info.policies


def test_rivals_above_the_axis_are_named():
    text = budget_curve.off_chart(budget_curve.data(STUDY))
    assert text == "Above the chart: calibrated for one width at 2 bits 1.9×."
    assert budget_curve.off_chart(budget_curve.EMPTY) == ""


def test_interpolation_is_linear_in_the_logarithm():
    points = [budget_curve.Point(2, 1.0), budget_curve.Point(4, 4.0)]
    assert budget_curve.interpolate(points, 3) == pytest.approx(2)
    assert budget_curve.interpolate(points, 5) is None


def test_the_sentence_compares_router_and_layer_at_equal_bits():
    assert "router's perplexity is 10.0 % above" in budget_curve.sentence(budget_curve.data(STUDY))


def test_a_router_that_loses_is_said_to_lose():
    rows = [{"policy": name, "measured_bits": bits, "ratio": ratio, "tokens": 9}
            for name, bits, ratio in (("router", 3, 1.5), ("layer", 2.5, 1.3), ("layer", 3.5, 1.2))]  # fmt: skip
    assert "does not beat" in budget_curve.sentence(budget_curve.data({"rows": rows, "text": "novel"}))


@pytest.mark.parametrize(
    "body",
    [{}, {"rows": 3}, {"rows": [1, {"policy": "router", "measured_bits": "x", "ratio": 1}]}, {"elastic": []},
     {"rows": [{"policy": "router", "measured_bits": 3, "ratio": float("nan")}]},
     {"plain_baselines": [{"bits": True}]}],
)  # fmt: skip
def test_odd_bodies_give_an_empty_curve(body):
    info = budget_curve.data(body)
    assert info.policies == {} and info.rivals == {}
    budget_curve.figure(info)


def test_missing_and_damaged_files_are_empty(tmp_path):
    assert budget_curve.read_results(tmp_path / "absent.json") == budget_curve.EMPTY
    (tmp_path / "bad.json").write_text("{")
    assert budget_curve.read_results(tmp_path / "bad.json") == budget_curve.EMPTY
    (tmp_path / "good.json").write_text(json.dumps(STUDY))
    assert budget_curve.read_results(tmp_path / "good.json").tokens == 100
