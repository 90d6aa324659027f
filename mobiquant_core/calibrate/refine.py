"""Refines a few linears of a finished calibration, so that every depth serves on its own.

Trained together under a router, a model may lean on a few projections being read finely (in the bundled model the
first layer's v_proj and o_proj): one depth everywhere then suffers out of proportion. Rounding, gains and shifts of
the named linears are fitted again against the full-precision output of the first layers, at depths between the base
and the full one. Ranges and base slices stay, so the coarsest weight is the old one. It knows no files and no router.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mobiquant_core import routing
from mobiquant_core.calibrate.backbone import Backbone
from mobiquant_core.calibrate.fake_quant import leaning_parity, nested_weights
from mobiquant_core.calibrate.schedule import HARDEST, SOFTEST, cosine_rate, softness_at
from mobiquant_core.calibration import Calibration
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.linear import MobiLinear
from mobiquant_core.rounding import neighbours, pack_parity, unpack_parity
from mobiquant_core.slicing import group_columns, positions


@dataclass(frozen=True)
class RefineSettings:
    """How long, how fast, how far."""

    steps: int = 300
    windows_per_step: int = 4
    layers: int = 2
    """The error is taken after so many layers: what later layers make of it counts, at little cost."""
    readout_rate: float = 5e-4
    """Of gains, and of shifts in units of the stored shifts' own size."""
    rounding_rate: float = 2e-2
    seed: int = 0


class RefinedLinear(nn.Module):
    """A MobiLinear whose rounding, gain and shift can be fitted; `weight` is the one that was sliced."""

    def __init__(self, linear: MobiLinear, weight: Float[Tensor, "out in_features"], odd: Tensor | None) -> None:
        super().__init__()
        self.index, self.config, self.in_features = linear.index, linear.config, linear.in_features
        self.bias = linear.bias
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.low = linear.weight_edge.float()
        self.high = self.low + linear.weight_step.float() * 2 ** self.config.slice_bits[0]
        self.cells = positions(group_columns(weight, self.config), linear.weight_edge, linear.weight_step, self.config)
        depths, out = self.config.depths, linear.out_features
        self.gain = nn.Parameter(torch.ones(depths, out) if linear.gain is None else linear.gain.detach().clone())
        self.stored_shift = torch.zeros(depths, out) if linear.shift is None else linear.shift.detach()
        self.moved_shift = nn.Parameter(torch.zeros(depths, out))
        self.lean = nn.Parameter(self._first_lean(odd))
        self.softness = torch.full((), SOFTEST)
        between = torch.zeros(depths, 1)
        between[1:-1] = 1
        for parameter in (self.gain, self.moved_shift):
            parameter.register_hook(lambda gradient: gradient * between)
        inside = self._neighbour_shares_base().flatten(1)[:, : self.in_features]
        self.lean.register_hook(lambda gradient: gradient * inside)

    @property
    def shift(self) -> Float[Tensor, "depths out"]:
        return self.stored_shift + self.moved_shift * self.stored_shift.square().mean().sqrt()

    def _first_lean(self, odd: Tensor | None) -> Tensor:
        """Leanings that repeat the stored choices: past the edge where a weight had left its cell."""
        cell, other, distance = neighbours(self.cells, self.config)
        if odd is None:
            return torch.zeros_like(self.weight)
        moved = ((cell % 2 == 1) != odd.view_as(self.cells)) & (other != cell)
        lean = torch.where(moved, (other - cell) * (distance + SOFTEST), 0.0)
        return lean.flatten(1)[:, : self.in_features].contiguous()

    def _neighbour_shares_base(self) -> Bool[Tensor, "out groups size"]:
        """Where a weight may change cells without leaving its base cell."""
        per_base = 2 ** (self.config.bits(min(2, self.config.depths)) - self.config.bits(1))
        cell, other, _ = neighbours(self.cells, self.config)
        return (cell // per_base).eq(other // per_base)

    def stack(self) -> Float[Tensor, "depths out in_features"]:
        plain = nested_weights(self.weight, self.low, self.high, self.config, torch.float32, self.lean, self.softness)
        return plain * self.gain.unsqueeze(-1)

    def forward(self, x: Float[Tensor, "batch tokens in_features"]) -> Float[Tensor, "batch tokens out"]:
        depths = routing.current_pass().depths(self, x)  # pyright: ignore[reportArgumentType] - reads the index only
        stack = self.stack()
        if isinstance(depths, int):
            return F.linear(x, stack[depths - 1], self.bias) + self.shift[depths - 1]
        gates = F.one_hot(depths.view(x.shape[:2]).long() - 1, self.config.depths).to(x.dtype)
        every = F.linear(x, stack.flatten(0, 1)).view(*x.shape[:2], self.config.depths, -1)
        y = (gates.unsqueeze(-1) * every).sum(2) + gates @ self.shift
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def store(self, calibration: Calibration, name: str) -> None:
        """Puts what was found in place of the calibration's entries."""
        parity = pack_parity(leaning_parity(self.cells, self.lean, self.config).flatten(1))
        for found, value in (
            (calibration.gains, self.gain.detach().clone()),
            (calibration.shifts, self.shift.detach().clone()),
            (calibration.rounding, parity),
        ):
            if found is not None:
                found[name] = value


def refine_linears(
    quantized: QuantizedModel,
    teacher: PreTrainedModel,
    weights: dict[str, Float[Tensor, "out in_features"]],
    windows: Int[Tensor, "windows tokens"],
    settings: RefineSettings = RefineSettings(),
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Fits the linears named in `weights` (their weight as it is sliced, input scale included) and stores the result
    in the calibration; the model's own modules are put back unchanged."""
    calibration = quantized.calibration
    if calibration is None:
        raise ValueError("a model without a calibration has nothing to refine")
    refined = {name: _replace(quantized, calibration, name, weight) for name, weight in weights.items()}
    modules = [module for _, module in refined.values()]
    optimizer = torch.optim.Adam(_groups(modules, settings), betas=(0.9, 0.98))
    peaks = [group["lr"] for group in optimizer.param_groups]
    draw = torch.Generator().manual_seed(settings.seed)
    exact, sliced = Backbone(teacher), Backbone(quantized.model)
    try:
        for step in range(settings.steps):
            share = step / settings.steps
            for module in modules:
                module.softness.fill_(max(HARDEST, softness_at(share)))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * cosine_rate(share)
            batch = windows[torch.randperm(len(windows), generator=draw)[: settings.windows_per_step]]
            errors = _step(sliced, exact, batch, settings.layers, range(2, calibration.config.depths))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if progress is not None and step % 10 == 0:
                progress(f"step {step}, relative error " + " ".join(f"{error:.4f}" for error in errors), share)
    finally:
        for name, (linear, _) in refined.items():
            _put(quantized, name, linear)
    for name, (_, module) in refined.items():
        module.store(calibration, name)


def _step(sliced: Backbone, exact: Backbone, batch: Tensor, layers: int, depths: Sequence[int]) -> list[float]:
    """Accumulates gradients; returns the relative error of every depth."""
    with torch.no_grad():
        embedded = exact.embed(batch)
        wanted = _through(exact, embedded, layers)
        energy = wanted.square().sum(-1).clamp_min(1e-6)
    errors = []
    for depth in depths:
        with routing.FixedDepth(depth):
            given = _through(sliced, embedded, layers)
        error = ((given - wanted).square().sum(-1) / energy).mean().clamp_min(1e-12).sqrt()
        error.backward()
        errors.append(error.item())
    return errors


def _through(backbone: Backbone, hidden: Tensor, layers: int) -> Tensor:
    for index in range(layers):
        hidden = backbone.run_layer(index, hidden)
    return hidden


def _groups(modules: Sequence[RefinedLinear], settings: RefineSettings) -> list[dict]:
    readout = [parameter for module in modules for parameter in (module.gain, module.moved_shift)]
    return [
        {"params": readout, "lr": settings.readout_rate},
        {"params": [module.lean for module in modules], "lr": settings.rounding_rate},
    ]


def _replace(
    quantized: QuantizedModel, calibration: Calibration, name: str, weight: Tensor
) -> tuple[MobiLinear, RefinedLinear]:
    linear = _place(quantized, name)[0].get_submodule(name.rpartition(".")[2])
    if not isinstance(linear, MobiLinear):
        raise ValueError(f"{name} is not a quantized linear")
    packed = (calibration.rounding or {}).get(name)
    odd = None if packed is None else unpack_parity(packed, linear.weight.shape[1])
    module = RefinedLinear(linear, weight.float(), odd)
    _put(quantized, name, module)
    return linear, module


def _put(quantized: QuantizedModel, name: str, module: nn.Module) -> None:
    parent, projection = _place(quantized, name)
    setattr(parent, projection, module)


def _place(quantized: QuantizedModel, name: str) -> tuple[nn.Module, str]:
    """(module that holds the linear, its attribute) of a calibration's name, "layers.3.self_attn.q_proj"."""
    path = quantized.architecture.layers.removesuffix("layers") + name
    parent, _, projection = path.rpartition(".")
    return quantized.model.get_submodule(parent), projection
