"""Routers: monotone scores, stored parameters, refused parameters."""

import copy

import numpy as np
import pytest
import torch

from mobiquant_core.errors import CheckpointError
from mobiquant_core.router import MlpRouter, SketchRouter, log_gain, router_from_state
from mobiquant_core.token_scores import leading_depths, non_increasing


def _routers():
    generator = torch.Generator().manual_seed(0)
    mlp, sketch = MlpRouter(172, 3, 3, 16), SketchRouter(172, 3, 3)
    for router in (mlp, sketch):
        for parameter in router.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator).half().float()
    return {"mlp": mlp, "sketch": sketch}


@pytest.mark.parametrize("kind", ["mlp", "sketch"])
def test_scores_never_rise_over_slices(kind):
    x = torch.randn(50, 172, generator=torch.Generator().manual_seed(1))
    scores = _routers()[kind](x)
    assert scores.shape == (50, 3, 3)
    assert (scores.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("kind", ["mlp", "sketch"])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_scores_stay_finite_for_extreme_inputs(kind, scale):
    x = torch.ones(2, 172) * scale
    assert torch.isfinite(_routers()[kind](x)).all()
    assert torch.isfinite(_routers()[kind](x.bfloat16())).all()


@pytest.mark.parametrize("kind", ["mlp", "sketch"])
def test_router_comes_back_from_half_precision_parameters(kind):
    router = _routers()[kind]
    state = {name: value.half() for name, value in router.state_dict().items()}
    again = router_from_state(kind, state, heads=3, extra=3)
    x = torch.randn(4, 172, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), router(x))


@pytest.mark.parametrize(("kind", "heads"), [("mlp", 2), ("sketch", 2), ("tree", 3)])
def test_parameters_that_do_not_fit_are_refused(kind, heads):
    state = _routers().get(kind, _routers()["mlp"]).state_dict()
    with pytest.raises(CheckpointError):
        router_from_state(kind, state, heads, 3)


def test_routers_of_before_they_led_other_sites_are_refused():
    state = _routers()["mlp"].state_dict() | {"size": torch.zeros(16, 2)}
    with pytest.raises(CheckpointError, match="Calibrate again"):
        router_from_state("mlp", state, 3, 3)


def test_missing_parameters_are_refused():
    with pytest.raises(CheckpointError):
        router_from_state("sketch", {}, 1, 3)


def test_log_gain_survives_slices_that_gain_nothing():
    scores = log_gain(torch.tensor([[1.0, 0.0, 5.0], [2.0, -1.0, 0.5]]))
    assert torch.isfinite(scores).all()
    assert (scores.diff(dim=-1) <= 0).all()


def _fitted():
    """A router with parameters of every sign."""
    torch.manual_seed(3)
    router = MlpRouter(172, 3, 3, 16).requires_grad_(False)
    for parameter in router.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return router


def _alone(router, x):
    return torch.from_numpy(np.stack([non_increasing([router.token_scorer(row)], 3) for row in x]))


def test_a_single_token_scores_as_it_does_in_a_batch():
    router = _fitted()
    x = torch.randn(9, 172) * torch.logspace(-3, 3, 9)[:, None]
    x = torch.cat([x, torch.zeros(1, 172)])
    assert torch.allclose(_alone(router, x), router(x), rtol=1e-5, atol=1e-5)


def test_leading_depths_are_those_of_scores_made_non_increasing():
    router = _fitted()
    score = router.token_scorer
    assert score is not None
    x = torch.randn(200, 172)
    scores = _alone(router, x)
    limits = [0.0, -1.0, 1.0]
    expected = 1 + (scores > torch.tensor(limits)[:, None]).sum(-1)
    assert expected.unique().numel() == 4
    found = [leading_depths(score(row).tolist(), limits) for row in x]
    assert found == expected.tolist()


def test_a_copy_and_changed_parameters_score_a_single_token_by_their_own_values():
    router = _routers()["mlp"].requires_grad_(False)
    x = torch.randn(1, 172, generator=torch.Generator().manual_seed(2))
    before = _alone(router, x)
    copied = copy.deepcopy(router)
    copied.base.add_(1.0)
    router.to(torch.float64).to(torch.float32).base.sub_(1.0)
    assert torch.allclose(_alone(copied, x), before + 1, atol=1e-5)
    assert torch.allclose(_alone(router, x), before - 1, atol=1e-5)
    router.load_state_dict(copied.state_dict())
    assert torch.allclose(_alone(router, x), before + 1, atol=1e-5)
    assert router.requires_grad_(True).token_scorer is None
