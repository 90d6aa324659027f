"""Statistics of a decode step against torch's own."""

from collections.abc import Callable

import pytest
import torch

from mobiquant_core.kernels.step_statistics import prediction_statistics, residual_statistics


@pytest.mark.parametrize("width", [3, 64, 1000])
def test_magnitudes_of_the_residual_stream(width: int, device: str) -> None:
    torch.manual_seed(width)
    residuals = torch.randn(3, width, device=device) * torch.tensor([[1.0], [1e4], [1e-6]], device=device)
    residuals[0, 1] = residuals[0, 0]  # a tie must not be counted twice
    residuals[1, 2] = 0
    out = torch.zeros(3, 4, device=device)
    residual_statistics(residuals, out)
    magnitude = residuals.abs()
    assert torch.equal(out[:, :3], magnitude.topk(3, dim=-1).values)
    assert torch.equal(out[:, 3], magnitude.median(dim=-1).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likeliest_tokens_and_normalizer(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    logits = (torch.randperm(5000, device=device) * (16 / 5000) - 4).to(dtype)
    out = torch.zeros(1 + 2 * 7, device=device)
    prediction_statistics(logits, out)
    torch.testing.assert_close(out[0], logits.float().logsumexp(0))
    assert torch.equal(out[1:8], logits.float().topk(7).values)
    ids = out[8:].long()
    assert torch.equal(logits.float()[ids], out[1:8]) and len(set(ids.tolist())) == 7


@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_without_memory_of_its_own(compiled: Callable, capability: int) -> None:
    assert ".local" not in compiled("statistics", capability)
