"""The likeliest tokens and the one drawn from them, on the device, beside torch's own and the host's draw."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mobiquant_core.decode import Sampling, sample
from mobiquant_core.kernels.likeliest import Candidates

MOST = 8


def found_in(logits: Tensor, sampling: Sampling) -> tuple[Tensor, list[int]]:
    """The prediction, and every token that is drawn from it for the numbers of `sampling`."""
    device, count = logits.device, len(sampling.uniforms)
    candidates = Candidates.empty(logits.numel(), MOST, device)
    out = torch.full((candidates.numbers,), float("nan"), device=device)
    token, position = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    history = torch.zeros(count + 1, dtype=torch.int64, device=device)
    settings = torch.tensor([sampling.temperature, float(sampling.top_k)], device=device)
    drawn = []
    for _ in range(count):
        candidates.find(logits, out)
        candidates.draw(out, token, position, history, settings, sampling.uniforms.to(device))
        drawn.append(int(token))
    assert history[1:].tolist() == drawn and int(position) == count and int(out[1]) == drawn[-1]
    return out, drawn


@pytest.mark.parametrize("vocabulary", [5, 2048, 2050, 6000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_are_the_largest_in_order(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(vocabulary)
    # Of both signs; in 16 bits many are equal, also at the end of the candidates.
    logits = (torch.randn(vocabulary, device=device) * 4).to(dtype)
    out, drawn = found_in(logits, Sampling(0.0, 0, torch.zeros(1)))
    whole, count = logits.float().cpu(), min(MOST, vocabulary)
    order = sorted(range(vocabulary), key=lambda i: (-float(whole[i]), i))[:count]
    torch.testing.assert_close(out[0].cpu(), whole.logsumexp(0))
    assert out[2 + count :].long().tolist() == order and torch.equal(out[2 : 2 + count].cpu(), whole[order])
    assert drawn == [order[0]] == [int(whole.argmax())]


def test_the_device_draws_what_the_host_draws(device: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(300, device=device) * 2
    sampling = Sampling(1.7, 5, torch.rand(12))
    _, drawn = found_in(logits, sampling)
    assert drawn == [sample(logits, sampling, index) for index in range(12)]
    assert len(set(drawn)) > 1 and set(drawn) <= set(logits.topk(5).indices.tolist())


def test_each_token_has_its_share_of_the_numbers(device: str) -> None:
    logits = torch.tensor([0.0, 3.0, 1.0], device=device)
    shares = logits.softmax(0).cpu()
    ends = torch.tensor([0.0, shares[1] - 1e-4, shares[1] + 1e-4, 1 - shares[0] - 1e-4, 1 - shares[0] + 1e-4, 1 - 6e-8])
    sampling = Sampling(1.0, 3, ends)
    assert found_in(logits, sampling)[1] == [1, 1, 2, 2, 0, 0]
    assert [sample(logits, sampling, index) for index in range(6)] == [1, 1, 2, 2, 0, 0]


@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_memory_of_their_own(compiled: Callable, capability: int) -> None:
    assert all(".local" not in ptx for ptx in compiled("likeliest_tokens", capability))
