"""One to sixteen tokens: every depth, mixed depths and awkward sizes against float64."""

import pytest
import torch

from mobiquant_core.bench.kernel import exact, magnitude, random_packed, relative_error
from mobiquant_core.errors import KernelError
from mobiquant_core.kernels import few_tokens
from mobiquant_core.kernels.tuning import Tuning, tuning_for

_UNITS = (4, 2, 1, 1)


def product_error(
    sections: tuple[int, ...], width: int, depths: list[list[int]], tuning: Tuning, device: str, asm: bool
) -> float:
    torch.manual_seed(0)
    packed = random_packed(sections, width, device)
    chosen = torch.tensor(depths, dtype=torch.uint8, device=device)
    x = torch.randn(chosen.shape[1], width, device=device)
    out = torch.full((len(x), sum(sections)), float("nan"), device=device)
    few_tokens.multiply(packed, few_tokens.prepare(x, chosen), chosen, out, tuning=tuning, asm=asm)
    return relative_error(out, exact(packed, x, chosen))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_one_token_at_each_depth(depth: int, device: str, asm: bool) -> None:
    assert product_error((32,), 512, [[depth]], Tuning(2, 2, _UNITS), device, asm) < 1e-4


@pytest.mark.parametrize(("depth", "add"), [(1, True), (1, False), (3, True)])
def test_weights_held_early_change_no_number(depth: int, add: bool, device: str, asm: bool) -> None:
    """Groups that fill no last step, ranges and rows that do not exist."""
    torch.manual_seed(0)
    packed = random_packed((40,), 700, device)
    depths = torch.tensor([[depth]], dtype=torch.uint8, device=device)
    x = few_tokens.prepare(torch.randn(1, 700, device=device), depths)
    bias, shift, gain, before = (torch.randn(*size, 40, device=device) for size in ((), (4,), (4,), (1,)))
    plain, held = (
        few_tokens.multiply(
            packed, x, depths, before.clone(), bias, shift, gain, add=add, asm=asm,
            tuning=Tuning(1, 2, _UNITS, pieces=early, held=bool(early)),
        )
        for early in (0, 1)
    )  # fmt: skip
    assert torch.equal(plain, held)


@pytest.mark.parametrize(
    ("rows", "width", "depths"),
    [
        (17, 200, [1, 4, 2]),
        (1, 128, [3]),
        (40, 384, [2, 2, 2, 2]),
        (16, 130, [2, 1, 4, 2, 3, 4, 1]),
        (5, 256, [3] * 16),
        (33, 384, [4, 1, 4, 4, 2, 4, 4, 4, 3, 4, 4, 4, 4, 4, 4, 4]),
        (16, 640, [1, 2, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1]),
    ],
)
def test_awkward_sizes_and_mixed_depths(rows: int, width: int, depths: list[int], device: str, asm: bool) -> None:
    assert product_error((rows,), width, [depths], Tuning(1, 2, _UNITS), device, asm) < 1e-4


def test_fused_weights_keep_their_own_depths(device: str, asm: bool) -> None:
    depths = [[1, 2], [4, 4], [3, 1]]
    assert product_error((32, 16, 17), 256, depths, Tuning(1, 2, _UNITS), device, asm) < 1e-4
    depths = [[1, 2, 3, 4, 1], [4] * 5, [3, 1, 1, 3, 3]]
    assert product_error((32, 16, 17), 256, depths, Tuning(1, 2, _UNITS), device, asm) < 1e-4


@pytest.mark.parametrize("picks", [[1, 3], [2, 4, 4, 1, 2, 4, 4, 4, 4]])
def test_readout_and_addition(picks: list[int], device: str, asm: bool) -> None:
    packed = random_packed((32,), 256, device)
    x, depths = torch.randn(len(picks), 256, device=device), torch.tensor([picks], dtype=torch.uint8, device=device)
    bias, shift, gain = (torch.randn(*size, device=device) for size in ((32,), (4, 32), (4, 32)))
    before = torch.randn(len(picks), 32, device=device)
    out = few_tokens.multiply(
        packed, few_tokens.prepare(x, depths), depths, before.clone(), bias, shift, gain, add=True, asm=asm
    )
    picked = depths[0].long() - 1
    truth = exact(packed, x, depths) * gain[picked] + bias + shift[picked] + before
    assert relative_error(out, truth) < 1e-4


@pytest.mark.parametrize(("outlier", "bound"), [(1.0, 2e-5), (1000.0, 5e-4)])
def test_error_is_bounded_by_the_size_of_the_terms(outlier: float, bound: float, device: str, asm: bool) -> None:
    """Where terms cancel, the error relative to the small output grows, the one relative to |W| |x| does not."""
    for seed in range(4):
        torch.manual_seed(seed)
        packed = random_packed((1,), 200, device)
        depths = torch.tensor([[1 + seed % 4, 2]], dtype=torch.uint8, device=device)
        x = torch.randn(2, 200, device=device)
        x[:, 7] *= outlier
        out = few_tokens.multiply(
            packed, few_tokens.prepare(x, depths), depths, torch.empty(2, 1, device=device), asm=asm
        )
        error = (out.double() - exact(packed, x, depths)).norm() / magnitude(packed, x, depths).norm()
        assert error < bound


def test_too_many_tokens_are_refused(device: str) -> None:
    depths = torch.ones(1, 17, dtype=torch.uint8, device=device)
    with pytest.raises(KernelError, match="16 tokens"):
        few_tokens.prepare(torch.randn(17, 128, device=device), depths)


def test_every_shape_has_a_tuning() -> None:
    for rows, groups in ((16, 1), (4096, 32), (28672, 32), (4096, 112)):
        tuning = tuning_for(rows, groups, 1, torch.device("cpu"))
        assert 1 <= tuning.split <= max(groups, 1) and len(tuning.units) == 4
