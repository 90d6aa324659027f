"""Refining linears of a finished calibration: the base slice stays, the depths between come closer, names are kept."""

import copy

import pytest
import torch

from mobiquant_core.calibrate.refine import RefineSettings, refine_linears
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import quantize_model
from mobiquant_core.linear import MobiLinear
from mobiquant_core.rounding import pack_parity
from mobiquant_core.routing import FixedDepth
from mobiquant_core.slicing import group_columns

CONFIG = MobiQuantConfig()
NAME = "layers.0.self_attn.v_proj"


def plain_calibration(model) -> Calibration:
    """Min-max ranges, no corrections, and every weight in the pivot cell it lies in."""
    found = Calibration(config=CONFIG, ranges={}, gains={}, shifts={}, rounding={})
    quantized = quantize_model(copy.deepcopy(model), CONFIG)
    for name, linear in names(quantized).items():
        grouped = group_columns(model.get_submodule(f"model.{name}").weight, CONFIG)
        found.ranges[name] = (grouped.amin(-1).half(), grouped.amax(-1).half())
        found.gains[name] = torch.ones(CONFIG.depths, linear.out_features)
        found.shifts[name] = torch.full((CONFIG.depths, linear.out_features), 1e-6)
        found.rounding[name] = pack_parity((linear.weight >> 4) % 2 == 1)
    return found


def names(quantized) -> dict[str, MobiLinear]:
    found = {name: module for name, module in quantized.model.named_modules() if isinstance(module, MobiLinear)}
    return {name.removeprefix("model."): module for name, module in found.items()}


def first_layer_error(quantized, teacher, windows, depth: int) -> float:
    with torch.no_grad():
        wanted = teacher(windows, output_hidden_states=True, use_cache=False).hidden_states[1]
        with FixedDepth(depth):
            given = quantized.model(windows, output_hidden_states=True, use_cache=False).hidden_states[1]
    return float((given - wanted).square().mean())


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(2, 8192, (8, 32), generator=torch.Generator().manual_seed(0))


def test_depths_between_come_closer_and_the_base_stays(tiny_model, windows):
    found = plain_calibration(tiny_model)
    quantized = quantize_model(copy.deepcopy(tiny_model), CONFIG, copy.deepcopy(found))
    before = {name: linear.dense(1) for name, linear in names(quantized).items()}
    weight = tiny_model.get_submodule(f"model.{NAME}").weight
    refine_linears(quantized, tiny_model, {NAME: weight}, windows, RefineSettings(steps=60, layers=1))
    refined = quantize_model(copy.deepcopy(tiny_model), CONFIG, quantized.calibration)
    after = names(refined)
    assert all(torch.equal(before[name], after[name].dense(1)) for name in before)
    assert not torch.equal(names(quantized)[NAME].dense(2), after[NAME].dense(2))
    errors = [first_layer_error(model, tiny_model, windows, 2) for model in (quantized, refined)]
    assert errors[1] < errors[0]
    untouched = [name for name in before if name != NAME]
    assert all(torch.equal(found.rounding[name], quantized.calibration.rounding[name]) for name in untouched)


def test_the_modules_are_put_back_when_it_stops_early(tiny_model, windows):
    quantized = quantize_model(copy.deepcopy(tiny_model), CONFIG, plain_calibration(tiny_model))

    def stop(text: str, share: float) -> None:
        raise KeyboardInterrupt(text)

    weight = tiny_model.get_submodule(f"model.{NAME}").weight
    with pytest.raises(KeyboardInterrupt):
        refine_linears(quantized, tiny_model, {NAME: weight}, windows, RefineSettings(steps=2), stop)
    assert isinstance(names(quantized)[NAME], MobiLinear)
