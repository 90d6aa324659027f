"""Dense weights of all depths as a differentiable function of the group ranges.

Forward is the nested quantizer of `slicing.py` in fp32; backward passes straight through the floor, in closed
form, so that nothing of the size of the weight is kept between the two. It knows one matrix.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.kernels.dispatch import why_no_triton
from mobiquant_core.rounding import cells_per_base, cells_per_pivot, crossings, hold_at_home, residue_bits
from mobiquant_core.slicing import SMALLEST_STEP, group_columns

HARD = 1e-4
"""A softness at which practically no weight is undecided."""


class NestedWeights(torch.autograd.Function):
    """[depths, out, in] weights of every depth from one matrix, the range of each of its groups and its gains."""

    @staticmethod
    def forward(
        ctx,
        weight: Tensor,
        low: Tensor,
        high: Tensor,
        lean: Tensor | None,
        softness: Tensor | None,
        reach: float,
        home: Tensor | None,
        gain: Tensor,
        config: MobiQuantConfig,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(weight, low, high, lean, softness, home, gain)
        ctx.config, ctx.reach = config, reach
        weights_of, _ = _ways(weight, config)
        return weights_of(weight, low, high, lean, softness, reach, home, gain, config, dtype)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Inside the range d value / d step is the rounding residual; a value outside or held follows its cell."""
        weight, low, high, lean, softness, home, gain = ctx.saved_tensors
        _, gradients_of = _ways(weight, ctx.config)
        by_weight, by_low, by_high, by_lean, by_gain = gradients_of(
            gradients[0], weight, low, high, lean, softness, ctx.reach, home, gain, ctx.config, ctx.needs_input_grad[0]
        )
        return by_weight, by_low, by_high, by_lean, None, None, None, by_gain, None, None


def _ways(weight: Tensor, config: MobiQuantConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(weights, gradients): one launch of a kernel each where there are kernels, else this file's definition."""
    power_of_two = config.group_size & (config.group_size - 1) == 0
    if not (weight.is_cuda and power_of_two) or why_no_triton(weight.device):
        return _weights, _gradients
    from mobiquant_core.kernels import nested_weights as kernels

    return kernels.forward, kernels.backward


def _weights(
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    lean: Tensor | None,
    softness: Tensor | None,
    reach: float,
    home: Tensor | None,
    gain: Tensor,
    config: MobiQuantConfig,
    dtype: torch.dtype,
) -> Tensor:
    """Weights of as many depths as `gain` has."""
    step, cells, _ = _cells(weight, low, high, home, config)
    code = cells.floor().clamp_(0, 2**config.total_bits - 1)
    choice = _choice(cells, code, lean, softness, reach, home is not None, config)
    stack = torch.empty(len(gain), *weight.shape, dtype=dtype, device=weight.device)
    for depth, own_gain in enumerate(gain):
        centre = _centre(code, choice, 2.0 ** (config.total_bits - config.bits_by_depth[depth]))
        values = torch.addcmul(low.unsqueeze(-1), centre, step * _ratio(config, depth))
        stack[depth] = values.flatten(1)[:, : weight.shape[1]] * own_gain.unsqueeze(-1)
    return stack


def _gradients(
    gradient: Tensor,
    weight: Tensor,
    low: Tensor,
    high: Tensor,
    lean: Tensor | None,
    softness: Tensor | None,
    reach: float,
    home: Tensor | None,
    gain: Tensor,
    config: MobiQuantConfig,
    wants_weight: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of (weight, low, high, lean, gain) in closed form."""
    step, cells, held = _cells(weight, low, high, home, config)
    outside = (cells < 0) | (cells >= 2**config.total_bits)
    outside = outside if held is None else outside | held
    code = cells.floor().clamp_(0, 2**config.total_bits - 1)
    choice = _choice(cells, code, lean, softness, reach, home is not None, config)
    by_step, by_edge = torch.zeros_like(low), torch.zeros_like(low)
    by_weight = torch.zeros_like(cells) if wants_weight else None
    by_share = torch.zeros_like(cells) if choice is not None else None
    by_gain, columns = torch.zeros_like(gain), weight.shape[1]
    padding = cells.shape[1] * cells.shape[2] - columns
    for depth in range(len(gain)):
        finer = 2.0 ** (config.total_bits - config.bits_by_depth[depth])
        width = step * _ratio(config, depth)
        centre = _centre(code, choice, finer)
        # Settled base codes are constants: at depth 1 no value follows its weight.
        fixed = outside if held is None or depth > 0 else torch.ones_like(outside)
        residual = torch.where(fixed, centre, centre - cells / finer)
        through = torch.nn.functional.pad(gradient[depth].float(), (0, padding)).view_as(cells)
        by_gain[depth] = (through * torch.addcmul(low.unsqueeze(-1), centre, width)).sum((1, 2))
        through = through * gain[depth].view(-1, 1, 1)
        by_step += (through * residual).sum(-1) * _ratio(config, depth)
        by_edge += (through * fixed).sum(-1)
        if by_weight is not None:
            by_weight += through * ~fixed
        if choice is not None and by_share is not None:
            by_share += through * choice.jump(finer) * width
    # step = (high - low) / bins of the base slice; the edge is `low` itself
    by_high = by_step / 2 ** config.slice_bits[0]
    flat = None if by_weight is None else by_weight.flatten(1)[:, :columns]
    leaning = None
    if choice is not None and by_share is not None:
        leaning = (choice.share_gradient() * by_share).flatten(1)[:, :columns]
    return flat, by_edge - by_high, by_high, leaning, by_gain


def nested_weights(
    weight: Float[Tensor, "out in_features"],
    low: Float[Tensor, "out groups"],
    high: Float[Tensor, "out groups"],
    config: MobiQuantConfig,
    dtype: torch.dtype = torch.float32,
    lean: Float[Tensor, "out in_features"] | None = None,
    softness: Float[Tensor, ""] | None = None,
    reach: float = 0.0,
    home: UInt8[Tensor, "out in_features"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
) -> Float[Tensor, "depths out in_features"]:
    """Weights of the first depths, as many as `gain` has (all without one), times their gain; differentiable in the
    range, the gain, the weight (for an input scale) and in `lean`.

    `lean` moves a weight across the edge that rounding.py allows it, in cells of that edge's kind: gradually, over
    twice `softness`, since a hard choice would waver between two cells where only the way between them is wanted.
    `home` holds settled base codes, which nothing changes any more.
    """
    if lean is not None and softness is None:
        softness = torch.full((), HARD, device=weight.device)
    if gain is None:
        gain = torch.ones(config.depths, weight.shape[0], device=weight.device)
    return NestedWeights.apply(weight, low, high, lean, softness, reach, home, gain, config, dtype)  # pyright: ignore[reportReturnType]


def _centre(code: Tensor, choice: "_Choice | None", finer: float) -> Tensor:
    """Cell centres at one depth, in its own cells from the lower edge."""
    centre = (code / finer).floor_().add_(0.5)
    return centre if choice is None else torch.addcmul(centre, choice.share, choice.jump(finer))


class _Choice:
    """The move that every weight could make, and how far it has made it."""

    def __init__(
        self,
        cells: Tensor,
        code: Tensor,
        lean: Tensor,
        softness: Tensor,
        reach: float,
        settled: bool,
        config: MobiQuantConfig,
    ) -> None:
        self.moved, self.direction, distance = crossings(cells, config, reach, settled)
        self.code, self.softness = code, softness
        self.raw_share = (_grouped(lean, cells) * self.direction).sub_(distance).div_(2 * softness).add_(0.5)
        self.share = self.raw_share.clamp(0, 1)

    def jump(self, finer: float) -> Tensor:
        """How many cells of a depth the whole move makes."""
        return (self.moved / finer).floor_() - (self.code / finer).floor_()

    def share_gradient(self) -> Tensor:
        """d share / d lean: only weights near the edge between their cells are undecided."""
        undecided = (self.raw_share > 0) & (self.raw_share < 1)
        return self.direction * undecided / (2 * self.softness)


def _choice(
    cells: Tensor,
    code: Tensor,
    lean: Tensor | None,
    softness: Tensor | None,
    reach: float,
    settled: bool,
    config: MobiQuantConfig,
) -> _Choice | None:
    """The choices of a matrix; None where rounding is not learnt."""
    if lean is None or softness is None:
        return None
    return _Choice(cells, code, lean, softness, reach, settled, config)


def leaning_residue(
    cells: Float[Tensor, "out groups size"],
    lean: Float[Tensor, "out in_features"],
    config: MobiQuantConfig,
    reach: float = 0.0,
    home: UInt8[Tensor, "out in_features"] | None = None,
) -> UInt8[Tensor, "out groups size"]:
    """What is stored of every weight's choice: its pivot cell modulo a power of two."""
    settled = home is not None
    if home is not None:
        cells, _ = hold_at_home(cells, group_columns(home, config), config)
    code = _leaning_code(cells, lean, config, reach, settled)
    return ((code / cells_per_pivot(config)).floor_() % 2 ** residue_bits(reach, settled)).to(torch.uint8)


def leaning_base(
    weight: Float[Tensor, "out in_features"],
    low: Float[Tensor, "out groups"],
    high: Float[Tensor, "out groups"],
    lean: Float[Tensor, "out in_features"],
    config: MobiQuantConfig,
    reach: float,
) -> UInt8[Tensor, "out in_features"]:
    """The base code that every weight has chosen."""
    _, cells, _ = _cells(weight, low, high, None, config)
    code = _leaning_code(cells, lean, config, reach, False)
    return (code / cells_per_base(config)).floor_().flatten(1)[:, : weight.shape[1]].to(torch.uint8)


def _leaning_code(cells: Tensor, lean: Tensor, config: MobiQuantConfig, reach: float, settled: bool) -> Tensor:
    """The finest code that every weight has chosen."""
    moved, direction, distance = crossings(cells, config, reach, settled)
    code = cells.floor().clamp_(0, 2**config.total_bits - 1)
    return torch.where(_grouped(lean, cells) * direction > distance, moved, code)


def _grouped(lean: Tensor, cells: Tensor) -> Tensor:
    """Leanings in the shape of the positions; repeated columns lean nowhere."""
    padding = cells.shape[1] * cells.shape[2] - lean.shape[1]
    return torch.nn.functional.pad(lean, (0, padding)).view_as(cells)


def _ratio(config: MobiQuantConfig, depth: int) -> float:
    return 2.0 ** (config.slice_bits[0] - config.bits_by_depth[depth])


def _cells(
    weight: Tensor, low: Tensor, high: Tensor, home: Tensor | None, config: MobiQuantConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(base step [out, groups, 1], position of every weight in finest cells [out, groups, size], which are held)."""
    step = ((high - low) / 2 ** config.slice_bits[0]).clamp_min(SMALLEST_STEP).unsqueeze(-1)
    grouped = group_columns(weight, config)
    cells = (grouped - low.unsqueeze(-1)).div_(step * 2.0 ** (config.slice_bits[0] - config.total_bits))
    if home is None:
        return step, cells, None
    return step, *hold_at_home(cells, group_columns(home, config), config)


class RangeFit(torch.nn.Module):
    """The learnable range of every group: a share of the half-width of the weights on either side of the middle.

    sigmoid keeps the share between 0 and `WIDEST`, so a range can neither flip nor run away.
    """

    WIDEST = 1.5

    def __init__(
        self,
        weight: Float[Tensor, "out in_features"],
        config: MobiQuantConfig,
        low: Float[Tensor, "out groups"] | None = None,
        high: Float[Tensor, "out groups"] | None = None,
    ) -> None:
        super().__init__()
        grouped = group_columns(weight, config)
        smallest, largest = grouped.amin(-1), grouped.amax(-1)
        self.middle: Tensor
        self.radius: Tensor
        self.register_buffer("middle", (smallest + largest) / 2)
        self.register_buffer("radius", ((largest - smallest) / 2).clamp_min(1e-8))
        low = smallest if low is None else low.to(smallest)
        high = largest if high is None else high.to(largest)
        self.below = torch.nn.Parameter(self._raw((self.middle - low) / self.radius))
        self.above = torch.nn.Parameter(self._raw((high - self.middle) / self.radius))

    def _raw(self, share: Tensor) -> Tensor:
        return torch.logit((share / self.WIDEST).clamp(0.02, 0.98))

    def forward(self) -> tuple[Float[Tensor, "out groups"], Float[Tensor, "out groups"]]:
        """(low, high) of every group."""
        reach = self.radius * self.WIDEST
        return self.middle - reach * self.below.sigmoid(), self.middle + reach * self.above.sigmoid()
