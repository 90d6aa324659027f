"""Outlier sets: hand-made errors give known matrices; a real run gives consistent ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core.convert import quantize_model
from mobiquant_core.engine import Engine
from mobiquant_core.errors import PromptError
from mobiquant_core.migration import average_ranks, compare_sets, measure

IDS = [0, *np.random.default_rng(3).integers(2, 8000, 59).tolist()]


@pytest.fixture(scope="module")
def engine(tokenizer, make_tiny_model):
    return Engine(quantize_model(make_tiny_model(), keep_originals=True), tokenizer, make_tiny_model())


def test_known_sets_give_known_agreement():
    errors = np.array([[9.0, 8, 1, 2], [9, 1, 8, 2], [1, 2, 8, 9]])
    found = compare_sets(errors, 2)
    np.testing.assert_allclose(found.overlap, [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]])
    np.testing.assert_allclose(found.jaccard, [[1, 1 / 3, 0], [1 / 3, 1, 1 / 3], [0, 1 / 3, 1]], rtol=1e-6)
    np.testing.assert_allclose(found.spearman[0], [1, 0.2, -0.8], rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(found.spearman), 1, rtol=1e-6)


def test_ranks_share_the_place_of_equals():
    np.testing.assert_array_equal(average_ranks(np.array([3.0, 1, 3, 2])), [3.5, 1, 3.5, 2])


def test_tokens_all_alike_have_no_rank_correlation():
    assert np.isnan(compare_sets(np.ones((2, 5)), 2).spearman).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(4, 40), size=st.integers(1, 4))
def test_matrices_are_symmetric_and_bounded(seed, tokens, size):
    found = compare_sets(np.random.default_rng(seed).normal(size=(3, 4, tokens)), size)
    for matrix in (found.overlap, found.jaccard):
        assert matrix.min() >= 0 and matrix.max() <= 1
        np.testing.assert_allclose(matrix, np.swapaxes(matrix, -1, -2))
    assert (np.abs(found.spearman) <= 1 + 1e-6).all()
    assert (found.jaccard <= found.overlap + 1e-6).all()


def test_random_sets_overlap_by_chance():
    found = compare_sets(np.random.default_rng(0).normal(size=(400, 2, 100)), 10)
    assert found.overlap[:, 0, 1].mean() == pytest.approx(0.1, abs=0.02)
    assert found.jaccard[:, 0, 1].mean() == pytest.approx(0.1 / 1.9, abs=0.02)


def test_a_report_has_consistent_shapes_and_falling_errors(engine):
    report = measure(engine, IDS)
    assert report.errors.shape == (14, 4, 60)
    assert report.per_linear.overlap.shape == (14, 4, 4)
    assert report.loss_increase.shape == report.ranks.shape == (4, 60)
    assert report.set_size == 6 and report.chance == pytest.approx(6 / 59)
    means = report.errors.mean(-1)
    assert (means[:, :-1] > means[:, 1:]).all()
    assert np.isnan(report.loss_increase[:, 0]).all() and np.isfinite(report.loss_increase[:, 1:]).all()
    assert (report.ranks[:, 0] == 0).all() and sorted(report.ranks[0, 1:]) == list(range(1, 60))
    assert len(report.token_texts) == 60


def test_absolute_errors_are_relative_ones_times_the_output(engine):
    relative, absolute = measure(engine, IDS), measure(engine, IDS, error="absolute", skip_first=False)
    ratio = absolute.errors / relative.errors
    np.testing.assert_allclose(ratio[:, 0], ratio[:, 3], rtol=1e-3)
    assert absolute.chance == pytest.approx(6 / 60)


@pytest.mark.parametrize("wrong", [{"error": "odd"}, {"top_percent": 0}, {"top_percent": 51}, {"ids": [0, 1]}])
def test_bad_arguments_are_refused(engine, wrong):
    with pytest.raises(PromptError):
        measure(engine, **({"ids": IDS} | wrong))
