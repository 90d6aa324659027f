"""Loss-weighted error reductions of every linear and slice, measured on a student: where routers start.

A score is log(sensitivity x mean error reduction / weights): the expected loss reduction per weight read, to
second order and blind to tokens. It knows one pass over a few windows, no training.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mobiquant_core.calibrate.student import FULL_PRECISION, FitLinear, Student
from mobiquant_core.router import log_gain


def measure_layer_scores(
    student: Student, windows: Int[Tensor, "windows tokens"], batch: int = 4
) -> Float[Tensor, "linears extra"]:
    """Layer scores from the loss's gradient and the current stacks, in one pass."""
    totals = torch.zeros(len(student.linears), student.config.depths, device=windows.device)
    hooks = [linear.register_forward_pre_hook(_error_collector(linear, totals)) for linear in student.linears]
    try:
        sensitivity = measure_sensitivity(student, windows, batch)
    finally:
        for hook in hooks:
            hook.remove()
    errors = totals / windows.numel()
    gains = errors[:, :-1] - errors[:, 1:]
    weights = student.weights.to(gains).view(-1, 1)
    return log_gain(gains * sensitivity.view(-1, 1) / weights)


def measure_sensitivity(
    student: Student, windows: Int[Tensor, "windows tokens"], batch: int = 4
) -> Float[Tensor, " linears"]:
    """Mean squared gradient of the loss at every linear's output, at full precision."""
    sensitivity = torch.zeros(len(student.linears), device=windows.device)
    hooks = [linear.register_full_backward_hook(_gradient_collector(linear, sensitivity)) for linear in student.linears]
    student.run.mode = FULL_PRECISION
    try:
        for part in windows.split(batch):
            hidden = student.backbone.embed(part).requires_grad_(True)
            for layer in range(len(student.backbone.layers)):
                hidden = student.backbone.run_layer(layer, hidden)
            logits = student.backbone.finish(hidden)[:, :-1]
            F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
    return sensitivity / windows.numel()


def _error_collector(linear: FitLinear, totals: Tensor):
    """Adds this linear's squared output error at every depth, summed over tokens."""

    @torch.no_grad()
    def collect(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2).to(linear.run.compute)
        residual = linear.stack() - linear.weight.to(linear.run.compute)
        for depth, missing in enumerate(residual):
            totals[linear.index, depth] += F.linear(x, missing).float().square().sum()

    return collect


def _gradient_collector(linear: FitLinear, sensitivity: Tensor):
    """Adds the squared gradient at this linear's output, mean over channels and summed over tokens."""

    def collect(_: torch.nn.Module, __: object, gradients: Any) -> None:
        sensitivity[linear.index] += gradients[0].float().square().mean(-1).sum()

    return collect


@torch.no_grad()
def measure_output_sizes(
    student: Student, windows: Int[Tensor, "windows tokens"], batch: int = 8
) -> Float[Tensor, " linears"]:
    """Mean |output| of every linear at full precision, first position left out: the unit of output shifts."""
    sizes = torch.zeros(len(student.linears), device=windows.device)

    def collect(linear: torch.nn.Module, _: object, output: Tensor) -> None:
        sizes[cast(FitLinear, linear).index] += output[:, 1:].float().abs().mean() * len(output)

    hooks = [linear.register_forward_hook(collect) for linear in student.linears]
    student.run.mode = FULL_PRECISION
    try:
        for part in windows.split(batch):
            student.backbone.logits(part)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes / len(windows)
