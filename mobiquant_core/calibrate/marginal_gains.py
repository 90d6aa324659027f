"""What one linear's next slice is worth among the others as they are: measured divergences, one linear at a time.

`local_gains` estimates the same from gradients, which supposes small errors that know nothing of each other. After a
base slice has been fitted as a whole its errors do know each other. It knows one batch, no training.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiquant_core.calibrate.divergence import kl_per_window
from mobiquant_core.calibrate.student import CHOSEN, FULL_PRECISION, FitLinear, Student
from mobiquant_core.router import log_gain


@torch.no_grad()
def measure_marginal_scores(student: Student, windows: Int[Tensor, "windows tokens"]) -> Float[Tensor, "linears extra"]:
    """log(KL that a slice of one linear takes away / weights): the mean of adding it to a model at the depth before
    and of leaving it out of a model at its own depth."""
    run, backbone = student.run, student.backbone
    student.freeze()
    run.mode = FULL_PRECISION
    wanted = backbone.logits(windows).log_softmax(-1)
    run.mode = CHOSEN

    def divergence(depth: int, other: FitLinear | None = None, others_depth: int = 0) -> Tensor:
        def choose(linear: FitLinear, x: Tensor) -> Tensor:
            return torch.full(x.shape[:2], others_depth if linear is other else depth, device=x.device)

        run.choose = choose
        return kl_per_window(wanted, backbone.logits(windows)).mean()

    gains = torch.zeros(len(student.linears), student.config.depths - 1, device=windows.device)
    before = divergence(1)
    for slice_index in range(gains.shape[1]):
        after = divergence(slice_index + 2)
        for linear in student.linears:
            added = before - divergence(slice_index + 1, linear, slice_index + 2)
            left_out = divergence(slice_index + 2, linear, slice_index + 1) - after
            gains[linear.index, slice_index] = (added + left_out) / 2
        before = after
    student.thaw()
    # What no batch can tell from nothing still costs bits: a tenth of the slice's typical gain is the least.
    floor = gains.clamp_min(0).mean(0) / 10
    return log_gain(gains.maximum(floor) / student.weights.to(gains).view(-1, 1))
