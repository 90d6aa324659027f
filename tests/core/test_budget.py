"""Budgets: what is refused, and thresholds that meet any average."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core.budget import QUANTILES, BudgetController, ThresholdTable, validate_budget
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import BudgetError
from mobiquant_core.policies import unit_quantiles

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


def _bisected(quantiles, shares, budget, mode):
    """Thresholds by halving the range of all scores 64 times, and nothing else."""

    def average(thresholds):
        last = quantiles.shape[-1] - 1
        sought = thresholds[:, None, None].expand(*quantiles.shape[:2], 1).contiguous()
        upper = torch.searchsorted(quantiles, sought, right=True)
        right = upper.clamp(1, last)
        left_value, right_value = quantiles.gather(-1, right - 1), quantiles.gather(-1, right)
        within = ((sought - left_value) / (right_value - left_value).clamp_min(1e-300)).clamp(0, 1)
        below = torch.where(upper > last, 1.0, (right - 1 + within) / last)
        bits = 2 + 2 * (1 - torch.where(upper == 0, 0.0, below).squeeze(-1)).sum(-1)
        return (bits * shares).sum() if mode == "global" else bits

    low = torch.full((1 if mode == "global" else len(quantiles),), float(quantiles.min()) - 1, dtype=torch.float64)
    high = torch.full_like(low, float(quantiles.max()) + 1)
    for _ in range(64):
        middle = (low + high) / 2
        too_many = average(middle.expand(len(quantiles))) > budget
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return high.float().expand(len(quantiles))


def _measured(_):
    return _scores_and_table(3)[2]._quantiles


def _steps(linears):
    """Levels far apart, so that averages stand still between them, and ties."""
    levels = torch.arange(3 * linears).view(3, linears).t().flip(-1)[..., None] + 0.01 * torch.linspace(0, 1, QUANTILES)
    levels[0, :, 40:200] = levels[0, :, 40:41]
    return levels.double()


def _unit(linears):
    return unit_quantiles(linears, 3).double()


@pytest.mark.parametrize("mode", ["global", "per_linear"])
@pytest.mark.parametrize("make", [_measured, _steps, _unit])
def test_thresholds_are_those_of_plain_bisection(make, mode):
    quantiles, weights = make(5), [100, 200, 400, 800, 100]
    table, shares = (
        ThresholdTable(quantiles, weights, CONFIG),
        torch.tensor(weights, dtype=torch.float64) / sum(weights),
    )
    generator = torch.Generator().manual_seed(0)
    drawn = (2 + 6 * torch.rand(20, generator=generator)).tolist()
    for budget in [2.0001, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 6.05, 7.0, 7.95, 7.9999, *drawn]:
        assert torch.equal(table.at(budget, mode), _bisected(quantiles, shares, budget, mode)), budget


def test_a_corrected_budget_needs_few_averages(monkeypatch):
    _, _, table = _scores_and_table(0)
    looked_up, average_at = [], ThresholdTable._average_at

    def counted(*arguments):
        looked_up.append(None)
        return average_at(*arguments)

    table.at(3.0)
    monkeypatch.setattr(ThresholdTable, "_average_at", counted)
    budgets = [2.5 + 0.05 * step for step in range(100)]
    for budget in budgets:
        table.at(budget)
    assert len(looked_up) < 8 * len(budgets)


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
