"""Bits are averaged by weight, over the chosen projections only."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
from view_samples import tiny_trace

from app.views import allocation, theme

TRACE = [[1, 4], [2, 1], [3, 3], [1, 2]]


def test_all_linears():
    info = allocation.data(tiny_trace(TRACE))
    np.testing.assert_allclose(info.bits, [[(2 + 3 * 4) / 4, (8 + 3 * 2) / 4], [(6 + 3 * 2) / 4, (6 + 3 * 4) / 4]])
    np.testing.assert_allclose(info.per_token, [3.25, 4.0])
    np.testing.assert_allclose(info.per_layer, [3.5, 3.75])
    assert info.labels == ["t0", "t1"]


def test_one_projection_and_groups():
    np.testing.assert_allclose(allocation.data(tiny_trace(TRACE), "q_proj").bits, [[2, 8], [6, 6]])
    np.testing.assert_allclose(allocation.data(tiny_trace(TRACE), "mlp").bits, [[4, 2], [2, 4]])
    assert np.isnan(allocation.data(tiny_trace(TRACE), "down_proj").bits).all()


@pytest.mark.parametrize("depths", [TRACE, [[], [], [], []], [[1], [1], [1], [1]], [[4] * 600] * 4])
@pytest.mark.parametrize("ground", ["light", "dark"])
def test_the_figure_is_valid(depths, ground):
    figure = theme.resolve(allocation.figure(allocation.data(tiny_trace(depths))), ground)
    assert len(go.Figure(figure).data) == 3
    assert "mbq:" not in json.dumps(figure)


def test_token_text_cannot_be_markup():
    figure = allocation.figure(allocation.data(tiny_trace(TRACE, ["<b>x</b>", "$\\href{}$"])))
    assert figure["layout"]["xaxis"]["ticktext"] == ["&lt;b&gt;x&lt;/b&gt;", "&#36;\\href{}&#36;"]
