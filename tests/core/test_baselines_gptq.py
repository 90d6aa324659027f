"""GPTQ and round-to-nearest against what is known of them."""

import pytest
import torch

from mobiquant_core.baselines.gptq import gptq_model, gptq_quantize
from mobiquant_core.baselines.rtn import apply_to_projections, rtn_quantize


def _correlated_inputs(features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features // 4, features, generator=generator)
    noise = 0.3 * torch.randn(1024, features, generator=generator)
    return torch.randn(1024, features // 4, generator=generator) @ mixing + noise


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_an_identity_hessian_gives_round_to_nearest(bits: int) -> None:
    weight = torch.randn(6, 300, generator=torch.Generator().manual_seed(bits))
    assert torch.allclose(gptq_quantize(weight, torch.eye(300), bits), rtn_quantize(weight, bits), atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_beats_round_to_nearest_in_output_error(bits: int) -> None:
    x = _correlated_inputs(256)
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    exact = x @ weight.t()
    plain = (x @ rtn_quantize(weight, bits).t() - exact).square().sum()
    compensated = (x @ gptq_quantize(weight, x.t() @ x, bits).t() - exact).square().sum()
    assert compensated < 0.7 * plain


def test_rtn_error_is_at_most_half_a_step_and_zero_is_exact() -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    weight[0, 0] = 0.0
    rounded = rtn_quantize(weight, 4)
    grouped = weight.view(4, 2, 128)
    step = (grouped.amax(-1) - grouped.amin(-1)) / 15
    assert ((rounded - weight).abs().view(4, 2, 128) <= step.unsqueeze(-1) * 0.5 + 1e-6).float().mean() > 0.98
    assert rounded[0, 0] == 0


def test_dead_inputs_do_no_harm() -> None:
    x = _correlated_inputs(128)
    x[:, 5] = 0
    rounded = gptq_quantize(torch.randn(4, 128), x.t() @ x, 3)
    assert torch.isfinite(rounded).all()


def test_whole_models_are_rounded_in_place(make_tiny_model) -> None:
    model = make_tiny_model(1)
    before = model.model.layers[1].mlp.down_proj.weight.clone()
    gptq_model(model, torch.randint(0, 8192, (2, 16)), 4)
    after = model.model.layers[1].mlp.down_proj.weight
    assert not torch.equal(after, before)
    apply_to_projections(model, lambda weight: weight * 0)
    assert not after.any()
