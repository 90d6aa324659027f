"""What one lane of a warp does: wide loads, the 16 x 32 integer product, dependent launch.

Each exists twice: as inline assembly for NVIDIA cards from compute capability 8.0, and as plain Triton that means the
same (`ASM=False`), for the CPU interpreter and for cards without these instructions. Tensors here have one element per
thread in the last axis; the other axes are registers of that thread. It knows nothing of weights.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin_dependent(PDL: tl.constexpr):
    """Let the next kernel of the stream start now: it waits by itself before it reads what this one writes."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """From here on everything earlier kernels wrote is visible; constants may be read before."""
    if PDL:
        gdc_wait()


@triton.jit
def stream4(p, o, m, ASM: tl.constexpr, EARLY: tl.constexpr = False):
    """Four int32 at p + o of data that is read once and never changes; where m is 0 nothing is read.

    EARLY stays where it is written: the compiler moves reads of what never changes past waits.
    """
    if ASM:
        KIND: tl.constexpr = "" if EARLY else ".nc"
        return tl.inline_asm_elementwise(
            "{ .reg .pred q; setp.ne.b32 q, $5, 0; "
            "@q ld.global" + KIND + ".L1::no_allocate.L2::128B.v4.b32 {$0, $1, $2, $3}, [$4]; }",
            "=r,=r,=r,=r,l,r",
            [(p + o).to(tl.int64), m],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        b_mask = m != 0
        return (
            tl.load(p + o, mask=b_mask, other=0),
            tl.load(p + o + 1, mask=b_mask, other=0),
            tl.load(p + o + 2, mask=b_mask, other=0),
            tl.load(p + o + 3, mask=b_mask, other=0),
        )


@triton.jit
def stream2(p, o, m, ASM: tl.constexpr, EARLY: tl.constexpr = False):
    """Two int32 at p + o of data that is read once and never changes, or 0 where m is 0; EARLY as in `stream4`."""
    if ASM:
        KIND: tl.constexpr = "" if EARLY else ".nc"
        return tl.inline_asm_elementwise(
            "{ .reg .pred q; setp.ne.b32 q, $3, 0; mov.b32 $0, 0; mov.b32 $1, 0; "
            "@q ld.global" + KIND + ".L1::no_allocate.v2.b32 {$0, $1}, [$2]; }",
            "=&r,=&r,l,r",
            [(p + o).to(tl.int64), m],
            dtype=(tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        b_mask = m != 0
        return tl.load(p + o, mask=b_mask, other=0), tl.load(p + o + 1, mask=b_mask, other=0)


@triton.jit
def load4(p, o, ASM: tl.constexpr):
    """Four int32 at p + o of data that many warps share."""
    if ASM:
        return tl.inline_asm_elementwise(
            "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];",
            "=r,=r,=r,=r,l",
            [(p + o).to(tl.int64)],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    else:
        return tl.load(p + o), tl.load(p + o + 1), tl.load(p + o + 2), tl.load(p + o + 3)


@triton.jit
def load2_or_zero(p, o, m, ASM: tl.constexpr):
    """Two fp32 at p + o of data that many warps share, or 0 where m is 0."""
    if ASM:
        return tl.inline_asm_elementwise(
            "{ .reg .pred q; setp.ne.b32 q, $3, 0; mov.b32 $0, 0; mov.b32 $1, 0; @q ld.global.v2.b32 {$0, $1}, [$2]; }",
            "=&r,=&r,l,r",
            [(p + o).to(tl.int64), m],
            dtype=(tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        b_mask = m != 0
        return tl.load(p + o, mask=b_mask, other=0.0), tl.load(p + o + 1, mask=b_mask, other=0.0)


@triton.jit
def prefetch_l2(p, o, m, ASM: tl.constexpr):
    """Ask for the cache line at p + o to be brought into the L2 cache; a hint, so plain Triton does nothing."""
    if ASM:
        tl.inline_asm_elementwise(
            "{ .reg .pred q; setp.ne.b32 q, $2, 0; mov.b32 $0, 0; @q prefetch.global.L2 [$1]; }",
            "=&r,l,r",
            [(p + o).to(tl.int64), m],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def select_bits(b_on, b_off, MASK: tl.constexpr, ASM: tl.constexpr):
    """Bits of `b_on` where MASK has ones, else of `b_off`: one instruction, which the compiler makes two of."""
    if ASM:
        return tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xE4;",
            "=r,r,r,r",
            [b_on, b_off, MASK],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        return (b_on & MASK) | (b_off & ~MASK)


@triton.jit
def quad_sum(b_x, ASM: tl.constexpr):
    """Sums over each four lanes in a row, in all of them."""
    if ASM:
        for distance in tl.static_range(1, 3):
            b_x += tl.inline_asm_elementwise(
                "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;",
                "=r,r,r",
                [b_x, distance],
                dtype=tl.float32,
                is_pure=False,
                pack=1,
            )
        return b_x
    else:
        b_sum = tl.sum(tl.reshape(b_x, (b_x.numel // 4, 4)), axis=1, keep_dims=True)
        return tl.reshape(tl.broadcast_to(b_sum, (b_x.numel // 4, 4)), b_x.shape)


@triton.jit
def mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3, ASM: tl.constexpr):
    """Adds a 16 x 32 (uint8) by 32 x 8 (int8) product of a warp to c; fragments as in PTX `mma.m16n8k32`."""
    if ASM:
        return tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
            [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        d0, d1 = _product_8x8(a0, a2, b0, b1, c0)
        d2, d3 = _product_8x8(a1, a3, b0, b1, c0)
        return c0 + d0, c1 + d1, c2 + d2, c3 + d3


@triton.jit
def _product_8x8(a_low, a_high, b_low, b_high, like):
    """Eight rows by eight columns over 32 bytes; lane 4 i + j holds row i, columns 2 j and 2 j + 1."""
    WARPS: tl.constexpr = like.numel // 32
    i_bit = 8 * tl.arange(0, 4)[None, None, None, :]
    b_total = tl.zeros((WARPS, 8, 8), tl.int32)
    for half in tl.static_range(2):
        b_a = tl.broadcast_to(a_low if half == 0 else a_high, like.shape)
        b_b = tl.broadcast_to(b_low if half == 0 else b_high, like.shape)
        b_rows = tl.reshape((tl.reshape(b_a, (WARPS, 8, 4, 1)) >> i_bit) & 255, (WARPS, 8, 1, 16))
        b_columns = tl.reshape((tl.reshape(b_b, (WARPS, 8, 4, 1)) << (24 - i_bit)) >> 24, (WARPS, 1, 8, 16))
        b_total += tl.sum(b_rows * b_columns, axis=3)
    b_even, b_odd = tl.split(tl.reshape(b_total, (WARPS, 8, 4, 2)))
    return tl.reshape(b_even, like.shape), tl.reshape(b_odd, like.shape)


@triton.jit
def store4(p, o, v0, v1, v2, v3, m, ASM: tl.constexpr):
    """Writes four int32 at p + o where m is not 0."""
    if ASM:
        tl.inline_asm_elementwise(
            "{ .reg .pred q; setp.ne.b32 q, $6, 0; mov.b32 $0, 0; @q st.global.v4.b32 [$1], {$2, $3, $4, $5}; }",
            "=&r,l,r,r,r,r,r",
            [(p + o).to(tl.int64), v0, v1, v2, v3, m],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        b_mask = tl.broadcast_to(m != 0, o.shape)
        tl.store(p + o, v0, mask=b_mask)
        tl.store(p + o + 1, v1, mask=b_mask)
        tl.store(p + o + 2, v2, mask=b_mask)
        tl.store(p + o + 3, v3, mask=b_mask)


@triton.jit
def pair16(b_first, b_second, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Two fp32 rounded to a 16-bit type, the first in the low half of an int32."""
    if ASM:
        NAME: tl.constexpr = "bf16x2" if tl.bfloat16 == DTYPE else "f16x2"
        return tl.inline_asm_elementwise(
            "cvt.rn." + NAME + ".f32 $0, $2, $1;",
            "=r,r,r",
            [b_first, b_second],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        b_low = b_first.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return b_low | (b_second.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def rounded16(b_x, DTYPE: tl.constexpr):
    """fp32 rounded to a 16-bit type here and now: the compiler neither repeats what made it nor moves it elsewhere."""
    if tl.bfloat16 == DTYPE:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    else:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], dtype=tl.float16, is_pure=False, pack=2
        )
