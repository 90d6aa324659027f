"""The comparison counts only tokens that are the same in both runs, and says so."""

import numpy as np
import pytest

from app.views import compare
from tests.app.fake_engine import FakeEngine

IDS = [0, 5, 17, 33, 4]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(layers=3, delay=0.0)


def both(engine: FakeEngine, ids_b: list[int], reference: bool = True):
    a = engine.analyze(IDS, budget=3.0, policy="uniform", reference=reference)
    return a, engine.analyze(ids_b, budget=6.0, policy="router", reference=reference)


def test_first_difference_is_none_for_a_prefix():
    assert compare.first_difference([1, 2, 3], [1, 2]) is None
    assert compare.first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert compare.first_difference([], []) is None


def test_same_text_compares_every_cell(engine):
    info = compare.data(*both(engine, IDS))
    assert (info.first_difference, info.common, info.difference.shape) == (None, 5, (3, 5))
    assert info.measured[1] > info.measured[0]
    assert (info.difference >= 0).all()
    np.testing.assert_allclose(info.token_difference.mean(), info.measured[1] - info.measured[0], rtol=1e-5)
    assert info.names == ("uniform 3.0", "router 6.0")


def test_texts_that_part_are_compared_up_to_there(engine):
    traces = both(engine, [0, 5, 99, 33, 4])
    info = compare.data(*traces)
    assert (info.first_difference, info.common, info.difference.shape) == (2, 2, (3, 2))
    assert info.reference_loss is None
    assert "part at token 2" in compare.sentence(info, traces[0].columns.token_texts)
    assert compare.loss_figure(info)["layout"]["shapes"][0]["x0"] == 1.5


def test_lengths_that_differ_are_said(engine):
    traces = both(engine, IDS[:3])
    info = compare.data(*traces)
    assert (info.first_difference, info.common) == (None, 3)
    assert "different lengths" in compare.sentence(info, traces[0].columns.token_texts)


def test_the_scale_of_the_difference_is_symmetric(engine):
    cells = compare.difference_figure(compare.data(*both(engine, IDS)))["data"][0]
    assert cells["zmin"] == -cells["zmax"] < 0


def test_figures_without_reference_have_no_divergence(engine):
    info = compare.data(*both(engine, IDS, reference=False))
    assert compare.kl_figure(info)["data"] == []
    assert len(compare.loss_figure(info)["data"]) == 2
    assert compare.loss_figure(info)["data"][0]["y"][0] is None
    assert compare.summary(info)["kl"] == [None, None]


def test_a_run_against_itself_has_no_difference(engine):
    a = engine.analyze(IDS, budget=4.0, reference=True)
    info = compare.data(a, a)
    assert "No token was treated differently" in compare.sentence(info, a.columns.token_texts)
    assert compare.difference_figure(info)["data"][0]["zmax"] == 1.0


def test_the_matched_budget_spends_what_the_other_run_spent(engine):
    a, b = both(engine, IDS)
    budget = compare.matched_budget(b, 4.0)
    again = engine.analyze(IDS, budget=budget)
    assert compare.data(a, again).measured[1] == pytest.approx(4.0, abs=0.15)
    assert compare.matched_budget(b, 2.0) == pytest.approx(2.0, abs=0.6)
    assert compare.matched_budget(b, 8.0) == pytest.approx(8.0, abs=0.6)
