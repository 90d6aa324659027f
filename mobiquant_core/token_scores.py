"""The scores of a single token on a CPU, by few numpy calls: what decoding waits for at every site.

A decode step streams all weights through the caches, so each kind of call here finds its code cold and costs some
three microseconds whatever it computes. Hence everything constant is folded into three matrices. It follows
`MlpRouter.forward` to rounding, except that scores are not yet made non-increasing: depths do not need it
(`leading_depths`), and a step does it once for all sites (`non_increasing`).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

_SILU_ONE = 1.2784645427610738
"""silu(1.278...) = 1: a hidden unit held there carries the base of the scores."""
_LEAST = 1e-6


class TokenScorer:
    """A copy of a perceptron router's parameters, all negated so that exp(-x) of the silu takes no extra call."""

    def __init__(
        self,
        direction: Float[np.ndarray, "hidden in_features"],
        size: Float[np.ndarray, "hidden 2"],
        hidden_bias: Float[np.ndarray, " hidden"],
        output: Float[np.ndarray, "scores hidden"],
        base: Float[np.ndarray, " scores"],
    ) -> None:
        root = math.sqrt(direction.shape[1])
        self._direction = np.vstack([-root * direction, np.zeros_like(direction[:1])]).astype(np.float32)
        sizes = np.column_stack([-size, -hidden_bias])
        self._sizes = np.vstack([sizes, [0, 0, -_SILU_ONE]]).astype(np.float32)
        self._output = np.column_stack([-output, -base]).astype(np.float32)

    def __call__(self, x: Float[Tensor, "... in_features"]) -> Float[np.ndarray, " scores"]:
        """Scores of all heads and slices in one row, from the input of one token."""
        vector = x.float().numpy().ravel()
        hidden = self._direction.dot(vector)
        length = max(math.sqrt(vector.dot(vector)), _LEAST)
        # Positions first: the reductions `max` and `min` go through a layer of Python.
        peak = max(vector.item(vector.argmax()), -vector.item(vector.argmin()), _LEAST)
        hidden *= 1 / length
        hidden += self._sizes.dot(np.array((math.log(length), math.log(peak), 1.0), np.float32))
        damping = np.exp(hidden)
        damping += 1
        hidden /= damping
        return self._output.dot(hidden)


def leading_depths(scores: Sequence[float], limits: Sequence[float]) -> list[int]:
    """Depths of consecutive linears: 1 + the number of leading scores strictly above the linear's limit."""
    extra = len(scores) // len(limits)
    depths = []
    for start, limit in zip(range(0, len(scores), extra), limits, strict=True):
        depth = 1
        while depth <= extra and scores[start + depth - 1] > limit:
            depth += 1
        depths.append(depth)
    return depths


def non_increasing(rows: Sequence[Float[np.ndarray, " scores"]], extra: int) -> Float[np.ndarray, "linears extra"]:
    """The scores of all sites' linears, none above the slice before it."""
    return np.minimum.accumulate(np.concatenate(rows).reshape(-1, extra), axis=-1)
