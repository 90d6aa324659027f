"""The nested quantizer: exact nesting, the half-step bound, awkward sizes, refused input."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError
from mobiquant_core.slicing import dequantize, group_columns, slice_weight, truncate

SLICE_LISTS = [(2, 2, 2, 2), (3,), (2, 2), (4, 4), (1, 1, 2), (8,), (3, 2, 1), (1,) * 8]


@st.composite
def weights(draw):
    out, columns = draw(st.integers(1, 5)), draw(st.sampled_from([1, 16, 100, 128, 172, 344]))
    scale, offset = draw(st.sampled_from([1e-6, 1e-3, 0.02, 1.0, 300.0])), draw(st.sampled_from([0.0, 0.5, -7.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(out, columns, generator=generator) * scale + offset
    if draw(st.booleans()):
        weight[0] = offset
    return weight


@given(weights(), st.sampled_from(SLICE_LISTS), st.sampled_from([16, 128]))
@settings(max_examples=150, deadline=None)
def test_every_weight_is_within_half_a_step_at_every_depth(weight, slice_bits, group_size):
    config = MobiQuantConfig(slice_bits, group_size)
    sliced = slice_weight(weight, config)
    for depth in range(1, config.depths + 1):
        values = dequantize(sliced, depth, torch.float64)
        step = sliced.step.double() * 2.0 ** (slice_bits[0] - config.bits(depth))
        bound = step.repeat_interleave(group_size, 1)[:, : weight.shape[1]] / 2
        # The position among 2^8 cells is computed in fp32: an edge may be off by a few 2^-24 of the range.
        assert ((weight.double() - values).abs() <= bound * (1 + 2.0**-13)).all()


@given(weights(), st.sampled_from(SLICE_LISTS))
@settings(max_examples=50, deadline=None)
def test_first_slices_are_themselves_a_quantizer_over_the_same_range(weight, slice_bits):
    """Codes cut to k slices equal the codes of slicing with the first k slices only."""
    config = MobiQuantConfig(slice_bits, 16)
    sliced = slice_weight(weight, config)
    for depth in range(1, config.depths + 1):
        alone = slice_weight(weight, MobiQuantConfig(slice_bits[:depth], 16))
        assert torch.equal(truncate(sliced.codes, depth, config), alone.codes)


def test_a_range_keeps_the_bound_for_weights_inside_it():
    config = MobiQuantConfig()
    weight = torch.randn(4, 344, generator=torch.Generator().manual_seed(0))
    low, high = torch.full((4, 3), -1.1), torch.full((4, 3), 0.9)
    sliced = slice_weight(weight, config, low, high)
    inside = (weight >= -1.1) & (weight <= 0.9)
    error = (dequantize(sliced, 4) - weight).abs()[inside].max().item()
    assert error <= 2.0 / 256 / 2 * 1.01
    assert (dequantize(sliced, 4)[weight > 0.9] <= 0.9).all()


def test_error_falls_twelve_decibels_per_slice():
    weight = torch.rand(64, 512, generator=torch.Generator().manual_seed(0))
    sliced = slice_weight(weight, MobiQuantConfig())
    errors = [(dequantize(sliced, depth) - weight).square().mean().item() for depth in range(1, 5)]
    assert all(14 < coarse / fine < 18 for coarse, fine in pairwise(errors))


def test_padding_repeats_the_last_column():
    grouped = group_columns(torch.arange(172.0).view(1, 172), MobiQuantConfig())
    assert grouped.shape == (1, 2, 128)
    assert (grouped[0, 1, 44:] == 171).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_constant_groups_come_back(value):
    sliced = slice_weight(torch.full((2, 128), value), MobiQuantConfig())
    for depth in range(1, 5):
        assert (dequantize(sliced, depth) - value).abs().max() < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_cannot_be_stored_are_refused(value):
    weight = torch.zeros(2, 128)
    weight[1, 5] = value
    with pytest.raises(CheckpointError):
        slice_weight(weight, MobiQuantConfig())
