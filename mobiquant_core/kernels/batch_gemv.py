"""Planes times 5 to 16 tokens, each at its own depth: they come sorted by depth, four to a tile (sorted_tokens.py).

Four tokens are as wide as one product of the tensor cores, and a depth is one mask over the merged codes. A loop is
compiled for every number of tiles: branches within it would make its products wait for the words of the next step. It
knows neither routers nor how the depths came about.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.code_products import load_planes
from mobiquant_core.kernels.group_sums import half_of
from mobiquant_core.kernels.lanes import begin_dependent, load4, mma, stream2, wait_for_inputs
from mobiquant_core.kernels.sorted_tokens import PLAN, SLOTS

_EVEN_PAIRS: tl.constexpr = tl.constexpr(0x33333333)
_ODD_PAIRS: tl.constexpr = tl.constexpr(-0x33333334)
_LOW_NIBBLES: tl.constexpr = tl.constexpr(0x0F0F0F0F)
_HIGH_NIBBLES: tl.constexpr = tl.constexpr(-0x0F0F0F10)
_TOP_PAIRS: tl.constexpr = tl.constexpr(-0x3F3F3F40)


@triton.jit
def _transposed(b_first, b_second, SHIFT: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Bit fields of two words swapped: the low fields of both, then the high ones, the first word's on top."""
    return (b_first << SHIFT) & HIGH | b_second & LOW, b_first & HIGH | (b_second >> SHIFT) & LOW


@triton.jit
def _word_codes(w, WORD: tl.constexpr, K: tl.constexpr):
    """Codes of one word's four fields, in the top 2 K bits of every byte: a transpose of pairs, then of nibbles."""
    if K == 1:
        b_word = w[WORD]
        return (b_word << 6) & _TOP_PAIRS, (b_word << 4) & _TOP_PAIRS, (b_word << 2) & _TOP_PAIRS, b_word & _TOP_PAIRS
    else:
        b_even, b_odd = _transposed(w[WORD], w[4 + WORD], 2, _EVEN_PAIRS, _ODD_PAIRS)
        if K == 2:
            return (
                (b_even << 4) & _HIGH_NIBBLES, (b_odd << 4) & _HIGH_NIBBLES, b_even & _HIGH_NIBBLES,
                b_odd & _HIGH_NIBBLES,
            )  # fmt: skip
        else:
            if K == 3:
                b_even_low, b_odd_low = (w[8 + WORD] << 2) & _ODD_PAIRS, w[8 + WORD] & _ODD_PAIRS
            else:
                b_even_low, b_odd_low = _transposed(w[8 + WORD], w[12 + WORD], 2, _EVEN_PAIRS, _ODD_PAIRS)
            b_code0, b_code2 = _transposed(b_even, b_even_low, 4, _LOW_NIBBLES, _HIGH_NIBBLES)
            b_code1, b_code3 = _transposed(b_odd, b_odd_low, 4, _LOW_NIBBLES, _HIGH_NIBBLES)
            return b_code0, b_code1, b_code2, b_code3


@triton.jit
def _codes(w, K: tl.constexpr):
    """The sixteen words of one group: code 4 * word + field."""
    return _word_codes(w, 0, K) + _word_codes(w, 1, K) + _word_codes(w, 2, K) + _word_codes(w, 3, K)


@triton.jit
def _tile_words(p_x, p_m, o_x, o_m, TILE: tl.constexpr, ASM: tl.constexpr):
    """What one tile needs of one group: eight words of activations, then scale, half a cell, sum, mask."""
    x = load4(p_x, o_x + TILE * 256, ASM) + load4(p_x, o_x + TILE * 256 + 128, ASM)
    return x + load4(p_m, o_m + TILE * 16, ASM)


@triton.jit
def _product(a, x, MIXED: tl.constexpr, b_zero, ASM: tl.constexpr):
    """Codes times the activation bytes of a tile of tokens: rows 0-7 by (high, low) bytes, then rows 8-15."""
    d0, d1, d2, d3 = b_zero, b_zero, b_zero, b_zero
    for field in tl.static_range(4):
        b0, b1, b2, b3 = a[field], a[4 + field], a[8 + field], a[12 + field]
        if MIXED:
            b0, b1, b2, b3 = b0 & x[11], b1 & x[11], b2 & x[11], b3 & x[11]
        d0, d1, d2, d3 = mma(b0, b1, b2, b3, x[2 * field], x[2 * field + 1], d0, d1, d2, d3, ASM)
    return d0, d1, d2, d3


@triton.jit
def _added(b_acc, b_range, b_high, b_low, b_scale, b_half, b_sum):
    """One group of one row: step * (codes * x + sum of x half a cell up) + edge * sum of x."""
    b_inner = (b_high * 256 + b_low).to(tl.float32) * b_scale + b_half
    return b_acc + half_of(b_range, False) * b_inner + half_of(b_range, True) * b_sum


@triton.jit
def _load_to(p_w, o_w, o_plane, m, deepest, K: tl.constexpr, MIXED: tl.constexpr, ASM: tl.constexpr):
    """A piece of every plane; with MIXED those beyond `deepest` are not read, and masks cut off what stands there."""
    if MIXED:
        w = load_planes(p_w, o_w, o_plane, m, 1, ASM)
        for plane in tl.static_range(1, K):
            w = w + load_planes(p_w, o_w + plane * o_plane, o_plane, m & (deepest > plane).to(tl.int32), 1, ASM)
        return w
    else:
        return load_planes(p_w, o_w, o_plane, m, K, ASM)


@triton.jit
def _sums(
    p_w, p_r, p_x, p_m, o_plane, NG, deepest, K: tl.constexpr, MIXED: tl.constexpr, TT: tl.constexpr,
    TILES: tl.constexpr, WARPS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Sums over this warp's groups: for every tile of tokens, rows 0-7 and rows 8-15 of its rows, [threads] each."""
    STEP: tl.constexpr = WARPS[1]
    i_thread = tl.arange(0, 32 * WARPS[0] * WARPS[1])
    i_lane, i_group = i_thread % 32, i_thread // 32 % WARPS[1]
    i_unit = (tl.program_id(0) * WARPS[0] + i_thread // (32 * WARPS[1])).to(tl.int64) * NG + i_group
    o_w, o_r = i_unit * 128 + i_lane * 4, i_unit * 16 + (i_lane // 4) * 2
    # Tiles of one group lie one behind the other: their places are constants the compiler folds into the loads.
    o_x = (i_group * (256 * TILES) + i_lane * 4).to(tl.int64)
    o_m = (i_group * (16 * TILES) + (i_lane % 4) * 4).to(tl.int64)
    b_zero = tl.zeros_like(i_lane)
    acc = ()
    for _ in tl.static_range(2 * TT):
        acc = acc + (b_zero.to(tl.float32),)  # noqa: RUF005
    m_now = (i_group < NG).to(tl.int32)
    w = _load_to(p_w, o_w, o_plane, m_now, deepest, K, MIXED, ASM)
    r = stream2(p_r, o_r, m_now, ASM)
    for i in range(tl.cdiv(NG, STEP)):
        # The words of the next step are on their way while those of this step are multiplied.
        m_next = (i_group + (i + 1) * STEP < NG).to(tl.int32)
        o_w += 128 * STEP
        o_r += 16 * STEP
        a = _codes(w, K)
        w = _load_to(p_w, o_w, o_plane, m_next, deepest, K, MIXED, ASM)
        r_next = stream2(p_r, o_r, m_next, ASM)
        new = ()
        for tile in tl.static_range(TT):
            x = _tile_words(p_x, p_m, o_x, o_m, tile, ASM)
            d = _product(a, x, MIXED, b_zero, ASM)
            b_scale, b_half = x[8].to(tl.float32, bitcast=True), x[9].to(tl.float32, bitcast=True)
            b_sum = x[10].to(tl.float32, bitcast=True)
            new = new + (_added(acc[2 * tile], r[0], d[0], d[1], b_scale, b_half, b_sum),)  # noqa: RUF005
            new = new + (_added(acc[2 * tile + 1], r[1], d[2], d[3], b_scale, b_half, b_sum),)  # noqa: RUF005
        acc = new
        r = r_next
        o_x += 256 * TILES * STEP
        o_m += 16 * TILES * STEP
    return acc


@triton.jit
def _halved(y, COUNT: tl.constexpr):
    """The first COUNT tensors, each joined with the one COUNT places on."""
    joined = ()
    for i in tl.static_range(COUNT):
        joined = joined + (tl.join(y[i], y[COUNT + i]),)  # noqa: RUF005
    return joined


@triton.jit
def _by_slot(y, WARPS: tl.constexpr):
    """Adds up the warps: [tiles of rows, 16 slots, 16 rows] from two tensors for each of four tiles of tokens."""
    y = _halved(_halved(_halved(y, 4), 2), 1)
    b_y = tl.sum(tl.reshape(y[0], (WARPS[0], WARPS[1], 32, 8)), 1)
    b_y = tl.permute(tl.reshape(b_y, (WARPS[0], 8, 4, 4, 2)), (0, 3, 2, 4, 1))
    return tl.reshape(b_y, (WARPS[0], 16, 16))


@triton.jit
def _store(p_y, p_bias, p_shift, p_gain, p_plan, b_y, rows, FIRST: tl.constexpr, ADD: tl.constexpr,
           WARPS: tl.constexpr):  # fmt: skip
    """Gain, bias and shift of every slot's depth; adds what is already in y if asked."""
    i_slot = FIRST + tl.arange(0, 16)[None, :, None]
    i_row = (tl.program_id(0) * WARPS[0] + tl.arange(0, WARPS[0])[:, None, None]) * 16 + tl.arange(0, 16)[None, None, :]
    i_token = tl.load(p_plan + i_slot)
    m_row = i_row < rows
    m_y = (i_token >= 0) & m_row
    o_y = i_token.to(tl.int64) * rows + i_row
    o_own = (tl.load(p_plan + SLOTS + i_slot) - 1) * rows + i_row
    if p_gain is not None:
        b_y *= tl.load(p_gain + o_own, mask=m_y, other=0.0).to(tl.float32)
    if p_bias is not None:
        b_y += tl.load(p_bias + i_row, mask=m_row, other=0.0).to(tl.float32)
    if p_shift is not None:
        b_y += tl.load(p_shift + o_own, mask=m_y, other=0.0).to(tl.float32)
    if ADD:
        b_y += tl.load(p_y + o_y, mask=m_y, other=0.0).to(tl.float32)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def batch_gemv_kernel(
    p_w, p_r, p_x, p_m, p_plan, p_y, p_bias, p_shift, p_gain, o_plane, NG, padded, rows, end0, end1,
    TT: tl.constexpr, SLICES: tl.constexpr, WARPS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """y[t] = W_depth[t] x[t] for some tiles of 16 rows.

    TT: tiles of tokens at one depth. WARPS: (tiles of rows, warps that share the groups of one tile).
    FLAGS: (add to y, dependent launch, inline assembly).
    """
    TILES: tl.constexpr = TT + SLICES - 1
    begin_dependent(FLAGS[1])
    wait_for_inputs(FLAGS[1])
    first_tile = tl.program_id(0) * WARPS[0]
    section = (first_tile >= end0).to(tl.int32) + (first_tile >= end1).to(tl.int32)
    p_plan += section * PLAN
    p_x += section * padded * (256 * TILES)
    p_m += section * padded * (16 * TILES)
    tiles, deepest = tl.load(p_plan + 2 * SLOTS), tl.load(p_plan + 2 * SLOTS + 1)
    only = tl.load(p_plan + 2 * SLOTS + 2)
    # Plane offsets in words may pass 2^31.
    o_plane = o_plane.to(tl.int64)
    y = ()
    for _ in tl.static_range(16):
        y = y + (tl.zeros((32 * WARPS[0] * WARPS[1],), tl.float32),)  # noqa: RUF005
    none = y
    for k in tl.static_range(1, SLICES + 1):
        if only == k:
            y = _sums(p_w, p_r, p_x, p_m, o_plane, NG, deepest, k, False, TT, TILES, WARPS, FLAGS[2]) + none[2 * TT :]
    for more in tl.static_range(SLICES):
        if (only == 0) & (tl.maximum(tiles, TT) == TT + more):
            y = _sums(p_w, p_r, p_x, p_m, o_plane, NG, deepest, SLICES, True, TT + more, TILES, WARPS,
                      FLAGS[2]) + none[2 * (TT + more) :]  # fmt: skip
    for first in tl.static_range(0, TILES, 4):
        if tiles > first:
            b_y = _by_slot(y[2 * first : 2 * first + 8], WARPS)
            _store(p_y, p_bias, p_shift, p_gain, p_plan, b_y, rows, 4 * first, FLAGS[0], WARPS)
