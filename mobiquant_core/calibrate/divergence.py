"""How far a student's predictions are from full precision's. It knows logits only."""

from jaxtyping import Float
from torch import Tensor


def kl_per_window(
    wanted: Float[Tensor, "batch tokens vocabulary"], logits: Float[Tensor, "batch tokens vocabulary"]
) -> Float[Tensor, " batch"]:
    """Mean KL(full precision || student) of every window; `wanted` holds log-probabilities."""
    given = logits.log_softmax(-1)
    return (wanted.exp() * (wanted - given)).sum(-1).mean(-1)
