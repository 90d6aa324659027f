"""The reference product: each token sees the weight of its own depth."""

import pytest
import torch

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.kernels import dispatch, reference
from mobiquant_core.slicing import dequantize, slice_weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [128, 172])
def test_each_token_uses_its_own_depth(dtype, columns):
    generator = torch.Generator().manual_seed(0)
    config = MobiQuantConfig()
    sliced = slice_weight(torch.randn(24, columns, generator=generator), config)
    x = torch.randn(9, columns, generator=generator).to(dtype)
    depths = torch.tensor([1, 2, 3, 4, 4, 1, 2, 2, 3], dtype=torch.uint8)
    bias, shift = torch.randn(24, generator=generator).to(dtype), torch.randn(4, 24, generator=generator)
    y = reference.mixed_linear(
        x, sliced.codes, sliced.edge, sliced.step, depths, bias, shift, bits_by_depth=config.bits_by_depth
    )
    for token, depth in enumerate(depths.tolist()):
        expected = dequantize(sliced, depth, torch.float64) @ x[token].double() + bias + shift[depth - 1]
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
        assert (y[token].double() - expected).abs().max() < tolerance
    cached = dispatch.mixed_linear(x, sliced, depths, bias, shift, dense=lambda depth: dequantize(sliced, depth, dtype))
    assert torch.equal(dispatch.mixed_linear(x, sliced, depths, bias, shift), y)
    assert torch.equal(cached, y)


def test_no_tokens_give_no_rows():
    sliced = slice_weight(torch.randn(24, 128), MobiQuantConfig())
    empty = torch.zeros(0, dtype=torch.uint8)
    y = dispatch.mixed_linear(torch.zeros(0, 128), sliced, empty)
    assert y.shape == (0, 24)
