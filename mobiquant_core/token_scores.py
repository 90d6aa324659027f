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

_LEAST = 1e-6


class TokenScorer:
    """A copy of a perceptron router's parameters, with one more hidden unit that is always 1 and carries the base."""

    def __init__(
        self,
        direction: Float[np.ndarray, "hidden in_features"],
        size: Float[np.ndarray, " hidden"],
        hidden_bias: Float[np.ndarray, " hidden"],
        output: Float[np.ndarray, "scores hidden"],
        base: Float[np.ndarray, " scores"],
    ) -> None:
        root = math.sqrt(direction.shape[1])
        self._direction = np.vstack([root * direction, np.zeros_like(direction[:1])]).astype(np.float32)
        self._sizes = np.vstack([np.column_stack([size, hidden_bias]), [0, 1]]).astype(np.float32)
        self._output = np.column_stack([output, base]).astype(np.float32)

    def __call__(self, x: Float[Tensor, "... in_features"]) -> Float[np.ndarray, " scores"]:
        """Scores of all heads and slices in one row, from the input of one token."""
        vector = x.float().numpy().ravel()
        hidden = self._direction.dot(vector)
        length = max(math.sqrt(vector.dot(vector)), _LEAST)
        hidden *= 1 / length
        hidden += self._sizes.dot(np.array((math.log(length), 1.0), np.float32))
        return self._output.dot(np.maximum(hidden, 0, out=hidden))


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
