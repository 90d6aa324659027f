"""Planes times 2 to 16 tokens, each at its own depth: the tokens are sorted by depth, four to a tile.

A tile of four tokens is one product of the tensor cores wide, so sorted tokens need few products: a tile is multiplied
only at the depths its tokens have. That is decided by predicates, not by branches: a branch in the loop would make the
words of the next step wait for those of this one. It knows neither routers nor how the depths came about.
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
    """Bit fields of two words swapped: the low fields of both, then the high fields; those of the first come out on top."""
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
def _cut_to(a, DEPTH: tl.constexpr, K: tl.constexpr):
    """Codes of depth K without the bits beyond DEPTH."""
    if DEPTH == K:
        return a
    else:
        MASK: tl.constexpr = 0x01010101 * (256 - (1 << (8 - 2 * DEPTH))) - 0x100000000
        b = ()
        for i in tl.static_range(16):
            b = b + (a[i] & MASK,)  # noqa: RUF005
        return b


@triton.jit
def _product(a, x, TILE: tl.constexpr, b_zero, ASM: tl.constexpr):
    """Codes times the activation bytes of a tile of tokens: rows 0-7 by (high, low) bytes, then rows 8-15."""
    d0, d1, d2, d3 = b_zero, b_zero, b_zero, b_zero
    for field in tl.static_range(4):
        d0, d1, d2, d3 = mma(
            a[field], a[4 + field], a[8 + field], a[12 + field], x[8 * TILE + 2 * field], x[8 * TILE + 2 * field + 1],
            d0, d1, d2, d3, ASM,
        )  # fmt: skip
    return d0, d1, d2, d3


@triton.jit
def _product_if(passes, BIT: tl.constexpr, a, x, TILE: tl.constexpr, b_zero, ASM: tl.constexpr):
    """The same where that bit of `passes` is set, a scalar; something finite elsewhere."""
    if ASM:
        # One predicate for four products: it leaves the loop one block, as a branch would not.
        return tl.inline_asm_elementwise(
            "{ .reg .pred q; .reg .b32 t; and.b32 t, $28, $29; setp.ne.b32 q, t, 0; "
            "mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; "
            "@q mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $1, $2, $3}, {$4, $8, $12, $16}, {$20, $21}, "
            "{$0, $1, $2, $3}; "
            "@q mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $1, $2, $3}, {$5, $9, $13, $17}, {$22, $23}, "
            "{$0, $1, $2, $3}; "
            "@q mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $1, $2, $3}, {$6, $10, $14, $18}, {$24, $25}, "
            "{$0, $1, $2, $3}; "
            "@q mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {$0, $1, $2, $3}, {$7, $11, $15, $19}, {$26, $27}, "
            "{$0, $1, $2, $3}; }",
            "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [
                a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15],
                x[8 * TILE], x[8 * TILE + 1], x[8 * TILE + 2], x[8 * TILE + 3], x[8 * TILE + 4], x[8 * TILE + 5],
                x[8 * TILE + 6], x[8 * TILE + 7], passes, 1 << BIT,
            ],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )  # fmt: skip
    else:
        return _product(a, x, TILE, b_zero, ASM)


@triton.jit
def _products(a, x, passes, b_middle, b_zero, K: tl.constexpr, MIXED: tl.constexpr, TT: tl.constexpr, ASM: tl.constexpr):
    """Integer sums of one group, four for every tile of tokens, each lane's at the depth of its own token."""
    if MIXED:
        d = ()
        for depth in tl.static_range(1, K + 1):
            b = _cut_to(a, depth, K)
            new = ()
            for tile in tl.static_range(TT):
                e = _product_if(passes, 4 * tile + depth - 1, b, x, tile, b_zero, ASM)
                if depth == 1:
                    new = new + e
                else:
                    b_on = b_middle[tile] == 2.0 ** (1 - 2 * depth)
                    for i in tl.static_range(4):
                        new = new + (tl.where(b_on, e[i], d[4 * tile + i]),)  # noqa: RUF005
            d = new
        return d
    else:
        d = ()
        for tile in tl.static_range(TT):
            d = d + _product(a, x, tile, b_zero, ASM)
        return d


@triton.jit
def _added(b_acc, b_step, b_edge, b_high, b_low, b_scale, b_half, b_sum):
    """One group of one row: step * (codes * x + sum of x half a cell up) + edge * sum of x."""
    b_inner = (b_high * 256 + b_low).to(tl.float32) * b_scale + b_half
    return b_acc + b_step * b_inner + b_edge * b_sum


@triton.jit
def _sums(
    p_w, p_r, p_x, p_m, o_plane, NG, tokens, order, passes, b_own, K: tl.constexpr, MIXED: tl.constexpr,
    U: tl.constexpr, TT: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr, POWER: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Sums over this warp's groups: for every tile of tokens, rows 0-7 and rows 8-15 of its rows, [threads] each."""
    THREADS: tl.constexpr = 32 * TILES * SPLIT
    STEP: tl.constexpr = SPLIT * U
    EVEN: tl.constexpr = POWER % STEP == 0
    i_thread = tl.arange(0, THREADS)[None, :]
    i_lane, i_own = i_thread % 32, tl.arange(0, U)[:, None]
    i_tile = tl.program_id(0) * TILES + i_thread // (32 * SPLIT)
    i_group = (i_thread // 32 % SPLIT) * U
    i_unit = i_tile.to(tl.int64) * NG + i_group
    o_w, o_r = i_unit * 128 + i_lane * 4, i_unit * 16 + (i_lane // 4) * 2
    o_x, o_m, b_middle = (), (), ()
    for tile in tl.static_range(TT):
        i_token = _token_at(order, 4 * tile + i_lane // 8, tokens)
        o_x = o_x + ((i_token * NG + i_group) * 64 + (i_lane % 8) * 4,)  # noqa: RUF005
        o_m = o_m + ((_token_at(order, 4 * tile + i_lane % 4, tokens) * NG + i_group) * 2,)  # noqa: RUF005
        # 2^(1 - 2 depth), built from its exponent so that it can be compared.
        b_middle = b_middle + (((128 - 2 * b_own[tile]) << 23).to(tl.float32, bitcast=True),)  # noqa: RUF005
    b_zero = tl.zeros((U, THREADS), tl.int32)
    acc = ()
    for _ in tl.static_range(2 * TT):
        acc = acc + (b_zero.to(tl.float32),)  # noqa: RUF005
    m_now = tl.broadcast_to((i_group + i_own < NG).to(tl.int32), (U, THREADS))
    w = load_planes(p_w, o_w + i_own * 128, o_plane, m_now, K, ASM)
    r = stream2(p_r, o_r + i_own * 16, m_now, ASM)
    steps = tl.cdiv(NG, STEP)
    for i in range(steps):
        # The words of the next step are on their way while those of this step are multiplied.
        m_next = (i + 1 < steps).to(tl.int32) if EVEN else (i_group + i_own + (i + 1) * STEP < NG).to(tl.int32)
        m_next = tl.broadcast_to(m_next, (U, THREADS))
        o_w += 128 * STEP
        o_r += 16 * STEP
        a = _codes(w, K)
        w = load_planes(p_w, o_w + i_own * 128, o_plane, m_next, K, ASM)
        r_next = stream2(p_r, o_r + i_own * 16, m_next, ASM)
        i_step = i * STEP + i_own
        m_here = tl.full((U, THREADS), 1, tl.int32)
        if not EVEN:
            m_here = (i_group + i_step < NG).to(tl.int32)
            i_step = tl.where(m_here != 0, i_step, 0)
        x = ()
        for tile in tl.static_range(TT):
            b_here = o_x[tile] + i_step * 64
            x = x + load4(p_x, b_here, ASM) + load4(p_x, b_here + 32, ASM)
        d = _products(a, x, passes, b_middle, b_zero, K, MIXED, TT, ASM)
        new = ()
        for tile in tl.static_range(TT):
            # Loaded late: registers are scarcest during the products.
            b_scale, b_sum = load2_or_zero(p_m, o_m[tile] + i_step * 2, m_here, ASM)
            # Codes stand at the top of their bytes, so a step of every depth is the first slice's over 64.
            b_scale *= 0.015625
            b_half = b_sum * b_middle[tile]
            for half in tl.static_range(2):
                b_step, b_edge = half_of(r[half], False), half_of(r[half], True)
                new = new + (_added(acc[2 * tile + half], b_step, b_edge, d[4 * tile + 2 * half],  # noqa: RUF005
                                    d[4 * tile + 2 * half + 1], b_scale, b_half, b_sum),)  # fmt: skip
        acc = new
        r = r_next
    y = ()
    for i in tl.static_range(2 * TT):
        y = y + (tl.sum(acc[i], 0),)  # noqa: RUF005
    return y


@triton.jit
def _token_at(order, b_slot, tokens):
    """The token at a place of the sorted order; places beyond the last token repeat some token."""
    return tl.minimum(((order >> (4 * b_slot).to(tl.int64)) & 15).to(tl.int32), tokens - 1)


@triton.jit
def _sorted(p_depth, tokens, TOKENS: tl.constexpr):
    """Counting sort in scalars: (order, four bits a token; one byte for each depth: where its tokens end)."""
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
    return order, ends


@triton.jit
def _passes(ends, TT: tl.constexpr):
    """Bit 4 tile + depth - 1: whether that tile has tokens of that depth; and the deepest depth of all."""
    passes = ends * 0
    high = passes + 1
    start = passes
    for k in tl.static_range(4):
        end = (ends >> (8 * k)) & 31
        high = tl.where(end > start, k + 1, high)
        for tile in tl.static_range(TT):
            own = (end > tl.maximum(start, 4 * tile)) & (start < 4 * tile + 4)
            passes |= own.to(tl.int32) << (4 * tile + k)
        start = end
    return passes, high


@triton.jit
def _depth_at(ends, b_slot):
    """Depth of the token at a place of the sorted order."""
    b_depth = tl.full(b_slot.shape, 1, tl.int32)
    for k in tl.static_range(3):
        b_depth += (b_slot >= ((ends >> (8 * k)) & 31)).to(tl.int32)
    return b_depth


@triton.jit
def _store_tile(p_y, p_bias, p_shift, p_gain, order, b_own, b_y, TILE: tl.constexpr, HALF: tl.constexpr, rows, tokens,
                ADD: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr):  # fmt: skip
    """Adds up the warps; gain, bias and shift of each token's depth; adds what is already in y if asked."""
    b_y = tl.sum(tl.reshape(b_y, (TILES, SPLIT, 32)), 1)
    i_lane = tl.arange(0, 32)[None, :]
    i_token = ((order >> (16 * TILE + 4 * (i_lane % 4)).to(tl.int64)) & 15).to(tl.int32)
    i_row = (tl.program_id(0) * TILES + tl.arange(0, TILES)[:, None]) * 16 + 8 * HALF + i_lane // 4
    m_y = (i_token < tokens) & (i_row < rows)
    o_y = i_token.to(tl.int64) * rows + i_row
    o_own = (b_own - 1) * rows + i_row
    if p_gain is not None:
        b_y *= tl.load(p_gain + o_own, mask=m_y, other=0.0).to(tl.float32)
    if p_bias is not None:
        b_y += tl.load(p_bias + i_row, mask=i_row < rows, other=0.0).to(tl.float32)
    if p_shift is not None:
        b_y += tl.load(p_shift + o_own, mask=m_y, other=0.0).to(tl.float32)
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
    TILES: tl.constexpr = WARPS[0]
    SPLIT: tl.constexpr = WARPS[1]
    THREADS: tl.constexpr = 32 * TILES * SPLIT
    begin_dependent(FLAGS[2] == 1)
    wait_for_inputs(FLAGS[2] > 0)
    first_tile = tl.program_id(0) * TILES
    p_depth += ((first_tile >= end0).to(tl.int32) + (first_tile >= end1).to(tl.int32)) * tokens
    order, ends = _sorted(p_depth, tokens, TOKENS)
    passes, high = _passes(ends, TT)
    low = tl.load(p_depth).to(tl.int32)
    for i in tl.static_range(TOKENS):
        low = tl.minimum(low, tl.load(p_depth + tl.minimum(i, tokens - 1)).to(tl.int32))
    # Plane offsets in words may pass 2^31.
    o_plane = o_plane.to(tl.int64)
    i_lane = tl.arange(0, THREADS)[None, :] % 32
    b_own, y = (), ()
    for tile in tl.static_range(TT):
        b_own = b_own + (_depth_at(ends, 4 * tile + i_lane % 4),)  # noqa: RUF005
        b_nothing = tl.zeros((THREADS,), tl.float32)
        y = y + (b_nothing, b_nothing)  # noqa: RUF005
    for k in tl.static_range(1, SLICES + 1):
        if (low == k) & (high == k):
            y = _sums(p_w, p_r, p_x, p_m, o_plane, NG, tokens, order, passes, b_own, k, False, UNITS[k - 1], TT,
                      TILES, SPLIT, FLAGS[1], FLAGS[4])  # fmt: skip
        if k > 1:
            if (low < k) & (high == k):
                y = _sums(p_w, p_r, p_x, p_m, o_plane, NG, tokens, order, passes, b_own, k, True, 1, TT, TILES,
                          SPLIT, FLAGS[1], FLAGS[4])  # fmt: skip
    begin_dependent(FLAGS[2] == 2)
    i_own = tl.arange(0, 32)[None, :] % 4
    for tile in tl.static_range(TT):
        for half in tl.static_range(2):
            _store_tile(p_y, p_bias, p_shift, p_gain, order, _depth_at(ends, 4 * tile + i_own), y[2 * tile + half],
                        tile, half, rows, tokens, FLAGS[0], TILES, SPLIT)  # fmt: skip
