"""The quantized linear: depths, corrections, the dense cache, moves between types."""

import copy

import pytest
import torch
from torch import nn

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.dense_cache import DenseCache
from mobiquant_core.linear import MobiLinear
from mobiquant_core.routing import FixedDepth


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(172, 24)


def test_full_depth_is_close_to_the_original(linear):
    quantized = MobiLinear.from_linear(linear, MobiQuantConfig())
    x = torch.randn(2, 5, 172)
    assert quantized(x).shape == (2, 5, 24)
    assert (quantized(x) - linear(x)).abs().max() < 0.02


def test_shift_is_added_at_its_depth(linear):
    shift = torch.arange(4.0)[:, None].expand(4, 24)
    plain, shifted = (MobiLinear.from_linear(linear, MobiQuantConfig(), shift=s) for s in (None, shift))
    x = torch.randn(3, 172)
    for depth in range(1, 5):
        with FixedDepth(depth):
            assert torch.allclose(shifted(x), plain(x) + depth - 1, atol=1e-5)
    depths = torch.tensor([1, 3, 4], dtype=torch.uint8)
    expected = plain.at_depths(x, depths) + torch.tensor([[0.0], [2.0], [3.0]])
    assert torch.allclose(shifted.at_depths(x, depths), expected, atol=1e-5)


def test_gain_multiplies_the_product_alone_and_only_at_its_depth(linear):
    gain = torch.tensor([0.5, 2.0, 1.0, 1.0])[:, None].expand(4, 24)
    plain, scaled = (MobiLinear.from_linear(linear, MobiQuantConfig(), gain=g) for g in (None, gain))
    x = torch.randn(4, 172)
    depths = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    product = plain.at_depths(x, depths) - linear.bias
    expected = product * torch.tensor([[0.5], [2.0], [1.0], [1.0]]) + linear.bias
    assert torch.allclose(scaled.at_depths(x, depths), expected, atol=1e-5)
    for depth in range(1, 5):
        with FixedDepth(depth):
            assert torch.allclose(scaled(x)[depth - 1], expected[depth - 1], atol=1e-5)


def test_mixed_depths_equal_each_token_alone(linear):
    quantized = MobiLinear.from_linear(linear, MobiQuantConfig())
    x, depths = torch.randn(6, 172), torch.tensor([1, 2, 3, 4, 1, 2], dtype=torch.uint8)
    mixed = quantized.at_depths(x, depths)
    for token, depth in enumerate(depths.tolist()):
        with FixedDepth(depth):
            assert torch.allclose(quantized(x[token : token + 1]), mixed[token : token + 1], atol=1e-5)


def test_cache_keeps_what_fits_and_decodes_the_rest(linear):
    quantized = MobiLinear.from_linear(linear, MobiQuantConfig())
    one = 24 * 172 * 4
    quantized.cache = DenseCache(2 * one)
    first = quantized.dense(1)
    assert quantized.dense(1) is first
    quantized.dense(2)
    assert quantized.dense(3) is not quantized.dense(3)
    assert quantized.cache.stored_bytes == 2 * one
    assert copy.deepcopy(quantized).cache.stored_bytes == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changing_the_type_leaves_the_code_book_alone(linear, dtype):
    quantized = MobiLinear.from_linear(linear, MobiQuantConfig())
    before = quantized.dense(4)
    quantized.to(dtype)
    assert quantized.bias.dtype == dtype
    assert quantized.weight_edge.dtype == quantized.weight_step.dtype == torch.float16
    assert torch.equal(quantized.dense(4), before)
    assert quantized(torch.randn(3, 172, dtype=dtype)).dtype == dtype
