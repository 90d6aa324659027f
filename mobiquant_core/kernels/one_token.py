"""The loop over one token's groups: planes of a tile of 16 rows times that token, at one depth.

The integer product has places for four tokens, each a pair of columns for the high and low bytes. One token fills them
with up to four groups at once, its units: a lane keeps the sums of its own unit and scales only those, and four lanes
add up at the end. It knows neither routers nor what is added to a product.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.code_products import load_planes, products
from mobiquant_core.kernels.group_sums import add_group
from mobiquant_core.kernels.lanes import load2_or_zero, load4, quad_sum, stream2


@triton.jit
def _own_unit(THREADS: tl.constexpr, U: tl.constexpr):
    """The unit whose sums a lane keeps."""
    return tl.arange(0, THREADS) % 32 % 4 % U


@triton.jit
def _weight_offsets(NG, U: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr):
    """(words, ranges, group) of the first step: of a warp's first unit, of a lane's own unit, of the first unit."""
    i_thread = tl.arange(0, 32 * TILES * SPLIT)
    i_lane = i_thread % 32
    i_tile = tl.program_id(0) * TILES + i_thread // (32 * SPLIT)
    i_group = (i_thread // 32 % SPLIT) * U
    # One running offset per thread; what differs between its units is a constant the compiler folds into the load.
    i_unit = i_tile.to(tl.int64) * NG + i_group
    i_own = _own_unit(32 * TILES * SPLIT, U)
    return i_unit * 128 + i_lane * 4, (i_unit + i_own) * 16 + (i_lane // 4) * 2, i_group


@triton.jit
def _weights(
    p_w, p_r, o_w, o_r, o_plane, i_group, NG, K: tl.constexpr, U: tl.constexpr, EVEN: tl.constexpr, ASM: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """(words of every unit's K planes, ranges of a lane's own unit); groups that do not exist are not read."""
    i_own = _own_unit(i_group.numel, U)
    w = ()
    for unit in tl.static_range(U):
        m = (i_group + (0 if EVEN else unit) < NG).to(tl.int32)
        w = w + load_planes(p_w, o_w + unit * 128, o_plane, m, K, ASM, EARLY)
    m_own = (i_group + (0 if EVEN else i_own) < NG).to(tl.int32)
    return w, stream2(p_r, o_r, m_own, ASM, EARLY)


@triton.jit
def first_weights(
    p_w, p_r, NG, UNITS: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """(words, ranges) of the first step at depth 1."""
    o_w, o_r, i_group = _weight_offsets(NG, UNITS[0], TILES, SPLIT)
    return _weights(p_w, p_r, o_w, o_r, 0, i_group, NG, 1, UNITS[0], False, ASM, True)


@triton.jit
def _own_products(w, x, b_zero, K: tl.constexpr, U: tl.constexpr, ASM: tl.constexpr):
    """Integer products of every lane's own unit, as `products` gives them."""
    i_own = _own_unit(b_zero.numel, U)
    d = products(w, x, b_zero, K, ASM, 0)
    for unit in tl.static_range(1, U):
        e = products(w, x, b_zero, K, ASM, 4 * K * unit)
        m = i_own == unit
        d = tl.where(m, e[0], d[0]), tl.where(m, e[1], d[1]), tl.where(m, e[2], d[2]), tl.where(m, e[3], d[3])
    return d


@triton.jit
def one_token_tiles(
    p_w, p_r, p_x, p_m, o_plane, NG, first, K: tl.constexpr, U: tl.constexpr, TILES: tl.constexpr, SPLIT: tl.constexpr,
    EVEN: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Sums over this warp's groups: rows 0-7 and rows 8-15 of its tile, [threads] each, the same in four lanes.

    `first`: (words, ranges) of the first step where they are on their way already, or None. EVEN: whether every step
    has all its groups.
    """
    STEP: tl.constexpr = SPLIT * U
    SCALE: tl.constexpr = 4.0 ** (-2 if K == 1 else -3)
    MIDDLE: tl.constexpr = 2.0 ** (1 - 2 * K)
    o_w, o_r, i_group = _weight_offsets(NG, U, TILES, SPLIT)
    i_lane = tl.arange(0, 32 * TILES * SPLIT) % 32
    i_column, i_own = i_lane // 8 % U, _own_unit(32 * TILES * SPLIT, U)
    o_x = (((i_lane // 4 % 2) * NG + i_group + i_column) * 32 + (i_lane % 4) * 8).to(tl.int64)
    o_m = ((i_group + i_own) * 2).to(tl.int64)
    b_zero = tl.zeros((32 * TILES * SPLIT,), tl.int32)
    b_acc0, b_acc1 = b_zero.to(tl.float32), b_zero.to(tl.float32)
    if first is not None:
        w, r = first[0], first[1]
    else:
        w, r = _weights(p_w, p_r, o_w, o_r, o_plane, i_group, NG, K, U, EVEN, ASM)
    for _ in range(tl.cdiv(NG, STEP)):
        # The words of the next step are on their way while those of this step are multiplied.
        o_w += 128 * STEP
        o_r += 16 * STEP
        w_next, r_next = _weights(p_w, p_r, o_w, o_r, o_plane, i_group + STEP, NG, K, U, EVEN, ASM)
        o_here = o_x
        m_own = b_zero + 1
        if not EVEN:
            o_here = tl.where(i_group + i_column < NG, o_x, 0)
            m_own = (i_group + i_own < NG).to(tl.int32)
        x = load4(p_x, o_here, ASM) + load4(p_x, o_here + 4, ASM)
        b_scale, b_sum = load2_or_zero(p_m, o_m, m_own, ASM)
        d = _own_products(w, x, b_zero, K, U, ASM)
        b_acc0 = add_group(b_acc0, r[0], d[0], d[1], b_scale * SCALE, b_sum, MIDDLE)
        b_acc1 = add_group(b_acc1, r[1], d[2], d[3], b_scale * SCALE, b_sum, MIDDLE)
        o_x += 32 * STEP
        o_m += 2 * STEP
        i_group += STEP
        w, r = w_next, r_next
    # Units fewer than four stand in several lanes.
    return quad_sum(b_acc0 * (U / 4), ASM), quad_sum(b_acc1 * (U / 4), ASM)
