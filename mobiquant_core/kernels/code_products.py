"""Codes out of the words of planes, and their integer products with the activation bytes of one group.

A word holds a two-bit field of each of four bytes per shift; codes of several slices are put together from as many
planes. It knows neither scales nor where anything lies in memory.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.lanes import mma, select_bits, stream4

_LOW: tl.constexpr = tl.constexpr(0x03030303)
# Field 2 of every byte, the upper field of each nibble, the lower and the upper nibble. Masks above 2^31 have to be
# written as the negative number with the same bits.
_FIELD_2: tl.constexpr = tl.constexpr(0x30303030)
_UPPER_FIELDS: tl.constexpr = tl.constexpr(-0x33333334)
_LOWER: tl.constexpr = tl.constexpr(0x0F0F0F0F)
_UPPER: tl.constexpr = tl.constexpr(-0x0F0F0F10)


@triton.jit
def _cut(b_word, FIELD: tl.constexpr, TARGET: tl.constexpr):
    """Two-bit field FIELD of every byte, moved to bit TARGET of that byte."""
    # Masks above 2^31 have to be written as the negative number with the same bits.
    MASK: tl.constexpr = _LOW * (1 << TARGET) if TARGET < 6 else -0x3F3F3F40
    if 2 * FIELD >= TARGET:
        return (b_word >> (2 * FIELD - TARGET)) & MASK
    else:
        return (b_word << (TARGET - 2 * FIELD)) & MASK


@triton.jit
def merged(w, WORD: tl.constexpr, FIELD: tl.constexpr, K: tl.constexpr):
    """Codes of K slices in the four bytes of a word, most significant slice first."""
    b_code = _cut(w[WORD], FIELD, 2 * (K - 1))
    if K > 1:
        b_code |= _cut(w[4 + WORD], FIELD, 2 * (K - 2))
    if K > 2:
        b_code |= _cut(w[8 + WORD], FIELD, 2 * (K - 3))
    if K > 3:
        b_code |= _cut(w[12 + WORD], FIELD, 2 * (K - 4))
    return b_code


@triton.jit
def _keep(b_code, DROP: tl.constexpr):
    """Bytes without the bits of their last DROP slices."""
    return b_code & (0x01010101 * (256 - (1 << (2 * DROP))) - 0x100000000)


@triton.jit
def load_planes(p_w, o_w, o_plane, m, K: tl.constexpr, ASM: tl.constexpr, EARLY: tl.constexpr = False):
    """One 16-byte piece of each of the first K planes, as 4 K words; EARLY as in `stream4`."""
    w = stream4(p_w, o_w, m, ASM, EARLY)
    for plane in tl.static_range(1, K):
        w = w + stream4(p_w, o_w + plane * o_plane, m, ASM, EARLY)
    return w


@triton.jit
def _nibbles(w, WORD: tl.constexpr, PLANE: tl.constexpr, K: tl.constexpr, ASM: tl.constexpr):
    """Codes of planes PLANE and PLANE + 1 as nibbles: fields (0, 2), then (1, 3) of every byte. A plane beyond the K-th
    counts as zeros."""
    b_first = w[4 * PLANE + WORD]
    if PLANE + 1 < K:
        b_second = w[4 * PLANE + 4 + WORD]
        return (
            select_bits(b_first << 2, b_second, _UPPER_FIELDS, ASM),
            select_bits(b_first, b_second >> 2, _UPPER_FIELDS, ASM),
        )
    else:
        return (b_first << 2) & _UPPER_FIELDS, b_first & _UPPER_FIELDS


@triton.jit
def _code_bytes(w, WORD: tl.constexpr, K: tl.constexpr, ASM: tl.constexpr):
    """Codes of K slices, a word for each of fields 0 to 3. Two fields share a shift, so they come larger than codes
    are: up to depth 2 fields 2 and 3 times 16, at depth 3 all times 4."""
    if K == 1:
        b_odd = w[WORD] >> 2
        return w[WORD] & _LOW, b_odd & _LOW, w[WORD] & _FIELD_2, b_odd & _FIELD_2
    else:
        b_even, b_odd = _nibbles(w, WORD, 0, K, ASM)
        if K == 2:
            return b_even & _LOWER, b_odd & _LOWER, b_even & _UPPER, b_odd & _UPPER
        else:
            b_even2, b_odd2 = _nibbles(w, WORD, 2, K, ASM)
            return (
                select_bits(b_even << 4, b_even2, _UPPER, ASM),
                select_bits(b_odd << 4, b_odd2, _UPPER, ASM),
                select_bits(b_even, b_even2 >> 4, _UPPER, ASM),
                select_bits(b_odd, b_odd2 >> 4, _UPPER, ASM),
            )


@triton.jit
def _add_field(a, x, d, FIELD: tl.constexpr, ASM: tl.constexpr):
    return mma(
        a[FIELD], a[4 + FIELD], a[8 + FIELD], a[12 + FIELD], x[2 * FIELD], x[2 * FIELD + 1], d[0], d[1], d[2], d[3], ASM
    )  # fmt: skip


@triton.jit
def products(w, x, b_zero, K: tl.constexpr, ASM: tl.constexpr, FIRST: tl.constexpr = 0):
    """Codes times activation bytes of one group: rows 0-7 by (high, low) bytes, then rows 8-15; times 16 up to depth 2,
    times 4 at depth 3. FIRST: where in w the words of the group begin."""
    a = ()
    for word in tl.static_range(FIRST, FIRST + 4):
        a = a + _code_bytes(w, word, K, ASM)
    zero = (b_zero, b_zero, b_zero, b_zero)
    d = _add_field(a, x, _add_field(a, x, zero, 0, ASM), 1, ASM)
    if K <= 2:
        e = _add_field(a, x, _add_field(a, x, zero, 2, ASM), 3, ASM)
        return d[0] * 16 + e[0], d[1] * 16 + e[1], d[2] * 16 + e[2], d[3] * 16 + e[3]
    else:
        return _add_field(a, x, _add_field(a, x, d, 2, ASM), 3, ASM)


@triton.jit
def mixed_products(w, x, present, b_depth, b_zero, K: tl.constexpr, ASM: tl.constexpr):
    """Codes times activation bytes of one group: rows 0-7 by (high, low) bytes, then rows 8-15; tokens of a smaller
    depth see the same bytes without their low bits, and are silenced at the others."""
    d0, d1, d2, d3 = b_zero, b_zero, b_zero, b_zero
    a = ()
    for field in tl.static_range(4):
        # Triton joins tuples, but does not unpack them in place.
        a = a + (merged(w, 0, field, K), merged(w, 1, field, K), merged(w, 2, field, K), merged(w, 3, field, K))  # noqa: RUF005
    for depth in tl.static_range(1, K + 1):
        if (present >> depth) & 1 != 0:
            b_on = b_depth == depth
            for field in tl.static_range(4):
                d0, d1, d2, d3 = mma(
                    _keep(a[4 * field], K - depth), _keep(a[4 * field + 1], K - depth),
                    _keep(a[4 * field + 2], K - depth), _keep(a[4 * field + 3], K - depth),
                    tl.where(b_on, x[2 * field], 0), tl.where(b_on, x[2 * field + 1], 0), d0, d1, d2, d3, ASM,
                )  # fmt: skip
    return d0, d1, d2, d3
