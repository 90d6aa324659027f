"""Scores, layers, kinds of token and agreement: the numbers behind the Router lab."""

from dataclasses import replace

import numpy as np
import pytest

from app.views import agreement, layer_projection, router_scores, token_kinds
from mobiquant_core.trace import average_bits
from tests.app.fake_engine import FakeEngine


@pytest.fixture
def trace():
    return FakeEngine(layers=3, delay=0.0).analyze(list(range(24)), budget=4.0)


def test_every_decision_is_in_a_bin(trace):
    info = router_scores.data(trace)
    np.testing.assert_allclose(info.shares.sum(axis=1), 100)
    assert info.decisions == 21 * 24
    assert list(info.on) == sorted(info.on, reverse=True)


def test_the_threshold_splits_the_histogram_as_the_depths_do(trace):
    info = router_scores.data(trace)
    above = info.shares[:, info.centres > info.thresholds[1]].sum(axis=1) / 100
    np.testing.assert_allclose(above, info.on, atol=0.08)
    assert router_scores.figure(info)["layout"]["shapes"][0]["x0"] == info.thresholds[1]


def test_infinite_thresholds_and_scores_draw_no_line(trace):
    trace.columns.thresholds[:] = np.inf
    trace.columns.scores[:] = -np.inf
    figure = router_scores.figure(router_scores.data(trace))
    assert "shapes" not in figure["layout"]
    assert np.isfinite(figure["data"][0]["x"]).all()


def test_layer_projection_means_are_the_measured_bits(trace):
    info = layer_projection.data(trace)
    assert info.bits.shape == (3, 7)
    weights = np.array([entry.weights for entry in trace.linears]).reshape(3, 7)
    expected = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
    assert (info.bits * weights).sum() / weights.sum() == pytest.approx(expected, rel=1e-5)
    assert layer_projection.sentence(info).startswith("Most bits: ")


def test_uniform_bits_are_not_given_extremes(trace):
    trace.columns.depths[:] = 2
    assert layer_projection.sentence(layer_projection.data(trace)) == "Every linear got the same bits."


@pytest.mark.parametrize(
    ("text", "position", "kind"),
    [
        ("<bos>", 0, token_kinds.FIRST),
        (" the", 0, token_kinds.FIRST),
        (" the", 3, token_kinds.START),
        ("▁the", 3, token_kinds.START),
        ("ing", 3, token_kinds.CONTINUATION),
        (" 1984", 3, token_kinds.NUMBER),
        ("3rd", 3, token_kinds.CONTINUATION),
        (" —", 3, token_kinds.PUNCTUATION),
        (".", 3, token_kinds.PUNCTUATION),
        ("\n", 3, token_kinds.SPACE),
        ("", 3, token_kinds.SPACE),
        (" Ω", 3, token_kinds.START),
    ],
)
def test_kinds(text, position, kind):
    assert token_kinds.kind_of(text, position) == kind


def test_kind_counts_cover_every_token(trace):
    info = token_kinds.data(trace)
    assert info.count.sum() == trace.tokens
    assert info.kinds[0] == token_kinds.FIRST
    figure = token_kinds.figure(info)
    assert len(figure["data"][1]["x"]) == trace.tokens


def test_short_texts_make_no_claim_about_kinds():
    trace = FakeEngine(layers=1, delay=0.0).analyze([0, 1], budget=4.0)
    assert "too short" in token_kinds.sentence(token_kinds.data(trace))


def test_a_policy_agrees_wholly_with_itself(trace):
    info = agreement.data(trace, trace)
    assert info.equal == 1 and info.spearman_scores == pytest.approx(1) and info.spearman_tokens == pytest.approx(1)
    assert 0 < info.chance < 1
    assert info.confusion.sum() == pytest.approx(1)
    assert np.count_nonzero(info.confusion - np.diag(np.diag(info.confusion))) == 0


def test_opposite_scores_anticorrelate(trace):
    other = replace(trace, columns=replace(trace.columns, scores=-trace.columns.scores))
    assert agreement.data(trace, other).spearman_scores == pytest.approx(-1)


def test_constant_scores_have_no_correlation(trace):
    flat = replace(trace, columns=replace(trace.columns, scores=np.zeros_like(trace.columns.scores)))
    info = agreement.data(flat, trace)
    assert np.isnan(info.spearman_scores)
    assert "do not look at tokens" in agreement.sentence(info)


def test_agreement_needs_the_same_tokens(trace):
    other = FakeEngine(layers=3, delay=0.0).analyze(list(range(1, 25)), budget=4.0)
    with pytest.raises(ValueError, match="same tokens"):
        agreement.data(trace, other)
