"""The small ends of a decode step: the embedding, and the input of a dense product."""

import triton
import triton.language as tl

from mobiquant_core.kernels.lanes import begin_dependent, wait_for_inputs
from mobiquant_core.kernels.route import NORM, site_inputs


@triton.jit
def embed_kernel(p_table, p_token, p_h, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """h = table[token]."""
    begin_dependent(PDL)
    wait_for_inputs(PDL)
    i_column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(p_token).to(tl.int64)
    b_h = tl.load(p_table + token * width + i_column, mask=i_column < width, other=0.0)
    tl.store(p_h + i_column, b_h.to(p_h.dtype.element_ty), mask=i_column < width)


@triton.jit
def dense_input_kernel(
    p_h, p_norm, p_out, p_copy, width, eps, MODE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """A site's input in 16 bits, for dense products; modes and the copy as in route.py."""
    begin_dependent(PDL)
    i_column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_norm = 1.0
    if MODE == NORM:
        b_norm = tl.load(p_norm + i_column, mask=i_column < width, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    if MODE == NORM:
        b_sum = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, width, BLOCK):
            i_any = first + tl.arange(0, BLOCK)
            b_h = tl.load(p_h + i_any, mask=i_any < width, other=0.0).to(tl.float32)
            b_sum += b_h * b_h
        if p_copy is not None:
            tl.store(
                p_copy + i_column, tl.load(p_h + i_column, mask=i_column < width, other=0.0), mask=i_column < width
            )
        b_norm *= tl.rsqrt(tl.sum(b_sum, 0) / width + eps)
    b_x = site_inputs(p_h, b_norm, i_column, width, MODE)
    tl.store(p_out + i_column, b_x.to(p_out.dtype.element_ty), mask=i_column < width)
