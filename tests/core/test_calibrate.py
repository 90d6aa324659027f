"""The fast calibration on a tiny model: every policy meets its budgets, and better-informed ones lose less."""

import copy

import pytest
import torch

from mobiquant_core.budget import QUANTILES
from mobiquant_core.calibrate import calibrate
from mobiquant_core.calibrate.ranges import search_ranges
from mobiquant_core.calibration import load_calibration, save_calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import quantize_model
from mobiquant_core.errors import ConfigError, PromptError
from mobiquant_core.policies import POLICIES
from mobiquant_core.routing import Recorder
from mobiquant_core.slicing import dequantize, slice_weight
from mobiquant_core.trace import average_bits


def _windows(count=8, length=64):
    windows = torch.randint(2, 8192, (count, length), generator=torch.Generator().manual_seed(0))
    windows[:, 0] = 0
    return windows


@pytest.fixture(scope="module")
def calibrated(make_tiny_model):
    model, shares = make_tiny_model(), []
    calibration = calibrate(model, _windows(), progress=lambda message, share: shares.append(share))
    assert shares == sorted(shares) and shares[-1] <= 1
    return quantize_model(model, calibration=calibration, keep_originals=True)


def _spent(quantized, plan):
    total = 0.0
    for window in _windows():
        recorder = Recorder()
        with torch.inference_mode(), quantized.routing_pass(plan, 0, recorder):
            quantized.model(window[None], use_cache=False)
        total += average_bits(recorder.arrays()[0], quantized.linear_infos, (2, 4, 6, 8))
    return total / len(_windows())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0])
def test_every_policy_spends_what_was_asked(calibrated, policy, budget):
    assert abs(_spent(calibrated, calibrated.plan(budget, policy)) - budget) < 0.05


def test_per_linear_mode_gives_every_linear_the_budget(calibrated):
    recorder = Recorder()
    with torch.inference_mode(), calibrated.routing_pass(calibrated.plan(5.0, "layer", "per_linear"), 0, recorder):
        calibrated.model(_windows(1, 256), use_cache=False)
    assert abs(2.0 * recorder.arrays()[0].mean(axis=1) - 5.0).max() < 0.05
    # A router's scores move with the precision of the layers before: on average only, and less closely.
    assert abs(_spent(calibrated, calibrated.plan(5.0, "router", "per_linear")) - 5.0) < 0.1


def test_decisions_are_causal(calibrated):
    """Depths of the first tokens do not change with what follows."""
    plan, window = calibrated.plan(3.0, "router"), _windows(1, 64)
    found = []
    for length in (32, 64):
        recorder = Recorder()
        with torch.inference_mode(), calibrated.routing_pass(plan, 0, recorder):
            calibrated.model(window[:, :length], use_cache=False)
        found.append(recorder.arrays()[0][:, :32])
    assert (found[0] != found[1]).mean() < 0.005  # equal up to rounding of the matrix products


def test_shapes_and_the_share_of_router_bytes(calibrated):
    calibration = calibrated.calibration
    assert calibration.layer_scores.shape == (14, 3) and (calibration.layer_scores.diff(dim=-1) <= 0).all()
    assert calibration.norm_quantiles.shape == (14, QUANTILES)
    assert {name: values.shape for name, values in calibration.score_quantiles.items()} == dict.fromkeys(
        ("router", "norm", "oracle"), (14, 3, QUANTILES)
    )
    ledger = {row.part: row.bytes_stored for row in calibrated.memory_ledger()}
    assert ledger["routers"] < 0.05 * ledger["slices"]  # 3 % for the bundled model; these layers are narrower


def test_router_follows_the_true_gain(calibrated):
    """Where inputs differ in size, the sketch orders tokens as the oracle does."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 344, generator=generator) * torch.rand(64, 1, generator=generator) * 4
    site = calibrated.sites[3]
    cheap, true = (calibrated.policy(name).scores(site, x)[:, 0, 0] for name in ("router", "oracle"))
    assert torch.corrcoef(torch.stack([cheap, true]))[0, 1] > 0.9
    assert (cheap - true).mean().abs() < 1


def test_stored_calibration_gives_the_same_run(calibrated, make_tiny_model, tmp_path):
    save_calibration(calibrated.calibration, tmp_path / "c")
    again = quantize_model(make_tiny_model(), calibration=load_calibration(tmp_path / "c"))
    for plan in (calibrated.plan(3.0, "router"), calibrated.plan(3.0, "layer")):
        assert torch.equal(again.plan(3.0, plan.policy.name).thresholds, plan.thresholds)


def test_range_search_helps_the_first_slice_and_spares_the_last():
    weight = torch.randn(32, 344, generator=torch.Generator().manual_seed(0))
    config = MobiQuantConfig()
    plain, found = (
        slice_weight(weight, config),
        slice_weight(weight, config, *search_ranges(weight, torch.ones(344), config)),
    )
    plain_error, found_error = (
        [(dequantize(sliced, depth) - weight).square().mean().item() for depth in range(1, 5)]
        for sliced in (plain, found)
    )
    assert found_error[0] <= plain_error[0]
    assert found_error[3] < 3 * plain_error[3]


def test_the_model_is_left_as_it_was(tiny_model):
    model = tiny_model
    before = copy.deepcopy(model.state_dict())
    calibrate(model, _windows(2, 32), router="none")
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_calibrated_is_refused(tiny_model):
    model = tiny_model
    with pytest.raises(PromptError):
        calibrate(model, _windows(2, 4))
    with pytest.raises(PromptError, match="32 tokens each"):
        calibrate(model, _windows(2, 32), effort="full", router="mlp", other_windows=_windows(2, 16))
    with pytest.raises(ConfigError):
        calibrate(model, _windows(), effort="heroic")
    with pytest.raises(ConfigError):
        calibrate(model, _windows(), router="crystal ball")
