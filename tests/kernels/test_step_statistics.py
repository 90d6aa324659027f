"""Statistics of a decode step against torch's own."""

from collections.abc import Callable

import pytest
import torch

from mobiquant_core.kernels.step_statistics import LogitStatistics, residual_statistics


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


@pytest.mark.parametrize("vocabulary", [7, 48, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likeliest_tokens_and_normalizer(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(vocabulary)
    logits = (torch.randperm(vocabulary, device=device) * (16 / vocabulary) - 4).to(dtype)
    statistics = LogitStatistics(vocabulary, 5, torch.device(device))
    copy, out = torch.zeros(vocabulary, device=device), torch.zeros(statistics.numbers, device=device)
    statistics.take(logits, copy, out)
    values, _ = logits.float().topk(5)
    assert torch.equal(copy, logits.float())
    torch.testing.assert_close(out[0], logits.float().logsumexp(0))
    assert torch.equal(out[1:6], values)
    ids = out[6:].long()
    assert torch.equal(logits.float()[ids], values) and len(set(ids.tolist())) == 5


def test_fewer_tokens_than_a_block_beside_a_full_one(device: str) -> None:
    logits = torch.arange(2049.0, device=device)
    statistics = LogitStatistics(2049, 5, torch.device(device))
    copy, out = torch.zeros(2049, device=device), torch.zeros(statistics.numbers, device=device)
    statistics.take(logits, copy, out)
    assert out[6:].tolist() == [2048, 2047, 2046, 2045, 2044]


@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_memory_of_their_own(compiled: Callable, capability: int) -> None:
    assert all(".local" not in ptx for ptx in compiled("statistics", capability))
