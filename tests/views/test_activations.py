"""Magnitudes per token and the top three per layer."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from view_samples import tiny_trace

from app.views import activations, theme

DEPTHS = [[1, 4], [2, 1], [3, 3], [1, 2]]


def test_data_is_exact():
    trace = tiny_trace(DEPTHS)
    np.testing.assert_allclose(activations.map_data(trace).log10, [[0, 0], [1, 1], [2, 2]])
    curves = activations.curve_data(trace)
    np.testing.assert_allclose(curves.top3, [[1, 1, 1], [10, 10, 5], [100, 100, 25]])
    np.testing.assert_allclose(curves.median, [1, 1, 1])


def test_a_zero_magnitude_is_a_gap():
    trace = tiny_trace(DEPTHS)
    trace.columns.residual_max[0, 0] = 0
    assert activations.map_figure(activations.map_data(trace))["data"][0]["z"][0][0] is None


@pytest.mark.parametrize("depths", [DEPTHS, [[], [], [], []], [[1]] * 4])
def test_figures_are_valid(depths):
    trace = tiny_trace(depths)
    for figure in (
        activations.map_figure(activations.map_data(trace)),
        activations.curve_figure(activations.curve_data(trace)),
    ):
        done = theme.resolve(figure, "dark")
        go.Figure(done)
        assert "mbq:" not in json.dumps(done)
