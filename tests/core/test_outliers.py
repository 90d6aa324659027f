"""Activation statistics of a run whose residual stream has a planted massive activation."""

import numpy as np
import pytest

from mobiquant_core.convert import quantize_model
from mobiquant_core.engine import Engine
from mobiquant_core.errors import PromptError
from mobiquant_core.outliers import activation_report, channel_surface

IDS = [0, 5, 900, 17, 4000, 31]


@pytest.fixture(scope="module")
def engine(tokenizer, make_tiny_model):
    model = make_tiny_model()
    model.model.embed_tokens.weight.data[0, 77] = 300.0
    return Engine(quantize_model(model), tokenizer)


def test_the_planted_channel_is_on_the_surface(engine):
    surface = channel_surface(engine, IDS, 0, channels=8)
    assert surface.magnitude.shape == (6, 8) and 77 in surface.channels
    assert surface.magnitude[0, list(surface.channels).index(77)] == pytest.approx(300, rel=0.05)
    assert channel_surface(engine, IDS, -1).magnitude.shape == (6, 128)


def test_the_first_site_sees_it_too(engine):
    report = activation_report(engine, IDS)
    assert len(report.sites) == len(report.layers) == 8 and report.token_maximum.shape == (8, 6)
    assert report.maximum[0] / report.median[0] > 10 and report.kurtosis[0] > 30
    assert report.token_maximum[0].argmax() == 0
    np.testing.assert_allclose(report.token_maximum.max(1), report.maximum)
    np.testing.assert_allclose(report.top3[:, 0], report.maximum)


def test_the_trace_shows_the_same_maximum(engine):
    columns = engine.analyze(IDS, budget=8, policy="uniform").columns
    assert columns.residual_max[0, 0] == pytest.approx(300)
    np.testing.assert_array_equal(columns.residual_top3[..., 0], columns.residual_max)


@pytest.mark.parametrize("layer", [-2, 2])
def test_a_layer_that_is_not_there_is_refused(engine, layer):
    with pytest.raises(PromptError):
        channel_surface(engine, IDS, layer)
