"""The quantizer's kernels against its definition in plain torch: weights and every gradient."""

import pytest
import torch

from mobiquant_core.calibrate.fake_quant import leaning_base, nested_weights
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.kernels import nested_weights as kernels

CASES = {
    "plain": ((2, 2, 2, 2), 4, False, 0.0, False),
    "learnt rounding": ((2, 2, 2, 2), 4, True, 0.0, False),
    "across base cells": ((2, 2, 2, 2), 4, True, 0.3, False),
    "base slice alone": ((2, 2, 2, 2), 1, True, 0.3, False),
    "settled": ((2, 2, 2, 2), 4, True, 0.0, True),
    "settled, where reach means nothing": ((2, 2, 2, 2), 4, True, 0.3, True),
    "one width": ((3,), 1, True, 0.0, False),
    "one width, where reach means nothing": ((3,), 1, True, 0.3, False),
    "two widths": ((3, 1), 2, True, 0.2, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [64, 128])
def test_weights_and_gradients_are_those_of_the_definition(case: str, size: int, device: str) -> None:
    widths, depths, leans, reach, settled = CASES[case]
    config, generator = MobiQuantConfig(widths, size), torch.Generator().manual_seed(7)
    weight = torch.randn(13, 172, generator=generator)
    grouped = torch.nn.functional.pad(weight, (0, -172 % size)).view(13, -1, size)
    low, high = grouped.amin(-1) * 0.8, grouped.amax(-1) * 0.8
    lean = torch.randn(weight.shape, generator=generator) / 4 if leans else None
    home = leaning_base(weight, low, high, torch.zeros_like(weight), config, 0.0) if settled else None
    if settled:
        low, high = low * 1.1, high * 0.95
    gain = 1 + torch.randn(depths, 13, generator=generator) / 10
    pull = torch.randn(depths, *weight.shape, generator=generator)
    softness = torch.tensor(0.2)
    inputs = [tensor.requires_grad_(True) for tensor in (weight, low, high, gain, lean) if tensor is not None]
    wanted = nested_weights(weight, low, high, config, torch.float32, lean, softness, reach, home, gain)
    by_wanted = torch.autograd.grad((wanted * pull).sum(), inputs)

    def there(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.detach().to(device)

    given = [there(tensor) for tensor in (weight, low, high, lean, softness)]
    found = kernels.forward(*given, reach, there(home), there(gain), config, torch.float32)
    _close(found, wanted)
    by_weight, by_low, by_high, by_lean, by_gain = kernels.backward(
        there(pull), *given, reach, there(home), there(gain), config, True
    )
    for one, other in zip((by_weight, by_low, by_high, by_gain, by_lean), by_wanted, strict=False):
        _close(one, other)


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    different = ~torch.isclose(found.cpu(), wanted.detach(), atol=2e-3, rtol=2e-3)
    # A weight on the edge between two cells goes where fp32 rounds it.
    assert different.float().mean() <= 0.002
