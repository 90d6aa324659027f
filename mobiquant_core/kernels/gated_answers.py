"""Each token's answer out of those of all depths, and the gradients of the choice: one launch each way.

Gates are hard forward, so only the chosen depth is read; backward every depth is, since every gate has a gradient.
The definition is `calibrate.gating` in plain torch. It knows nothing of scores or thresholds.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_TOKENS, _COLUMNS = 4, 256


@triton.jit
def _chosen(p_gates, i_token, m_token, DEPTHS: tl.constexpr):
    """The depth whose gate is open, counted from 0."""
    i_chosen = tl.zeros_like(i_token)
    for depth in tl.static_range(1, DEPTHS):
        b_gate = tl.load(p_gates + i_token * DEPTHS + depth, mask=m_token, other=0.0)
        i_chosen = tl.where(b_gate > 0.5, depth, i_chosen)
    return i_chosen


@triton.jit
def gated_answers_kernel(
    p_answers, p_gates, p_shift, p_y, tokens, columns, DEPTHS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """y[t] = answers[t, chosen] + shift[chosen]."""
    i_token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    m_token = i_token < tokens
    i_chosen = _chosen(p_gates, i_token, m_token, DEPTHS)
    i_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    m_y = m_token[:, None] & (i_column < columns)
    o_row = (i_token.to(tl.int64) * DEPTHS + i_chosen)[:, None] * columns
    b_y = tl.load(p_answers + o_row + i_column, mask=m_y, other=0.0).to(tl.float32)
    b_y += tl.load(p_shift + i_chosen[:, None] * columns + i_column, mask=m_y, other=0.0)
    tl.store(p_y + i_token.to(tl.int64)[:, None] * columns + i_column, b_y, mask=m_y)


@triton.jit
def answer_gradients_kernel(
    p_by_y, p_answers, p_gates, p_shift, p_by_answers, p_by_gates, tokens, columns,
    DEPTHS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Answers: that of y where chosen, else 0. Gates: y's gradient times what the depth would have answered."""
    i_token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    m_token = i_token < tokens
    i_chosen = _chosen(p_gates, i_token, m_token, DEPTHS)
    i_depth = tl.arange(0, DEPTHS)[None, :]
    b_by_gates = tl.zeros((TOKENS, DEPTHS), tl.float32)
    for first in range(0, columns, COLUMNS):
        i_column = first + tl.arange(0, COLUMNS)[None, :]
        m_y = m_token[:, None] & (i_column < columns)
        b_by_y = tl.load(p_by_y + i_token.to(tl.int64)[:, None] * columns + i_column, mask=m_y, other=0.0)
        for depth in tl.static_range(DEPTHS):
            o_answer = (i_token.to(tl.int64) * DEPTHS + depth)[:, None] * columns + i_column
            b_answer = tl.load(p_answers + o_answer, mask=m_y, other=0.0).to(tl.float32)
            b_answer += tl.load(p_shift + depth * columns + i_column, mask=i_column < columns, other=0.0)
            b_sum = tl.sum(b_answer * b_by_y, 1)[:, None]
            b_by_gates += tl.where(i_depth == depth, b_sum, 0.0)
            b_by_answer = tl.where((i_chosen == depth)[:, None], b_by_y, 0.0)
            tl.store(p_by_answers + o_answer, b_by_answer.to(p_by_answers.dtype.element_ty), mask=m_y)
    tl.store(p_by_gates + i_token[:, None] * DEPTHS + i_depth, b_by_gates, mask=m_token[:, None])


def forward(
    answers: Float[Tensor, "tokens depths out"],
    gates: Float[Tensor, "tokens depths"],
    shift: Float[Tensor, "depths out"],
) -> Float[Tensor, "tokens out"]:
    """The chosen answers in fp32; the number of depths is a power of two."""
    tokens, depths, columns = answers.shape
    y = torch.empty(tokens, columns, device=answers.device)
    gated_answers_kernel[(triton.cdiv(tokens, _TOKENS), triton.cdiv(columns, _COLUMNS))](
        answers, gates, shift, y, tokens, columns, DEPTHS=depths, TOKENS=_TOKENS, COLUMNS=_COLUMNS, num_warps=4
    )
    return y


def backward(
    by_y: Float[Tensor, "tokens out"],
    answers: Float[Tensor, "tokens depths out"],
    gates: Float[Tensor, "tokens depths"],
    shift: Float[Tensor, "depths out"],
) -> tuple[Float[Tensor, "tokens depths out"], Float[Tensor, "tokens depths"]]:
    """Gradients of (answers, gates)."""
    tokens, depths, columns = answers.shape
    by_answers, by_gates = torch.empty_like(answers), torch.empty_like(gates)
    answer_gradients_kernel[(triton.cdiv(tokens, _TOKENS),)](
        by_y, answers, gates, shift, by_answers, by_gates, tokens, columns,
        DEPTHS=depths, TOKENS=_TOKENS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return by_answers, by_gates
