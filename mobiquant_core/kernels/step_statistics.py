"""What a trace keeps of a decode step, taken on the device: magnitudes of the residual stream, the likeliest tokens.

Three launches, all exact: medians are found bit by bit among the magnitudes' patterns. It knows one token at a time.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_BLOCK = 2048
ROW: tl.constexpr = tl.constexpr(4)
"""Numbers of a residual row: the three largest magnitudes, then the median."""


@triton.jit
def residual_kernel(p_h, p_out, width, BLOCK: tl.constexpr):
    """The three largest |h| and the lower median of one row."""
    i_row = tl.program_id(0)
    i_column = tl.arange(0, BLOCK)
    m_column = i_column < width
    b_h = tl.abs(tl.load(p_h + i_row * width + i_column, mask=m_column, other=0.0))
    # The patterns of numbers that are not negative are in the order of the numbers.
    b_left = tl.where(m_column, b_h.to(tl.int32, bitcast=True), -1)
    b_bits = b_left
    p_out += i_row * ROW
    for i in tl.static_range(3):
        tl.store(p_out + i, tl.max(b_left, 0).to(tl.float32, bitcast=True))
        b_left = tl.where(i_column == tl.argmax(b_left, 0), -1, b_left)
    before = (width - 1) // 2
    median, bit = 0, 1 << 30
    for _ in range(31):
        candidate = median | bit
        below = tl.sum((m_column & (b_bits < candidate)).to(tl.int32), 0)
        median = tl.where(below <= before, candidate, median)
        bit = bit >> 1
    tl.store(p_out + 3, median.to(tl.float32, bitcast=True))


@triton.jit
def logits_kernel(p_logits, p_copy, p_sums, p_values, p_ids, vocabulary, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """A part of the logits: its fp32 copy, (largest, sum of exponentials), and its TOP largest with their ids."""
    i_part = tl.program_id(0)
    i_token = i_part * BLOCK + tl.arange(0, BLOCK)
    m_token = i_token < vocabulary
    b_logit = tl.load(p_logits + i_token, mask=m_token, other=float("-inf")).to(tl.float32)
    tl.store(p_copy + i_token, b_logit, mask=m_token)
    best = tl.max(b_logit, 0)
    tl.store(p_sums + 2 * i_part, best)
    tl.store(p_sums + 2 * i_part + 1, tl.sum(tl.exp(b_logit - best), 0))
    for i in tl.static_range(TOP):
        chosen = tl.argmax(b_logit, 0)
        tl.store(p_values + i_part * TOP + i, tl.max(b_logit, 0))
        tl.store(p_ids + i_part * TOP + i, i_part * BLOCK + chosen)
        b_logit = tl.where(i_token == i_part * BLOCK + chosen, float("-inf"), b_logit)


@triton.jit
def merge_kernel(
    p_sums, p_values, p_ids, p_out, parts, TOP: tl.constexpr, PARTS: tl.constexpr, CANDIDATES: tl.constexpr
):
    """(log of the sum of exponentials, TOP largest, their ids) out of all parts."""
    i_part, i_candidate = tl.arange(0, PARTS), tl.arange(0, CANDIDATES)
    m_part, m_candidate = i_part < parts, i_candidate < parts * TOP
    b_best = tl.load(p_sums + 2 * i_part, mask=m_part, other=float("-inf"))
    b_sum = tl.load(p_sums + 2 * i_part + 1, mask=m_part, other=0.0)
    best = tl.max(b_best, 0)
    tl.store(p_out, best + tl.log(tl.sum(b_sum * tl.exp(b_best - best), 0)))
    b_value = tl.load(p_values + i_candidate, mask=m_candidate, other=float("-inf"))
    for i in tl.static_range(TOP):
        chosen = tl.argmax(b_value, 0)
        tl.store(p_out + 1 + i, tl.max(b_value, 0))
        tl.store(p_out + 1 + TOP + i, tl.load(p_ids + chosen).to(tl.float32))
        b_value = tl.where(i_candidate == chosen, float("-inf"), b_value)


def residual_statistics(residuals: Float[Tensor, "rows channels"], out: Float[Tensor, "rows 4"]) -> None:
    """Each row's three largest |h| and its median."""
    rows, width = residuals.shape
    block = triton.next_power_of_2(width)
    residual_kernel[(rows,)](residuals, out, width, BLOCK=block, num_warps=max(4, min(block // 512, 16)))


class LogitStatistics:
    """Scratch for one vocabulary, and the two launches that use it."""

    def __init__(self, vocabulary: int, top: int, device: torch.device) -> None:
        self.vocabulary, self.top = vocabulary, top
        self._parts = triton.cdiv(vocabulary, _BLOCK)
        self._sums = torch.zeros(self._parts, 2, device=device)
        self._values = torch.zeros(self._parts, top, device=device)
        self._ids = torch.zeros(self._parts, top, dtype=torch.int32, device=device)

    @property
    def numbers(self) -> int:
        """Size of what `take` writes: log of the sum of exponentials, largest logits, their ids (exact in fp32)."""
        return 1 + 2 * self.top

    def take(
        self, logits: Float[Tensor, " vocabulary"], copy: Float[Tensor, " vocabulary"], out: Float[Tensor, " numbers"]
    ) -> None:
        """The numbers into `out`, the logits as fp32 into `copy`."""
        logits_kernel[(self._parts,)](
            logits, copy, self._sums, self._values, self._ids, self.vocabulary, TOP=self.top, BLOCK=_BLOCK, num_warps=8
        )
        padded = triton.next_power_of_2(self._parts)
        merge_kernel[(1,)](
            self._sums, self._values, self._ids, out, self._parts, TOP=self.top, PARTS=padded,
            CANDIDATES=triton.next_power_of_2(self._parts * self.top), num_warps=4,
        )  # fmt: skip
