"""Score functions of position: spread evenly, the same everywhere, closed-form quantiles."""

import torch

from mobiquant_core.policies import (
    LayerPolicy,
    RandomPolicy,
    UniformPolicy,
    hashed,
    layer_quantiles,
    spread,
    unit_quantiles,
)


def test_spread_is_even_over_tokens_and_over_linears():
    values = spread(torch.arange(256), 70)
    assert values.min() > 0 and values.max() < 1
    for part in (values[:, 3], values[17], values.flatten()):
        shares = torch.histc(part, 8, 0, 1) / part.numel()
        assert (shares - 1 / 8).abs().max() < 0.05


def test_hash_is_uniform_and_unrelated_between_neighbours():
    values = hashed(torch.arange(2000), 20)
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.std() - 12**-0.5) < 0.01
    centred = values - values.mean()
    for other in (centred.roll(1, 0), centred.roll(1, 1)):
        assert abs((centred * other).mean() / centred.var()) < 0.03
    assert not torch.equal(values, hashed(torch.arange(2000), 20, seed=1))


def test_position_scores_depend_on_the_position_only():
    for policy in (UniformPolicy(7, 3), RandomPolicy(7, 3), LayerPolicy(torch.randn(7, 3).cummin(-1).values)):
        whole = policy.position_scores(torch.arange(20))
        assert torch.equal(whole[11:12], policy.position_scores(torch.tensor([11])))
        assert (whole.diff(dim=-1) <= 0).all()


def test_closed_form_quantiles_describe_the_scores():
    layer_scores = torch.tensor([[0.0, -1.0], [2.0, 1.5]])
    for policy, quantiles in (
        (UniformPolicy(2, 2), unit_quantiles(2, 2)),
        (LayerPolicy(layer_scores), layer_quantiles(layer_scores)),
    ):
        scores = policy.position_scores(torch.arange(4096))
        assert (scores.quantile(0.3, dim=0) - quantiles[..., int(0.3 * 256)]).abs().max() < 0.01
