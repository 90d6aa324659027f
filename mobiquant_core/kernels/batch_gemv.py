"""Planes times 2 to 16 tokens, each at its own depth: the tokens are sorted by depth, four to a tile.

Four tokens are as wide as one product of the tensor cores. Every tile holds tokens of one depth, places left over stay
empty, so 16 tokens make 4 to 7 tiles, and a depth is one mask over the merged codes. A loop is compiled for every
number of tiles: branches within it would make its products wait for the words of the next step. It knows neither
routers nor how the depths came about.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.lanes import (
    begin_dependent,
    load2_or_zero,
    load4,
    mma,
    stream2,
    wait_for_inputs,
)
from mobiquant_core.kernels.plane_gemv import half_of, load_planes

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
def _product(a, x, mask, MIXED: tl.constexpr, b_zero, ASM: tl.constexpr):
    """Codes times the activation bytes of a tile of tokens: rows 0-7 by (high, low) bytes, then rows 8-15."""
    d0, d1, d2, d3 = b_zero, b_zero, b_zero, b_zero
    for field in tl.static_range(4):
        b0, b1, b2, b3 = a[field], a[4 + field], a[8 + field], a[12 + field]
        if MIXED:
            b0, b1, b2, b3 = b0 & mask, b1 & mask, b2 & mask, b3 & mask
        d0, d1, d2, d3 = mma(b0, b1, b2, b3, x[2 * field], x[2 * field + 1], d0, d1, d2, d3, ASM)
    return d0, d1, d2, d3


@triton.jit
def _added(b_acc, b_range, b_high, b_low, b_scale, b_half, b_sum):
    """One group of one row: step * (codes * x + sum of x half a cell up) + edge * sum of x."""
    b_inner = (b_high * 256 + b_low).to(tl.float32) * b_scale + b_half
    return b_acc + half_of(b_range, False) * b_inner + half_of(b_range, True) * b_sum


@triton.jit
def _sums(
    p_w, p_r, p_x, p_m, o_plane, NG, tokens, order, counts, K: tl.constexpr, MIXED: tl.constexpr, U: tl.constexpr,
    TT: tl.constexpr, WARPS: tl.constexpr, POWER: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Sums over this warp's groups: for every tile of tokens, rows 0-7 and rows 8-15 of its rows, [threads] each."""
    THREADS: tl.constexpr = 32 * WARPS[0] * WARPS[1]
    STEP: tl.constexpr = WARPS[1] * U
    EVEN: tl.constexpr = POWER % STEP == 0
    i_thread = tl.arange(0, THREADS)[None, :]
    i_lane, i_own = i_thread % 32, tl.arange(0, U)[:, None]
    i_tile = tl.program_id(0) * WARPS[0] + i_thread // (32 * WARPS[1])
    i_group = (i_thread // 32 % WARPS[1]) * U
    i_unit = i_tile.to(tl.int64) * NG + i_group
    o_w, o_r = i_unit * 128 + i_lane * 4, i_unit * 16 + (i_lane // 4) * 2
    b_zero = tl.zeros((U, THREADS), tl.int32)
    o_x, o_m, masks, middles, acc = (), (), (), (), ()
    deepest = 1
    for tile in tl.static_range(TT):
        depth, first, _ = _tile_of(counts, tile)
        o_x = o_x + ((_token_at(order, first + i_lane // 8, tokens) * NG + i_group) * 64 + (i_lane % 8) * 4,)  # noqa: RUF005
        o_m = o_m + ((_token_at(order, first + i_lane % 4, tokens) * NG + i_group) * 2,)  # noqa: RUF005
        masks = masks + (_mask_of(depth),)  # noqa: RUF005
        middles = middles + (((128 - 2 * depth) << 23).to(tl.float32, bitcast=True),)  # noqa: RUF005
        acc = acc + (b_zero.to(tl.float32), b_zero.to(tl.float32))  # noqa: RUF005
        deepest = depth
    m_now = tl.broadcast_to((i_group + i_own < NG).to(tl.int32), (U, THREADS))
    w = _load_to(p_w, o_w + i_own * 128, o_plane, m_now, deepest, K, MIXED, ASM)
    r = stream2(p_r, o_r + i_own * 16, m_now, ASM)
    steps = tl.cdiv(NG, STEP)
    for i in range(steps):
        # The words of the next step are on their way while those of this step are multiplied.
        m_next = (i + 1 < steps).to(tl.int32) if EVEN else (i_group + i_own + (i + 1) * STEP < NG).to(tl.int32)
        m_next = tl.broadcast_to(m_next, (U, THREADS))
        o_w += 128 * STEP
        o_r += 16 * STEP
        a = _codes(w, K)
        w = _load_to(p_w, o_w + i_own * 128, o_plane, m_next, deepest, K, MIXED, ASM)
        r_next = stream2(p_r, o_r + i_own * 16, m_next, ASM)
        i_step = i * STEP + i_own
        m_here = tl.full((U, THREADS), 1, tl.int32)
        if not EVEN:
            m_here = (i_group + i_step < NG).to(tl.int32)
            i_step = tl.where(m_here != 0, i_step, -i_group)
        new = ()
        for tile in tl.static_range(TT):
            o_here = o_x[tile] + i_step * 64
            x = load4(p_x, o_here, ASM) + load4(p_x, o_here + 32, ASM)
            b_scale, b_sum = load2_or_zero(p_m, o_m[tile] + i_step * 2, m_here, ASM)
            d = _product(a, x, masks[tile], MIXED, b_zero, ASM)
            # Codes stand at the top of their bytes, so a step of every depth is the first slice's over 64.
            b_scale *= 0.015625
            b_half = b_sum * middles[tile]
            new = new + (_added(acc[2 * tile], r[0], d[0], d[1], b_scale, b_half, b_sum),)  # noqa: RUF005
            new = new + (_added(acc[2 * tile + 1], r[1], d[2], d[3], b_scale, b_half, b_sum),)  # noqa: RUF005
        acc = new
        r = r_next
    y = ()
    for i in tl.static_range(2 * TT):
        y = y + (tl.sum(acc[i], 0),)  # noqa: RUF005
    return y


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
def _sorted(p_depth, tokens, TOKENS: tl.constexpr):
    """Counting sort in scalars: (tokens from shallow to deep, four bits each; how many have each depth, in bytes)."""
    counts = tl.load(p_depth).to(tl.int32) * 0
    for i in tl.static_range(TOKENS):
        counts += 1 << (8 * (tl.load(p_depth + tl.minimum(i, tokens - 1)).to(tl.int32) - 1))
    ends = (counts << 8) + (counts << 16) + (counts << 24)
    order = counts.to(tl.int64) * 0
    for i in tl.static_range(TOKENS):
        shift = 8 * (tl.load(p_depth + tl.minimum(i, tokens - 1)).to(tl.int32) - 1)
        place = (ends >> shift) & 31
        ends += 1 << shift
        order |= (place.to(tl.int64) * 0 + i) << (4 * place).to(tl.int64)
    return order, counts


@triton.jit
def _count_of(counts, DEPTH: tl.constexpr):
    return (counts >> (8 * DEPTH - 8)) & 31


@triton.jit
def _tile_of(counts, tile):
    """(depth, first place and end of its depth in the sorted order) of a tile of four tokens."""
    depth = counts * 0 + 1
    first, start, end, tiles = depth * 0, depth * 0, depth * 0, depth * 0
    for k in tl.static_range(1, 5):
        count = _count_of(counts, k)
        here = tile >= tiles
        depth = tl.where(here & (count > 0), k, depth)
        first = tl.where(here & (count > 0), start + 4 * (tile - tiles), first)
        start += count
        end = tl.where(here & (count > 0), start, end)
        tiles += (count + 3) // 4
    return depth, first, end


@triton.jit
def _tiles_in(counts):
    """(number of tiles, number of depths present)."""
    tiles = counts * 0
    present = tiles
    for k in tl.static_range(1, 5):
        tiles += (_count_of(counts, k) + 3) // 4
        present += (_count_of(counts, k) > 0).to(tl.int32)
    return tiles, present


@triton.jit
def _mask_of(depth):
    """The top 2 depth bits of every byte."""
    mask = tl.where(depth == 1, -0x3F3F3F40, tl.where(depth == 2, -0x0F0F0F10, -0x03030304))
    return tl.where(depth == 4, -1, mask)


@triton.jit
def _token_at(order, b_place, tokens):
    """The token at a place of the sorted order; places beyond the last token repeat some token."""
    b_shift = (4 * tl.minimum(b_place, 15)).to(tl.int64)
    return tl.minimum(((order >> b_shift) & 15).to(tl.int32), tokens - 1)


@triton.jit
def _store_tile(p_y, p_bias, p_shift, p_gain, order, counts, b_y, TILE: tl.constexpr, HALF: tl.constexpr, rows, tokens,
                ADD: tl.constexpr, WARPS: tl.constexpr):  # fmt: skip
    """Adds up the warps; gain, bias and shift of the tile's depth; adds what is already in y if asked."""
    b_y = tl.sum(tl.reshape(b_y, (WARPS[0], WARPS[1], 32)), 1)
    depth, first, end = _tile_of(counts, TILE)
    i_lane = tl.arange(0, 32)[None, :]
    i_place = first + i_lane % 4
    i_token = ((order >> (4 * tl.minimum(i_place, 15)).to(tl.int64)) & 15).to(tl.int32)
    i_row = (tl.program_id(0) * WARPS[0] + tl.arange(0, WARPS[0])[:, None]) * 16 + 8 * HALF + i_lane // 4
    m_row = i_row < rows
    m_y = (i_place < end) & (i_token < tokens) & m_row
    o_y = i_token.to(tl.int64) * rows + i_row
    o_own = (depth - 1) * rows + i_row
    if p_gain is not None:
        b_y *= tl.load(p_gain + o_own, mask=m_row, other=0.0).to(tl.float32)
    if p_bias is not None:
        b_y += tl.load(p_bias + i_row, mask=m_row, other=0.0).to(tl.float32)
    if p_shift is not None:
        b_y += tl.load(p_shift + o_own, mask=m_row, other=0.0).to(tl.float32)
    if ADD:
        b_y += tl.load(p_y + o_y, mask=m_y, other=0.0).to(tl.float32)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def batch_gemv_kernel(
    p_w, p_r, p_x, p_m, p_depth, p_y, p_bias, p_shift, p_gain, o_plane, NG, rows, tokens, end0, end1,
    TOKENS: tl.constexpr, SLICES: tl.constexpr, UNITS: tl.constexpr, WARPS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """y[t] = W_depth[t] x[t] for some tiles of 16 rows; arguments as of plane_gemv_kernel, activations in pairs."""
    TT: tl.constexpr = TOKENS // 4
    MOST: tl.constexpr = TT + SLICES - 1 if TOKENS > SLICES else TOKENS
    begin_dependent(FLAGS[2] == 1)
    wait_for_inputs(FLAGS[2] > 0)
    first_tile = tl.program_id(0) * WARPS[0]
    p_depth += ((first_tile >= end0).to(tl.int32) + (first_tile >= end1).to(tl.int32)) * tokens
    order, counts = _sorted(p_depth, tokens, TOKENS)
    tiles, present = _tiles_in(counts)
    # Plane offsets in words may pass 2^31.
    o_plane = o_plane.to(tl.int64)
    none = ()
    for _ in tl.static_range(2 * (MOST - TT)):
        none = none + (tl.zeros((32 * WARPS[0] * WARPS[1],), tl.float32),)  # noqa: RUF005
    y = none
    for _ in tl.static_range(2 * TT):
        y = y + (tl.zeros((32 * WARPS[0] * WARPS[1],), tl.float32),)  # noqa: RUF005
    for k in tl.static_range(1, SLICES + 1):
        if _count_of(counts, k) == TOKENS:
            y = _sums(p_w, p_r, p_x, p_m, o_plane, NG, tokens, order, counts, k, False, UNITS[k - 1], TT, WARPS,
                      FLAGS[1], FLAGS[4]) + none  # fmt: skip
    for more in tl.static_range(0 if TT > 1 else 1, MOST - TT + 1):
        if (present > 1) & (tiles == TT + more):
            y = _sums(p_w, p_r, p_x, p_m, o_plane, NG, tokens, order, counts, SLICES, True, 1, TT + more, WARPS,
                      FLAGS[1], FLAGS[4]) + none[: 2 * (MOST - TT - more)]  # fmt: skip
    begin_dependent(FLAGS[2] == 2)
    for tile in tl.static_range(MOST):
        for half in tl.static_range(2):
            _store_tile(p_y, p_bias, p_shift, p_gain, order, counts, y[2 * tile + half], tile, half, rows, tokens,
                        FLAGS[0], WARPS)  # fmt: skip
