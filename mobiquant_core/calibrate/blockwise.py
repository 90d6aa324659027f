"""Stage (a) of a full calibration: group ranges, input scales and shifts of one decoder layer at a time.

Weights stay frozen; the block's output error over all depths is minimised on activations that went through the
blocks before it, so memory holds one block's fit however large the model. It knows no router and no loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiquant_core.calibrate.graphed import Replayed
from mobiquant_core.calibrate.resume import Progress
from mobiquant_core.calibrate.schedule import cosine_rate, softness_at
from mobiquant_core.calibrate.student import FIXED_DEPTHS, FULL_PRECISION, FitLinear, Student

if TYPE_CHECKING:
    from mobiquant_core.calibrate.end_to_end import EndToEndSettings


LARGEST_IN_GRAPHS = 30_000_000
"""Weights of a block whose steps run as CUDA graphs; the bundled model's blocks have 3 million, an 8B model's 218."""


@dataclass(frozen=True)
class BlockwiseSettings:
    """How long and how fast every block is fitted."""

    base_steps: int = 24
    """Stage one: the base slice alone."""
    steps: int = 96
    """Stage two: all depths."""
    windows_per_depth: int = 2
    range_rate: float = 1e-2
    shift_rate: float = 2e-3
    gain_rate: float = 2e-3
    scale_rate: float = 2e-3
    rounding_rate: float = 0.0
    seed: int = 0


def fit_blocks(
    student: Student,
    windows: Int[Tensor, "windows tokens"],
    settings: BlockwiseSettings,
    progress: Callable[[str, float], None] | None = None,
    resume: Progress | None = None,
) -> None:
    """Fits every block in place, in order; blocks that `resume` holds are loaded and only propagated through."""
    depths = student.config.depths
    usable = windows[: len(windows) // depths * depths]
    with torch.no_grad():
        hidden = [student.backbone.embed(batch) for batch in usable.split(8)]
    exact = torch.cat(hidden)
    streams = exact.view(depths, -1, *exact.shape[1:]).clone()
    for layer in range(len(student.backbone.layers)):
        if progress is not None:
            progress(f"block {layer + 1} of {len(student.backbone.layers)}", layer / len(student.backbone.layers))
        target = _propagate(student, layer, exact, FULL_PRECISION)
        stored = None if resume is None else resume.load(f"block-{layer}")
        if stored is None:
            start_gains(student, layer, exact[:: max(1, len(exact) // 8)])
            _fit_block(student, layer, streams, target.view_as(streams), settings)
            if resume is not None:
                resume.save(f"block-{layer}", block_state(student, layer))
        else:
            load_block_state(student, layer, stored)
        exact = target
        streams = _propagate(student, layer, streams, FIXED_DEPTHS)


def block_state(student: Student, layer: int) -> dict[str, Tensor]:
    """Everything learnt about one block, by name."""
    state: dict[str, Tensor] = {}
    for linear in student.linears_of(layer):
        state |= {f"{linear.index}.below": linear.ranges.below, f"{linear.index}.above": linear.ranges.above}
        state |= {f"{linear.index}.shift": linear.shift, f"{linear.index}.readout": linear.readout}
        if linear.lean is not None:
            state[f"{linear.index}.lean"] = linear.lean
        if linear.site.log_scale is not None and linear.index == linear.site.first_index:
            state[f"{linear.index}.log_scale"] = linear.site.log_scale
    return state


@torch.no_grad()
def load_block_state(student: Student, layer: int, state: dict[str, Tensor]) -> None:
    for linear in student.linears_of(layer):
        linear.ranges.below.copy_(state[f"{linear.index}.below"])
        linear.ranges.above.copy_(state[f"{linear.index}.above"])
        linear.shift.copy_(state[f"{linear.index}.shift"])
        linear.readout.copy_(state[f"{linear.index}.readout"])
        if linear.lean is not None:
            linear.lean.copy_(state[f"{linear.index}.lean"])
        if linear.site.log_scale is not None:
            linear.site.log_scale.copy_(state[f"{linear.site.first_index}.log_scale"])


def parameter_groups(linears: list[FitLinear], settings: "BlockwiseSettings | EndToEndSettings") -> list[dict]:
    """Optimizer groups of everything learnable about some linears, each with its peak learning rate."""
    scales = {id(linear.site): linear.site.log_scale for linear in linears}
    bounds = [bound for linear in linears for bound in (linear.ranges.below, linear.ranges.above)]
    groups = [
        {"params": bounds, "peak": settings.range_rate},
        {"params": [linear.shift for linear in linears], "peak": settings.shift_rate},
        {"params": [linear.readout for linear in linears], "peak": settings.gain_rate},
        {"params": [scale for scale in scales.values() if scale is not None], "peak": settings.scale_rate},
        {"params": [linear.lean for linear in linears if linear.lean is not None], "peak": settings.rounding_rate},
    ]
    return [group for group in groups if group["params"] and group["peak"] > 0]


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _fit_block(student: Student, layer: int, streams: Tensor, target: Tensor, settings: BlockwiseSettings) -> None:
    groups = parameter_groups(list(student.linears_of(layer)), settings)
    optimizer = torch.optim.Adam(groups, lr=settings.range_rate, betas=(0.9, 0.95), fused=streams.is_cuda)
    parameters = [parameter for group in groups for parameter in group["params"]]
    generator = torch.Generator().manual_seed(settings.seed + layer)
    stages = [(settings.base_steps, True), (settings.steps, False)] if student.config.depths > 1 else []
    for steps, base_only in stages or [(settings.base_steps + settings.steps, False)]:
        plain = partial(_block_gradients, student, layer, parameters, base_only)
        gradients = Replayed(plain) if _waits_for_launches(student, layer) else plain
        depths = 1 if base_only else student.config.depths
        for step in range(steps):
            set_rates(optimizer, cosine_rate(step / steps))
            if student.run.softness is not None:
                student.run.softness.fill_(softness_at(0.75 * step / steps))
            chosen = torch.randperm(streams.shape[1], generator=generator)[: settings.windows_per_depth]
            chosen = chosen.to(streams.device)
            found = gradients(streams[:depths, chosen], target[:depths, chosen])
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            optimizer.step()
        # What is left of them lies in the graph's memory and would keep it.
        optimizer.zero_grad(set_to_none=True)


def _waits_for_launches(student: Student, layer: int) -> bool:
    """Whether a block is so small that its launches take longer than its arithmetic; a graph would only cost memory
    where they do not."""
    return sum(linear.weights for linear in student.linears_of(layer)) < LARGEST_IN_GRAPHS


def _block_gradients(
    student: Student, layer: int, parameters: list[Tensor], base_only: bool, inputs: Tensor, target: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the block's loss; the base slice alone needs no other depth."""
    with student.run.at_fixed_depths((inputs.shape[1],) if base_only else None):
        loss = _block_loss(student, layer, inputs, target)
    return torch.autograd.grad(loss, parameters)


def _block_loss(student: Student, layer: int, inputs: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """Sum over depths of the root of the mean relative error per token, so that no depth drowns the others."""
    output = student.backbone.run_layer(layer, inputs.flatten(0, 1)).view_as(target)
    wanted = target.float()
    energy = wanted.square().sum(-1)
    error = (output.float() - wanted).square().sum(-1) / energy.clamp_min(1e-6)
    return error.flatten(1).mean(1).clamp_min(1e-12).sqrt().sum()


@torch.no_grad()
def start_gains(student: Student, layer: int, hidden: Float[Tensor, "windows tokens hidden"]) -> None:
    """Least-squares gain of every output and depth, <y, y_k> / <y_k, y_k>, on full-precision activations."""

    def fit(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        linear = cast(FitLinear, module)
        linear.readout.zero_()
        # Beyond the first position: its massive activations would decide every gain alone.
        x, wanted = inputs[0][:, 1:].flatten(0, 1), output[:, 1:].flatten(0, 1).float()
        if linear.site.log_scale is not None:
            x = x * (-linear.site.log_scale).exp()
        for depth, weight in enumerate(linear.stack()):
            given = torch.nn.functional.linear(x.to(weight.dtype), weight).float()
            best = (wanted * given).sum(0) / given.square().sum(0).clamp_min(1e-12)
            share = linear.free_depths[depth].clamp_min(1e-12)
            linear.readout[depth] = (best.clamp(0.5, 1.5) - 1) / share * (linear.free_depths[depth] > 0)

    hooks = [linear.register_forward_hook(fit) for linear in student.linears_of(layer)]
    student.run.mode = FULL_PRECISION
    try:
        student.backbone.run_layer(layer, hidden)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _propagate(student: Student, layer: int, hidden: Tensor, mode: str) -> Tensor:
    """The layer's output for many windows, a few at a time; fixed depths keep the depth-major order."""
    student.run.mode = mode
    output = torch.empty_like(hidden)
    if mode == FULL_PRECISION:
        for start in range(0, len(hidden), 8):
            output[start : start + 8] = student.backbone.run_layer(layer, hidden[start : start + 8])
        return output
    for linear in student.linears_of(layer):
        linear.frozen_stack = linear.stack()
    for start in range(0, hidden.shape[1], 2):
        part = hidden[:, start : start + 2]
        output[:, start : start + 2] = student.backbone.run_layer(layer, part.flatten(0, 1)).view_as(part)
    for linear in student.linears_of(layer):
        linear.frozen_stack = None
    return output
