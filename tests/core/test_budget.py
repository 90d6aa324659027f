"""Budgets: what is refused, and thresholds that meet any average."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core.budget import QUANTILES, BudgetController, ThresholdTable, validate_budget
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import BudgetError

CONFIG = MobiQuantConfig()


@pytest.mark.parametrize("bits", [float("nan"), float("inf"), 1.99, 8.01, -3, "4", None, True, [4]])
def test_what_is_no_budget_is_refused(bits):
    with pytest.raises(BudgetError):
        validate_budget(bits, CONFIG)


@pytest.mark.parametrize("bits", [2, 8, 3.5, 2.0])
def test_budgets_in_range_pass(bits):
    assert validate_budget(bits, CONFIG) == bits


def _scores_and_table(seed, tokens=2048):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, 5, 3, generator=generator) * 2 - torch.tensor([0.0, 3.0, 6.0])
    scores = (scores + torch.randn(5, 1, generator=generator) * 3).cummin(-1).values
    quantiles = torch.quantile(scores, torch.linspace(0, 1, QUANTILES), dim=0).permute(1, 2, 0)
    weights = [100, 200, 400, 800, 100]
    return scores, torch.tensor(weights) / sum(weights), ThresholdTable(quantiles, weights, CONFIG)


@given(st.integers(0, 1000), st.floats(2.0, 8.0))
@settings(max_examples=30, deadline=None)
def test_thresholds_meet_the_average_on_their_own_scores(seed, budget):
    scores, shares, table = _scores_and_table(seed)
    for mode in ("global", "per_linear"):
        depths = 1 + (scores > table.at(budget, mode)[:, None]).sum(-1)
        bits = 2.0 * depths.float().mean(0)
        assert abs(float((bits * shares).sum()) - budget) < 0.02
        if mode == "per_linear":
            assert (bits - budget).abs().max() < 0.02


def test_ends_are_exact_and_thresholds_fall_with_the_budget():
    _, _, table = _scores_and_table(0)
    assert (table.at(2.0) == math.inf).all() and (table.at(8.0) == -math.inf).all()
    assert table.budget_grid.shape == table.global_thresholds.shape == (121,)
    assert (table.global_thresholds.diff() <= 1e-6).all()
    assert table.per_linear.shape == (121, 5)


def test_what_was_really_spent_translates_the_request():
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(2, 3, QUANTILES, generator=generator).sort(-1).values
    plain = ThresholdTable(quantiles, [1, 1], CONFIG)
    corrected = ThresholdTable(quantiles, [1, 1], CONFIG, asked=[3.0, 5.0], spent=[3.2, 5.0])
    assert torch.allclose(corrected.at(3.2), plain.at(3.0))
    assert torch.allclose(corrected.at(5.0), plain.at(5.0))
    assert torch.equal(corrected.at(8.0), plain.at(8.0))


def test_unknown_mode_is_refused():
    _, _, table = _scores_and_table(0)
    with pytest.raises(BudgetError):
        table.at(3.0, "sometimes")


@pytest.mark.parametrize("drift", [-0.3, 0.0, 0.2])
@pytest.mark.parametrize("chunk", [1, 64, 512])
def test_controller_makes_good_what_a_biased_run_misspends(drift, chunk):
    controller, spent, tokens = BudgetController(3.0, CONFIG), 0.0, 0
    while tokens < 8192:
        used = controller.effective + drift
        controller.observe(used, chunk)
        spent, tokens = spent + used * chunk, tokens + chunk
    assert abs(spent / tokens - 3.0) < 0.02


def test_controller_starts_uncorrected_and_leaves_the_ends_alone():
    assert BudgetController(3.0, CONFIG).effective == 3.0
    controller = BudgetController(8, CONFIG)
    controller.observe(7.0, 100)
    assert controller.effective == 8
