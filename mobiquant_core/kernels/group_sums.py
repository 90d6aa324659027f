"""What one group adds to a row: integer sums of codes times bytes, on that row's range. It knows no layout."""

import triton
import triton.language as tl


@triton.jit
def half_of(b_range, HIGH: tl.constexpr):
    """One of two fp16 numbers of a word, as fp32."""
    b_bits = (b_range >> 16) if HIGH else b_range & 0xFFFF
    return b_bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def add_group(b_acc, b_range, b_high, b_low, b_scale, b_sum, b_middle):
    """Adds one group of one row: step * codes * x, and edge plus half a cell times the sum of x."""
    b_step, b_edge = half_of(b_range, False), half_of(b_range, True)
    b_acc += b_step * ((b_high * 256 + b_low).to(tl.float32) * b_scale)
    return b_acc + (b_edge + b_step * b_middle) * b_sum
