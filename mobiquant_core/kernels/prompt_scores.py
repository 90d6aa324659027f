"""Scores of a perceptron router for many tokens in one launch; mobiquant_core.router is the definition.

In torch's operations the host needs longer for a site's scores than a card for its products. It knows no thresholds.
"""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.kernels.quick_launch import quick_launch

LEAST_HIDDEN = 16
"""What a product on a card needs at least."""
_TOKENS, _COLUMNS = 16, 128


@triton.jit(do_not_specialize=["tokens"])
def scores_kernel(
    p_x, p_direction, p_size, p_bias, p_output, p_base, p_score, o_x, tokens, width, root,
    HEADS: tl.constexpr, EXTRA: tl.constexpr, HIDDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """All scores of a few tokens; `root` is the square root of the width."""
    i_token, i_hidden = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, HIDDEN)
    m_token = i_token < tokens
    o_token = i_token.to(tl.int64) * o_x
    b_sum, b_square = tl.zeros((TOKENS, HIDDEN), tl.float32), tl.zeros((TOKENS,), tl.float32)
    for first in range(0, width, COLUMNS):
        i_column = first + tl.arange(0, COLUMNS)
        m_column = i_column < width
        m = m_token[:, None] & m_column[None, :]
        b_x = tl.load(p_x + o_token[:, None] + i_column[None, :], mask=m, other=0.0).to(tl.float32)
        p_own = p_direction + i_hidden[None, :] * width + i_column[:, None]
        b_direction = tl.load(p_own, mask=m_column[:, None], other=0.0)
        # On tensor cores, and as precise as fp32: three products of what tf32 keeps of a number and what it does not.
        b_sum = tl.dot(b_x, b_direction, b_sum, input_precision="tf32x3")
        b_square += tl.sum(b_x * b_x, 1)
    b_length = tl.maximum(tl.sqrt(b_square), 1e-6)
    b_hidden = b_sum * (root / b_length)[:, None] + tl.log(b_length)[:, None] * tl.load(p_size + i_hidden)[None, :]
    b_hidden = tl.maximum(b_hidden + tl.load(p_bias + i_hidden)[None, :], 0.0)
    for head in tl.static_range(HEADS):
        b_least = tl.full((TOKENS,), float("inf"), tl.float32)
        for extra in tl.static_range(EXTRA):
            score = head * EXTRA + extra
            b_output = tl.load(p_output + score * HIDDEN + i_hidden)
            # No later slice without those before it.
            b_least = tl.minimum(b_least, tl.sum(b_hidden * b_output[None, :], 1) + tl.load(p_base + score))
            tl.store(p_score + i_token * (HEADS * EXTRA) + score, b_least, mask=m_token)


def scores(
    x: Float[Tensor, "tokens in_features"],
    direction: Float[Tensor, "hidden in_features"],
    size: Float[Tensor, " hidden"],
    hidden_bias: Float[Tensor, " hidden"],
    output: Float[Tensor, "scores hidden"],
    base: Float[Tensor, " scores"],
    heads: int,
) -> Float[Tensor, "tokens heads extra"]:
    """What the perceptron of these parameters, in fp32, makes of every token."""
    (tokens, width), extra = x.shape, base.numel() // heads
    found = torch.empty(tokens, heads, extra, dtype=torch.float32, device=x.device)
    arguments = (
        x, direction, size, hidden_bias, output, base, found, x.stride(0), tokens, width, math.sqrt(width), heads,
        extra, direction.shape[0], _TOKENS, _COLUMNS,
    )  # fmt: skip
    quick_launch(scores_kernel, (-(-tokens // _TOKENS), 1, 1), arguments, num_warps=4)
    return found
