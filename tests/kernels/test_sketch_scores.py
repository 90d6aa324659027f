"""A sketch router inside the kernels against float64: every mode, and a channel whose mean is nearly all of it."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.bench.kernel import random_packed
from mobiquant_core.fast_decode.weights import pack_sketch
from mobiquant_core.kernels import few_tokens
from mobiquant_core.kernels.activation import SplitActivations
from mobiquant_core.kernels.few_tokens import RouterParts
from mobiquant_core.kernels.step_launches import MODE_AS_IT_IS, MODE_GATE, MODE_NORM, part_count, prepare
from mobiquant_core.kernels.tuning import Tuning

MASSIVE, WIDTH, EPS = 7, 400, 1e-6
_ROWS = {1: (16,), 2: (16, 16), 3: (32, 16, 16)}


def site_input(raw: Tensor, norm: Tensor, mode: int) -> Float[Tensor, " width"]:
    """What the router scores, in float64."""
    raw = raw.double()
    if mode == MODE_NORM:
        return raw * norm.double() * (raw.square().mean() + EPS).rsqrt()
    if mode == MODE_GATE:
        gate, up = raw.chunk(2)
        return gate * gate.sigmoid() * up
    return raw


def kernel_scores(
    raw: Tensor, norm: Tensor, router: tuple[Tensor, Tensor, Tensor], heads: int, mode: int, asm: bool
) -> tuple[Tensor, Tensor]:
    """(scores [heads, extra], depths) as a routed product records them, at threshold 0."""
    packed, device = random_packed(_ROWS[heads], WIDTH, str(raw.device)), raw.device
    weights, split = pack_sketch(*router, heads=heads), SplitActivations.empty(1, WIDTH, device)
    # What another site left behind must not show.
    parts = torch.full((part_count(WIDTH) * 2 * weights.hidden,), float("nan"), device=device)
    control, record = torch.zeros(heads, 4, device=device), torch.full((heads, 4), 9.0, device=device)
    norms = norm if mode == MODE_NORM else None
    prepare(raw[None], norms, weights.direction, split, parts, WIDTH, weights.hidden, mode, False, sketch=True)
    found = RouterParts(
        parts, weights.small, control, record, part_count(WIDTH), weights.hidden, mode, EPS, sketch=True
    )
    out = torch.zeros(1, sum(_ROWS[heads]), device=device)
    few_tokens.multiply_routed(packed, split, found, out, tuning=Tuning(1, 1, (1, 1, 1, 1)), asm=asm)
    return record[:, :3], record[:, 3]


@pytest.mark.parametrize(
    ("mode", "heads", "extra", "mean"),
    [
        (MODE_NORM, 3, 3, 0.0),
        (MODE_NORM, 2, 3, 30.0),
        (MODE_NORM, 1, 1, 1000.0),
        (MODE_GATE, 1, 3, 30.0),
        (MODE_AS_IT_IS, 1, 2, 1000.0),
    ],
)
def test_scores_against_float64(mode: int, heads: int, extra: int, mean: float, device: str, asm: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    raw, norm = draw(WIDTH * (2 if mode == MODE_GATE else 1)), draw(WIDTH)
    if mode == MODE_NORM:
        norm[MASSIVE] = mean / float(raw[MASSIVE] * raw.square().mean().rsqrt())
    else:
        raw[MASSIVE] = mean
    x = site_input(raw, norm, mode)
    energy, centre, offset = draw(heads * extra, WIDTH).abs().half().float(), draw(WIDTH), draw(heads * extra) - 6
    centre[MASSIVE] = x[MASSIVE] + 1.0
    centre = centre.half().float()
    gain = (x - centre.double()).square() @ energy.double().T
    expected = (gain.log() + offset.double()).view(heads, extra).cummin(-1).values
    scores, depths = kernel_scores(raw, norm, (energy, offset, centre), heads, mode, asm)
    # Where the scale comes last, squares of the input cancel; up to here that is below what 16-bit inputs would do.
    cancelled = float(((x.square() @ energy.double().T) / gain).max()) if mode == MODE_NORM else 1.0
    assert (scores[:, :extra].double() - expected).abs().max() < 1e-5 + 2e-6 * cancelled
    assert torch.equal(depths, 1 + (scores[:, :extra] > 0).sum(-1).float())
    assert (scores[:, extra:] == float("-inf")).all()


def test_what_cancels_altogether_is_a_small_gain_and_not_none(device: str, asm: bool) -> None:
    """An input that is the centre itself: rounding leaves anything, a negative number included."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(WIDTH, generator=generator).to(device)
    energy, offset = torch.ones(1, WIDTH, device=device), torch.zeros(1, device=device)
    centre = site_input(raw, torch.ones_like(raw), MODE_NORM).half().float()
    scores, _ = kernel_scores(raw, torch.ones_like(raw), (energy, offset, centre), 1, MODE_NORM, asm)
    whole = float(centre.square().sum())
    assert 0.99e-7 * whole < scores[0, 0].exp() < 1e-5 * whole
