"""What a trace keeps of a decode step's residual stream, taken on the device.

Exact: medians are found bit by bit among the magnitudes' patterns. It knows one token at a time.
"""

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

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


def residual_statistics(residuals: Float[Tensor, "rows channels"], out: Float[Tensor, "rows 4"]) -> None:
    """Each row's three largest |h| and its median."""
    rows, width = residuals.shape
    block = triton.next_power_of_2(width)
    residual_kernel[(rows,)](residuals, out, width, BLOCK=block, num_warps=max(4, min(block // 512, 16)))
