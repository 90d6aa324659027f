"""Planes times a few tokens (1 to 4), each token at its own depth, read from device memory.

Activations come as two signed bytes per value (activation.py), so the product is exact in integers inside a group. A
warp owns 16 rows; the warps of a program share the groups of those rows and add up at the end. One loop is compiled
per depth, so one captured graph serves every budget.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels import tuning
from mobiquant_core.kernels.code_products import load_planes, mixed_products, products
from mobiquant_core.kernels.group_sums import add_group
from mobiquant_core.kernels.lanes import begin_dependent, load2_or_zero, load4, prefetch_l2, stream2, wait_for_inputs
from mobiquant_core.kernels.one_token import first_weights, one_token_tiles
from mobiquant_core.kernels.route import add2, decide, decided, router_constants, sum_parts

NEVER_LATE: tl.constexpr = tl.constexpr(tuning.NEVER_LATE)


@triton.jit
def _weight_offsets(NG, U: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr):
    """(words, ranges, group of a warp's first step, which of its U groups); the threads are the last axis."""
    i_thread = tl.arange(0, 32 * TILES * SPLIT)[None, :]
    i_lane, i_own = i_thread % 32, tl.arange(0, U)[:, None]
    i_tile = tl.program_id(0) * TILES + i_thread // (32 * SPLIT)
    i_group = (i_thread // 32 % SPLIT) * U
    # One running offset per thread; what differs between its groups is a constant the compiler folds into the load.
    i_unit = i_tile.to(tl.int64) * NG + i_group
    return i_unit * 128 + i_lane * 4, i_unit * 16 + (i_lane // 4) * 2, i_group, i_own


@triton.jit
def _input_offsets(NG, tokens, i_group, THREADS: tl.constexpr):
    """(bytes, scales) of a warp's first step."""
    i_lane = tl.arange(0, THREADS)[None, :] % 32
    i_column = tl.minimum(i_lane // 8, tokens - 1) * 2 + (i_lane // 4) % 2
    i_token = tl.minimum(i_lane % 4, tokens - 1)
    o_x = ((i_column * NG + i_group) * 32 + (i_lane % 4) * 8).to(tl.int64)
    return o_x, ((i_token * NG + i_group) * 2).to(tl.int64)


@triton.jit
def _inputs(p_x, p_m, o_x, o_m, i_own, m_here, ASM: tl.constexpr):
    """Bytes of a step's groups, then (scale, sum); scales of groups that do not exist are zero."""
    o_here = tl.where(m_here != 0, o_x + i_own * 32, 0)
    b_scale, b_sum = load2_or_zero(p_m, o_m + i_own * 2, m_here, ASM)
    return load4(p_x, o_here, ASM) + load4(p_x, o_here + 4, ASM) + (b_scale, b_sum)


@triton.jit
def _tiles(
    p_w, p_r, p_x, p_m, o_plane, NG, tokens, present, b_depth, b_middle,
    K: tl.constexpr, MIXED: tl.constexpr, U: tl.constexpr, TILES: tl.constexpr,
    SPLIT: tl.constexpr, EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Sums over this warp's groups for every lane's token: rows 0-7 and rows 8-15 of its tile, [threads] each."""
    THREADS: tl.constexpr = 32 * TILES * SPLIT
    STEP: tl.constexpr = SPLIT * U
    SCALE: tl.constexpr = 4.0 ** (1 - K) if MIXED else 4.0 ** (-2 if K == 1 else -3)
    o_w, o_r, i_group, i_own = _weight_offsets(NG, U, TILES, SPLIT)
    o_x, o_m = _input_offsets(NG, tokens, i_group, THREADS)
    b_zero = tl.zeros((U, THREADS), tl.int32)
    b_acc0, b_acc1 = b_zero.to(tl.float32), b_zero.to(tl.float32)
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
        w_next = load_planes(p_w, o_w + i_own * 128, o_plane, m_next, K, ASM)
        r_next = stream2(p_r, o_r + i_own * 16, m_next, ASM)
        m_here = tl.full((U, THREADS), 1, tl.int32)
        if not EVEN:
            m_here = (i_group + i_own + i * STEP < NG).to(tl.int32)
        x = _inputs(p_x, p_m, o_x, o_m, i_own, m_here, ASM)
        if MIXED:  # noqa: SIM108
            d = mixed_products(w, x, present, b_depth, b_zero, K, ASM)
        else:
            d = products(w, x, b_zero, K, ASM)
        b_scale = x[8] * SCALE
        b_acc0 = add_group(b_acc0, r[0], d[0], d[1], b_scale, x[9], b_middle)
        b_acc1 = add_group(b_acc1, r[1], d[2], d[3], b_scale, x[9], b_middle)
        o_x += 32 * STEP
        o_m += 2 * STEP
        w, r = w_next, r_next
    return tl.sum(b_acc0, 0), tl.sum(b_acc1, 0)


@triton.jit
def _tiles_at(
    p_w, p_r, p_x, p_m, o_plane, NG, tokens, first, K: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr,
    TILES: tl.constexpr, SPLIT: tl.constexpr, POWER: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The tiles where all tokens have depth K, so many groups at once as this depth has registers for."""
    U: tl.constexpr = UNITS[K - 1]
    EVEN: tl.constexpr = POWER % (SPLIT * U) == 0
    if TOKENS == 1:
        return one_token_tiles(p_w, p_r, p_x, p_m, o_plane, NG, first, K, U, TILES, SPLIT, EVEN, ASM)
    else:
        MIDDLE: tl.constexpr = 2.0 ** (1 - 2 * K)
        return _tiles(
            p_w, p_r, p_x, p_m, o_plane, NG, tokens, 0, 0, MIDDLE, K, False, U, TILES, SPLIT, EVEN, ASM
        )  # fmt: skip


@triton.jit
def _depths_present(p_depth, tokens, TOKENS: tl.constexpr):
    """(smallest, largest depth, bit k set where some token has depth k), as scalars."""
    low = tl.load(p_depth).to(tl.int32)
    high = low
    present = 1 << low
    for i in tl.static_range(1, TOKENS):
        depth = tl.load(p_depth + tl.minimum(i, tokens - 1)).to(tl.int32)
        low, high, present = tl.minimum(low, depth), tl.maximum(high, depth), present | (1 << depth)
    return low, high, present


@triton.jit
def _depth_of(p_depth, i_token, tokens, TOKENS: tl.constexpr):
    """Depths of a tensor of tokens. Scalar loads: a tensor load could move elements to other threads."""
    b_depth = tl.zeros_like(i_token)
    for i in tl.static_range(TOKENS):
        b_depth += tl.where(i_token == i, tl.load(p_depth + tl.minimum(i, tokens - 1)).to(tl.int32), 0)
    return b_depth


@triton.jit
def _outputs(HALF: tl.constexpr, tokens, rows, TILES: tl.constexpr):
    """(offset in y, row, whether it exists) of what every lane holds of a half of its tile's rows: [tiles, lanes]."""
    i_lane = tl.arange(0, 32)[None, :]
    i_token = i_lane % 4
    i_row = (tl.program_id(0) * TILES + tl.arange(0, TILES)[:, None]) * 16 + 8 * HALF + i_lane // 4
    return i_token.to(tl.int64) * rows + i_row, i_row, (i_token < tokens) & (i_row < rows)


@triton.jit
def _row_terms(p_y, p_bias, p_shift, p_gain, b_depth, rows, tokens, ADD: tl.constexpr, TILES: tl.constexpr):
    """(gain, bias, shift, what is in y already) for each token's depth, of one half of the rows and then the other."""
    terms = ()
    for half in tl.static_range(2):
        o_y, i_row, m_y = _outputs(half, tokens, rows, TILES)
        b_gain, b_bias, b_shift, b_old = 1.0, 0.0, 0.0, 0.0
        if p_gain is not None:
            b_gain = tl.load(p_gain + (b_depth - 1) * rows + i_row, mask=m_y, other=0.0).to(tl.float32)
        if p_bias is not None:
            b_bias = tl.load(p_bias + i_row, mask=i_row < rows, other=0.0).to(tl.float32)
        if p_shift is not None:
            b_shift = tl.load(p_shift + (b_depth - 1) * rows + i_row, mask=m_y, other=0.0).to(tl.float32)
        if ADD:
            b_old = tl.load(p_y + o_y, mask=m_y, other=0.0).to(tl.float32)
        terms = terms + (b_gain, b_bias, b_shift, b_old)  # noqa: RUF005
    return terms


@triton.jit
def _store_rows(p_y, b_y0, b_y1, terms, rows, tokens, TILES: tl.constexpr, SPLIT: tl.constexpr):
    """Adds up the warps, and to their sums what `_row_terms` gave."""
    # Both halves in one reduction, so that the warps meet half as often.
    sums = tl.reduce((tl.reshape(b_y0, (TILES, SPLIT, 32)), tl.reshape(b_y1, (TILES, SPLIT, 32))), 1, add2)
    for half in tl.static_range(2):
        o_y, _, m_y = _outputs(half, tokens, rows, TILES)
        b_y = sums[half] * terms[4 * half] + terms[4 * half + 1] + terms[4 * half + 2] + terms[4 * half + 3]
        tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def _prefetch(
    p_w, p_r, NG, LINES: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """The first plane is needed at every depth: ask for its first 4 LINES kB per warp, and for their ranges, before
    the depth is known."""
    i_thread = tl.arange(0, 32 * TILES * SPLIT)[None, :]
    i_piece = i_thread // 32 % SPLIT + tl.arange(0, LINES)[:, None] * SPLIT
    i_tile = (tl.program_id(0) * TILES + i_thread // (32 * SPLIT)).to(tl.int64)
    i_line = i_piece * 32 + i_thread % 32
    prefetch_l2(p_w, i_tile * NG * 128 + i_line * 32, (i_line < NG * 4).to(tl.int32), ASM)
    # A line holds the ranges of two groups.
    i_line = i_piece * 4 + i_thread % 32
    m_line = (i_thread % 32 < 4) & (i_line * 2 < NG)
    prefetch_l2(p_r, i_tile * NG * 16 + i_line * 32, m_line.to(tl.int32), ASM)


@triton.jit
def _begin_shallow(depth, LATE: tl.constexpr):
    """Lets the next kernel start where this depth is not one that has it wait."""
    if LATE > 1 and LATE < NEVER_LATE:  # noqa: SIM102  (the compiler asks about constants and about values apart)
        if depth < LATE:
            begin_dependent(True)


@triton.jit
def _at_one_depth(
    p_w, p_r, p_x, p_m, o_plane, NG, tokens, depth, first, SLICES: tl.constexpr, TOKENS: tl.constexpr,
    UNITS: tl.constexpr, WARPS: tl.constexpr, POWER: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The loop compiled for `depth`, chosen on the device; zeros for a depth that is none."""
    b_y0 = tl.zeros((32 * WARPS[0] * WARPS[1],), tl.float32)
    b_y1 = b_y0
    for k in tl.static_range(1, SLICES + 1):
        if depth == k:
            b_y0, b_y1 = _tiles_at(
                p_w, p_r, p_x, p_m, o_plane, NG, tokens, first if k == 1 else None, k, TOKENS, UNITS, WARPS[0],
                WARPS[1], POWER, ASM,
            )  # fmt: skip
    return b_y0, b_y1


@triton.jit
def _mixed(
    p_w, p_r, p_x, p_m, p_depth, o_plane, NG, tokens, present, K: tl.constexpr, TOKENS: tl.constexpr,
    WARPS: tl.constexpr, EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The loop for tokens of several depths, the deepest K: planes are read once, and cut for every depth present."""
    i_lane = tl.arange(0, 32 * WARPS[0] * WARPS[1])[None, :] % 32
    b_depth = _depth_of(p_depth, tl.minimum(i_lane // 8, tokens - 1), tokens, TOKENS)
    b_own = _depth_of(p_depth, tl.minimum(i_lane % 4, tokens - 1), tokens, TOKENS)
    b_middle = tl.exp2((1 - 2 * b_own).to(tl.float32))
    return _tiles(
        p_w, p_r, p_x, p_m, o_plane, NG, tokens, present, b_depth, b_middle, K, True, 1, WARPS[0], WARPS[1],
        EVEN, ASM,
    )  # fmt: skip


@triton.jit
def plane_gemv_kernel(
    p_w, p_r, p_x, p_m, p_depth, p_y, p_bias, p_shift, p_gain, o_plane, NG, rows, tokens, end0, end1,
    TOKENS: tl.constexpr, SLICES: tl.constexpr, UNITS: tl.constexpr, WARPS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """y[t] = W_depth[t] x[t] for some tiles of 16 rows; depths are read from memory.

    UNITS: groups at once per depth. WARPS: (tiles, warps that share the groups of one tile).
    FLAGS: (add to y, power of two that divides the groups, depth from which on the next kernel starts late or 0 without
    dependent launch, pieces to prefetch, inline assembly, one token's first weights held in registers).
    """
    begin_dependent(FLAGS[2] == NEVER_LATE)
    # Weights are on their way while the kernel before this one still runs.
    first = None
    if FLAGS[5] and TOKENS == 1:
        first = first_weights(p_w, p_r, NG, UNITS, WARPS[0], WARPS[1], FLAGS[4])
    if FLAGS[3] > 0:
        _prefetch(p_w, p_r, NG, FLAGS[3], WARPS[0], WARPS[1], FLAGS[4])
    wait_for_inputs(FLAGS[2] > 0)
    first_tile = tl.program_id(0) * WARPS[0]
    p_depth += ((first_tile >= end0).to(tl.int32) + (first_tile >= end1).to(tl.int32)) * tokens
    low, high, present = _depths_present(p_depth, tokens, TOKENS)
    # Plane offsets in words may pass 2^31.
    o_plane = o_plane.to(tl.int64)
    same = tl.where(low == high, low, 0)
    _begin_shallow(high, FLAGS[2])
    # What is added to the product comes in while it is made.
    i_token = tl.arange(0, 32)[None, :] % 4
    b_depth = tl.load(p_depth + i_token, mask=i_token < tokens, other=1).to(tl.int32)
    terms = _row_terms(p_y, p_bias, p_shift, p_gain, b_depth, rows, tokens, FLAGS[0], WARPS[0])
    b_y0, b_y1 = _at_one_depth(
        p_w, p_r, p_x, p_m, o_plane, NG, tokens, same, first, SLICES, TOKENS, UNITS, WARPS, FLAGS[1], FLAGS[4]
    )  # fmt: skip
    for k in tl.static_range(2, SLICES + 1 if TOKENS > 1 else 2):
        if (low != high) & (high == k):
            b_y0, b_y1 = _mixed(p_w, p_r, p_x, p_m, p_depth, o_plane, NG, tokens, present, k, TOKENS, WARPS,
                                FLAGS[1] % WARPS[1] == 0, FLAGS[4])  # fmt: skip
    begin_dependent(FLAGS[2] > 0 and FLAGS[2] < NEVER_LATE)
    _store_rows(p_y, b_y0, b_y1, terms, rows, tokens, WARPS[0], WARPS[1])


@triton.jit
def _decide_followers(
    p_part, p_small, p_control, p_record, width, eps, FIRST: tl.constexpr, COUNT: tl.constexpr, PARTS: tl.constexpr,
    HIDDEN: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Records the depths of the linears that come after a product's own and are led by its router, a perceptron."""
    for i in tl.static_range(COUNT):
        constants = router_constants(p_small, p_control, FIRST + i, HIDDEN, MODE, False)
        b_sum = sum_parts(p_part, PARTS, HIDDEN)
        decide(p_record, constants, b_sum, width, eps, FIRST + i, True, HIDDEN, MODE, True, False)


@triton.jit
def routed_gemv_kernel(
    p_w, p_r, p_x, p_m, p_y, p_bias, p_shift, p_gain, p_part, p_small, p_control, p_record, o_plane, width, rows, eps,
    UNITS: tl.constexpr, WARPS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """y = W_depth x for one token; the depth follows from the router's parts (route.py), found by every program.

    WARPS: (tiles, split, slices, first tiles of the second and third section). FLAGS: the first five of
    plane_gemv_kernel, then (router parts, hidden, mode, first weights held, whether the router is a sketch, linears of
    the product, linears after them whose depths are decided here, whether its own depth was decided before).
    """
    begin_dependent(FLAGS[2] == NEVER_LATE)
    NG = tl.cdiv(width, 128)
    # Plane offsets in words may pass 2^31.
    o_plane = o_plane.to(tl.int64)
    first_tile = tl.program_id(0) * WARPS[0]
    head = (first_tile >= WARPS[3]).to(tl.int32) + (first_tile >= WARPS[4]).to(tl.int32)
    new_head = (first_tile == 0) | (first_tile == WARPS[3]) | (first_tile == WARPS[4])
    # What no kernel of a step writes is on its way while the kernel before this one still runs.
    first = None
    if FLAGS[8]:
        first = first_weights(p_w, p_r, NG, UNITS, WARPS[0], WARPS[1], FLAGS[4])
    constants = (0.0, 0.0)
    if not FLAGS[12]:
        constants = router_constants(p_small, p_control, head, FLAGS[6], FLAGS[7], FLAGS[9])
    if FLAGS[3] > 0:
        _prefetch(p_w, p_r, NG, FLAGS[3], WARPS[0], WARPS[1], FLAGS[4])
    wait_for_inputs(FLAGS[2] > 0)
    if FLAGS[12]:
        depth, scale = decided(p_record, head)
    else:
        b_sum = sum_parts(p_part, FLAGS[5], FLAGS[6])
        depth, scale = decide(p_record, constants, b_sum, width, eps, head, new_head, FLAGS[6], FLAGS[7],
                              p_small is not None, FLAGS[9])  # fmt: skip
    _begin_shallow(depth, FLAGS[2])
    # What is added to the product comes in while it is made.
    terms = _row_terms(p_y, p_bias, p_shift, p_gain, depth, rows, 1, FLAGS[0], WARPS[0])
    b_y0, b_y1 = _at_one_depth(
        p_w, p_r, p_x, p_m, o_plane, NG, 1, depth, first, WARPS[2], 1, UNITS, WARPS, FLAGS[1], FLAGS[4]
    )  # fmt: skip
    begin_dependent(FLAGS[2] > 0 and FLAGS[2] < NEVER_LATE)
    _store_rows(p_y, b_y0 * scale, b_y1 * scale, terms, rows, 1, WARPS[0], WARPS[1])
    # Behind its own rows, which come first: nobody asks for these depths before another launch has come and gone.
    if first_tile == 0:
        _decide_followers(p_part, p_small, p_control, p_record, width, eps, FLAGS[10], FLAGS[11], FLAGS[5], FLAGS[6],
                          FLAGS[7])  # fmt: skip
