"""Statistics of a decode step against torch's own."""

from collections.abc import Callable

import pytest
import torch

from mobiquant_core.kernels.step_statistics import residual_statistics


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


@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_without_memory_of_its_own(compiled: Callable, capability: int) -> None:
    assert ".local" not in compiled("statistics", capability)
