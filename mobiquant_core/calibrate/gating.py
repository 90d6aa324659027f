"""Each token's answer out of those of all depths, differentiable in answers, gates and shifts.

Gates are hard forward and soft backward (see student.py). It knows one linear's outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.kernels.dispatch import why_no_triton


class _Chosen(torch.autograd.Function):
    """y[t] = answers[t, d] + shift[d] at the depth d whose gate is open."""

    @staticmethod
    def forward(ctx, answers: Tensor, gates: Tensor, shift: Tensor) -> Tensor:
        from mobiquant_core.kernels import gated_answers as kernels

        ctx.save_for_backward(answers, gates, shift)
        return kernels.forward(answers, gates, shift)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        from mobiquant_core.kernels import gated_answers as kernels

        answers, gates, shift = ctx.saved_tensors
        by_y = gradients[0].contiguous()
        return *kernels.backward(by_y, answers, gates, shift), gates.t() @ by_y


def gated_answers(
    answers: Float[Tensor, "tokens depths out"],
    gates: Float[Tensor, "tokens depths"],
    shift: Float[Tensor, "depths out"],
) -> Float[Tensor, "tokens out"]:
    """sum_d gates[t, d] (answers[t, d] + shift[d]) for gates of which one is 1 and the others 0."""
    depths = answers.shape[1]
    if answers.is_cuda and depths & (depths - 1) == 0 and not why_no_triton(answers.device):
        return _Chosen.apply(answers, gates.contiguous(), shift.contiguous())  # pyright: ignore[reportReturnType]
    return (gates.to(answers.dtype).unsqueeze(-1) * answers).sum(1) + gates.to(shift.dtype) @ shift
