"""The likeliest tokens of a vocabulary in order, and the next token drawn from them, without leaving the device.

Three launches, all exact: the least logit that belongs to them is found bit by bit. It knows one prediction at a time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

_BLOCK = tl.constexpr(2048)
HEAD = tl.constexpr(2)
"""Numbers of a prediction before its candidates: log of the sum of all exponentials, the token that was drawn."""


@triton.jit
def _keys(b):
    """fp32 numbers as unsigned ones in the same order."""
    b_bits = b.to(tl.int32, bitcast=True)
    return (b_bits ^ ((b_bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@triton.jit
def _store_largest(b_value, b_id, m_valid, count, p_values, p_ids, MOST: tl.constexpr):
    """The `count` largest, in no order, in the first places; of equal ones those that come first. -inf behind them."""
    b_key = tl.where(m_valid, _keys(b_value), 0)
    least, bit = tl.full((), 0, tl.uint32), tl.full((), 1 << 31, tl.uint32)
    for _ in range(32):
        candidate = least | bit
        least = tl.where(tl.sum((b_key >= candidate).to(tl.int32), 0) >= count, candidate, least)
        bit = bit >> 1
    b_above, b_equal = (m_valid & (b_key > least)).to(tl.int32), (m_valid & (b_key == least)).to(tl.int32)
    b_place = tl.where(b_above > 0, tl.cumsum(b_above, 0), tl.sum(b_above, 0) + tl.cumsum(b_equal, 0)) - 1
    m_kept = (b_above + b_equal > 0) & (b_place < count)
    tl.store(p_values + b_place, b_value, mask=m_kept)
    tl.store(p_ids + b_place, b_id, mask=m_kept)
    i_free = tl.arange(0, MOST)
    tl.store(p_values + i_free, float("-inf"), mask=i_free >= count)


@triton.jit
def parts_kernel(p_logits, p_sums, p_values, p_ids, vocabulary, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """Of a part of the logits: (largest, sum of exponentials), and its MOST largest."""
    i_part = tl.program_id(0)
    i_token = i_part * BLOCK + tl.arange(0, BLOCK)
    m_token = i_token < vocabulary
    b_logit = tl.load(p_logits + i_token, mask=m_token, other=float("-inf")).to(tl.float32)
    best = tl.max(b_logit, 0)
    tl.store(p_sums + 2 * i_part, best)
    tl.store(p_sums + 2 * i_part + 1, tl.sum(tl.exp(b_logit - best), 0))
    count = tl.minimum(MOST, vocabulary - i_part * BLOCK)
    _store_largest(b_logit, i_token, m_token, count, p_values + i_part * MOST, p_ids + i_part * MOST, MOST)


@triton.jit
def merge_kernel(
    p_sums, p_values, p_ids, p_largest, p_largest_ids, p_out, parts, count, MOST: tl.constexpr, PARTS: tl.constexpr
):
    """The `count` largest of all parts, and the log of the sum of all exponentials."""
    i_part, i_candidate = tl.arange(0, PARTS), tl.arange(0, PARTS * MOST)
    m_part, m_candidate = i_part < parts, i_candidate < parts * MOST
    b_best = tl.load(p_sums + 2 * i_part, mask=m_part, other=float("-inf"))
    b_sum = tl.load(p_sums + 2 * i_part + 1, mask=m_part, other=0.0)
    best = tl.max(b_best, 0)
    tl.store(p_out, best + tl.log(tl.sum(b_sum * tl.exp(b_best - best), 0)))
    b_value = tl.load(p_values + i_candidate, mask=m_candidate, other=float("-inf"))
    b_id = tl.load(p_ids + i_candidate, mask=m_candidate, other=0)
    # Places behind the last token of a part hold no candidate.
    m_candidate = m_candidate & (b_value != float("-inf"))
    _store_largest(b_value, b_id, m_candidate, count, p_largest, p_largest_ids, MOST)


@triton.jit
def draw_kernel(
    p_largest, p_ids, p_out, p_token, p_position, p_history, p_settings, p_uniform, count, MOST: tl.constexpr
):
    """Candidates in falling order, of equal ones the lowest id first; and the next token, drawn from the first of them.

    settings: (temperature, how many may be drawn); at temperature 0 the first is taken. The number in [0, 1) that
    decides belongs to the position. It moves the position on and writes the history.
    """
    i = tl.arange(0, MOST)
    m = i < count
    b_value = tl.load(p_largest + i, mask=m, other=float("-inf"))
    b_id = tl.load(p_ids + i, mask=m, other=0x7FFFFFFF)
    b_before = (b_value[None, :] > b_value[:, None]) | (
        (b_value[None, :] == b_value[:, None]) & (b_id[None, :] < b_id[:, None])
    )
    b_rank = tl.sum(b_before.to(tl.int32), 1)
    tl.store(p_out + HEAD + b_rank, b_value, mask=m)
    tl.store(p_out + HEAD + count + b_rank, b_id.to(tl.float32), mask=m)
    temperature, most = tl.load(p_settings), tl.load(p_settings + 1)
    position = tl.load(p_position)
    choice = 0
    if temperature > 0:
        b_share = tl.exp((b_value - tl.max(b_value, 0)) / temperature)
        b_share = tl.where(m & (b_rank.to(tl.float32) < most), b_share, 0.0)
        # Of each candidate: what it and those before it have together.
        b_until = tl.sum(tl.where(b_before, b_share[None, :], 0.0), 1) + b_share
        bound = tl.load(p_uniform + position) * tl.sum(b_share, 0)
        passed = tl.sum(((b_share > 0) & (b_until <= bound)).to(tl.int32), 0)
        choice = tl.minimum(passed, tl.sum((b_share > 0).to(tl.int32), 0) - 1)
    token = tl.sum(tl.where(m & (b_rank == choice), b_id, 0), 0)
    tl.store(p_out + 1, token.to(tl.float32))
    tl.store(p_token, token.to(tl.int64))
    tl.store(p_history + position + 1, token.to(tl.int64))
    tl.store(p_position, position + 1)


@dataclass(frozen=True)
class Candidates:
    """Scratch for predictions over one vocabulary."""

    vocabulary: int
    most: int
    """How many are kept, a power of two."""
    sums: Float[Tensor, "parts 2"]
    values: Float[Tensor, "parts most"]
    ids: Int32[Tensor, "parts most"]
    largest: Float[Tensor, " most"]
    largest_ids: Int32[Tensor, " most"]

    @classmethod
    def empty(cls, vocabulary: int, most: int, device: torch.device) -> "Candidates":
        parts = triton.cdiv(vocabulary, _BLOCK.value)

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        whole = (zeros(parts, 2), zeros(parts, most), zeros(parts, most, dtype=torch.int32))
        return cls(vocabulary, most, *whole, zeros(most), zeros(most, dtype=torch.int32))

    @property
    def count(self) -> int:
        return min(self.most, self.vocabulary)

    @property
    def numbers(self) -> int:
        """Size of a prediction: its head, the largest logits in falling order, their ids (exact below 2^24)."""
        return HEAD.value + 2 * self.count

    def find(self, logits: Float[Tensor, " vocabulary"], out: Float[Tensor, " numbers"]) -> None:
        """The candidates, for `draw` to put in order; into `out` the log of the sum of all exponentials."""
        parts = len(self.sums)
        parts_kernel[(parts,)](
            logits, self.sums, self.values, self.ids, self.vocabulary, MOST=self.most, BLOCK=_BLOCK.value, num_warps=8
        )
        padded = triton.next_power_of_2(parts)
        merge_kernel[(1,)](
            self.sums, self.values, self.ids, self.largest, self.largest_ids, out, parts, self.count,
            MOST=self.most, PARTS=padded, num_warps=max(4, min(padded * self.most // 256, 16)),
        )  # fmt: skip

    def draw(
        self,
        out: Float[Tensor, " numbers"],
        token: Tensor,
        position: Tensor,
        history: Tensor,
        settings: Float[Tensor, "2"],
        uniforms: Float[Tensor, " room"],
    ) -> None:
        """The rest of `out`, and the next token, into `token` and `history`; the position moves on."""
        draw_kernel[(1,)](
            self.largest, self.largest_ids, out, token, position, history, settings, uniforms, self.count,
            MOST=self.most, num_warps=4,
        )  # fmt: skip
