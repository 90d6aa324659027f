"""Attention of one new token over a static key-value cache: rotary embedding, cache write, softmax, in one launch.

Programs share the positions of a key-value head; the last one to finish adds them up and, where the heads fill whole
groups, prepares the output projection's input as well. It reads no weights but that router's first layer.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.activation import split_groups
from mobiquant_core.kernels.lanes import begin_dependent, prefetch_l2, wait_for_inputs
from mobiquant_core.kernels.route import AS_IT_IS, centre_part, direction_part, write_part, write_sketch_part

_NONE: tl.constexpr = tl.constexpr(-1e30)
_BLOCKS: tl.constexpr = tl.constexpr(4)
"""Blocks of positions that one program takes before a second one helps."""


@triton.jit
def _two_halves(p, HALF: tl.constexpr):
    """Both halves of a row of numbers; none where there is no tensor."""
    halves = ()
    if p is not None:
        i_half = tl.arange(0, HALF)
        halves = (tl.load(p + i_half).to(tl.float32), tl.load(p + HALF + i_half).to(tl.float32))
    return halves


@triton.jit
def _ask_ahead(p_k, p_v, p_direction, i_head, i_split, splits, kv_heads, room, position, oldest,
               SIZES: tl.constexpr, HIDDEN: tl.constexpr, ASM: tl.constexpr):  # fmt: skip
    """Brings this program's first blocks of keys and values, and its columns of the router, into the L2 cache."""
    LINE: tl.constexpr = 1024 // p_k.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = SIZES[3] * SIZES[0] // LINE
    i_line = tl.arange(0, LINES)
    for block in tl.static_range(_BLOCKS):
        i_block = oldest // SIZES[3] + i_split + block * splits
        m_line = tl.full((LINES,), 0, tl.int32) + (i_block <= position // SIZES[3]).to(tl.int32)
        o_line = (i_head.to(tl.int64) * room + i_block * SIZES[3]) * SIZES[0] + i_line * LINE
        # A block may reach past the last position there is room for.
        m_line = m_line & (i_block * SIZES[3] + i_line * LINE // SIZES[0] < room).to(tl.int32)
        prefetch_l2(p_k, o_line, m_line, ASM)
        prefetch_l2(p_v, o_line, m_line, ASM)
    if HIDDEN > 0 and p_direction is not None:
        WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
        o_row = tl.arange(0, HIDDEN)[:, None].to(tl.int64) * kv_heads * WIDTH + i_head * WIDTH
        o_line = o_row + tl.arange(0, WIDTH // 64)[None, :] * 64
        prefetch_l2(p_direction, o_line, tl.full(o_line.shape, 1, tl.int32), ASM)


@triton.jit
def ask_for_plane(p_w, p_r, lines, i_head, i_split, splits, kv_heads, SPLITS: tl.constexpr, ASM: tl.constexpr):
    """Brings the first `lines` cache lines of a later product's first plane, and their ranges, into the L2 cache: in
    attention the memory would be idle.

    Where some programs have no positions they do it alone: what the others wait for must not queue behind it.
    """
    busy = splits % SPLITS
    if i_split >= busy:
        i_thread = tl.arange(0, 128)
        for i in range(i_head * (SPLITS - busy) + i_split - busy, tl.cdiv(lines, 128), kv_heads * (SPLITS - busy)):
            i_line = i * 128 + i_thread
            prefetch_l2(p_w, i_line.to(tl.int64) * 32, (i_line < lines).to(tl.int32), ASM)
            # A line holds the ranges of eight lines of words.
            i_line = i * 16 + i_thread
            m_line = (i_thread < 16) & (i_line * 8 < lines)
            prefetch_l2(p_r, i_line.to(tl.int64) * 32, m_line.to(tl.int32), ASM)


@triton.jit
def _rotated(p_x, norm, turn, i_row, i_half, eps, HALF: tl.constexpr):
    """Both halves of some heads [rows, HALF], normed (Qwen3) and rotated to the token's position by (cos, sin)."""
    o_x = i_row[:, None] * (2 * HALF) + i_half[None, :]
    b_first, b_second = tl.load(p_x + o_x).to(tl.float32), tl.load(p_x + o_x + HALF).to(tl.float32)
    if len(norm) > 0:
        b_mean = (tl.sum(b_first * b_first, 1) + tl.sum(b_second * b_second, 1)) / (2 * HALF)
        b_scale = tl.rsqrt(b_mean + eps)[:, None]
        b_first = b_first * b_scale * norm[0][None, :]
        b_second = b_second * b_scale * norm[1][None, :]
    b_cos, b_sin = turn[0][None, :], turn[1][None, :]
    return b_first * b_cos - b_second * b_sin, b_second * b_cos + b_first * b_sin


@triton.jit
def _write_position(p_qkv, norm, turn, p_k, p_v, i_key, i_value, position, eps, HALF: tl.constexpr):
    """Key and value of the newest token into the cache; visible to this program afterwards."""
    i_half = tl.arange(0, HALF)
    b_first, b_second = _rotated(p_qkv, norm, turn, i_key + tl.arange(0, 1), i_half, eps, HALF)
    o_new = position * 2 * HALF + i_half[None, :]
    tl.store(p_k + o_new, b_first.to(p_k.dtype.element_ty))
    tl.store(p_k + o_new + HALF, b_second.to(p_k.dtype.element_ty))
    i_dim = tl.arange(0, 2 * HALF)
    b_value = tl.load(p_qkv + i_value * 2 * HALF + i_dim)
    tl.store(p_v + position * 2 * HALF + i_dim, b_value.to(p_v.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def _scan(p_k, p_v, b_q1, b_q2, i_split, splits, position, oldest, SIZES: tl.constexpr, TYPE: tl.constexpr):
    """(best score, sum of weights, weighted values) over every `splits`-th block of positions."""
    DIM: tl.constexpr = SIZES[0]
    HALF: tl.constexpr = SIZES[0] // 2
    ROWS: tl.constexpr = SIZES[2]
    i_half, i_dim, i_block = tl.arange(0, HALF), tl.arange(0, DIM), tl.arange(0, SIZES[3])
    b_top = tl.full((ROWS,), _NONE, tl.float32)
    b_total = tl.zeros((ROWS,), tl.float32)
    b_y = tl.zeros((ROWS, DIM), tl.float32)
    for i in range(oldest // SIZES[3] + i_split, position // SIZES[3] + 1, splits):
        i_position = i * SIZES[3] + i_block
        m_position = (i_position <= position) & (i_position >= oldest)
        o_k = i_position[None, :] * SIZES[0] + i_half[:, None]
        b_k1 = tl.load(p_k + o_k, mask=m_position[None, :], other=0.0).to(TYPE)
        b_k2 = tl.load(p_k + o_k + HALF, mask=m_position[None, :], other=0.0).to(TYPE)
        o_v = i_position[:, None] * SIZES[0] + i_dim[None, :]
        b_v = tl.load(p_v + o_v, mask=m_position[:, None], other=0.0).to(TYPE)
        b_s = tl.dot(b_q2, b_k2, tl.dot(b_q1, b_k1, input_precision="ieee"), input_precision="ieee")
        b_s = tl.where(m_position[None, :], b_s, _NONE)
        b_best = tl.maximum(b_top, tl.max(b_s, 1))
        b_p = tl.where(m_position[None, :], tl.exp2(b_s - b_best[:, None]), 0.0)
        b_fade = tl.exp2(b_top - b_best)
        b_y = tl.dot(b_p.to(TYPE), b_v, b_y * b_fade[:, None], input_precision="ieee")
        b_total = b_total * b_fade + tl.sum(b_p, 1)
        b_top = b_best
    return b_top, b_total, b_y


@triton.jit
def _merge(p_sums, p_y, i_head, splits, SIZES: tl.constexpr):
    """Adds up the splits of a key-value head and writes its query heads."""
    DIM: tl.constexpr = SIZES[0]
    ROWS: tl.constexpr = SIZES[2]
    i_row, i_dim, i_split = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, SIZES[4])
    p_sums += i_head * SIZES[4] * ROWS * (DIM + 2)
    o_sums = (i_split[:, None] * ROWS + i_row[None, :]) * (DIM + 2)
    m_split = (i_split < splits)[:, None]
    b_top = tl.load(p_sums + o_sums + DIM, mask=m_split, other=_NONE, cache_modifier=".cg")
    b_best = tl.max(b_top, 0)
    b_weight = tl.exp2(b_top - b_best[None, :])
    b_total = tl.sum(b_weight * tl.load(p_sums + o_sums + DIM + 1, mask=m_split, other=0.0, cache_modifier=".cg"), 0)
    b_y = tl.zeros((ROWS, DIM), tl.float32)
    m_row = (i_row < SIZES[1])[:, None] & (i_dim < DIM)[None, :]
    for split in range(splits):
        o_row = (split * ROWS + i_row) * (DIM + 2)
        b_scale = tl.exp2(tl.load(p_sums + o_row + DIM, cache_modifier=".cg") - b_best)
        b_part = tl.load(p_sums + o_row[:, None] + i_dim[None, :], mask=m_row, other=0.0, cache_modifier=".cg")
        b_y += b_scale[:, None] * b_part
    o_y = (i_head * SIZES[1] + i_row)[:, None] * DIM + i_dim[None, :]
    tl.store(p_y + o_y, b_y / b_total[:, None], mask=m_row)


@triton.jit
def _prepare_output(
    p_y, p_direction, p_x, p_m, p_part, i_head, kv_heads, SIZES: tl.constexpr, HIDDEN: tl.constexpr,
    SKETCH: tl.constexpr,
):  # fmt: skip
    """Bytes and router part of this head's columns of the output projection's input, as route.prepare_kernel."""
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    GROUPS: tl.constexpr = WIDTH // 128
    tl.debug_barrier()
    i_column = i_head * WIDTH + tl.arange(0, WIDTH)
    b_x = tl.load(p_y + i_column, cache_modifier=".cg")
    i_group = i_head * GROUPS + tl.arange(0, GROUPS)
    split_groups(tl.reshape(b_x, (GROUPS, 128)), p_x, p_m, i_group, kv_heads * GROUPS)
    b_direction = 0.0
    if p_direction is not None:
        b_direction = direction_part(p_direction, i_column, kv_heads * WIDTH, HIDDEN)
    if SKETCH:
        b_centre = centre_part(p_direction, i_column, kv_heads * WIDTH, HIDDEN)
        write_sketch_part(p_part, i_head, b_x, b_x, b_direction, b_centre, HIDDEN, AS_IT_IS)
    else:
        write_part(p_part, i_head, b_x, b_x, b_direction, HIDDEN, p_direction is not None)


@triton.jit
def _splits_for(position, SIZES: tl.constexpr):
    """How many programs share a key-value head's positions: adding up costs more than a few blocks do."""
    oldest = tl.maximum(position - SIZES[5] + 1, 0)
    return tl.minimum(tl.cdiv(position // SIZES[3] - oldest // SIZES[3] + 1, _BLOCKS), SIZES[4])


@triton.jit
def _attend(
    p_qkv, p_k, p_v, turn, qnorm, knorm, p_sums, p_count, p_y, p_direction, p_x, p_m, p_part,
    heads, kv_heads, room, position, oldest, i_head, i_split, splits, SIZES: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """One split of one key-value head, and its end by whichever split comes last; constants as in attention_kernel."""
    HALF: tl.constexpr = SIZES[0] // 2
    p_k += i_head.to(tl.int64) * room * SIZES[0]
    p_v += i_head.to(tl.int64) * room * SIZES[0]
    i_row = tl.arange(0, SIZES[2])
    i_query = i_head * SIZES[1] + tl.minimum(i_row, SIZES[1] - 1)
    b_q1, b_q2 = _rotated(p_qkv, qnorm, turn, i_query, tl.arange(0, HALF), FLAGS[4], HALF)
    if (position // SIZES[3] - oldest // SIZES[3]) % splits == i_split:
        # The program that owns the newest position writes it before it reads the block.
        i_value = heads + kv_heads + i_head
        _write_position(p_qkv, knorm, turn, p_k, p_v, heads + i_head, i_value, position, FLAGS[4], HALF)
    TYPE: tl.constexpr = tl.float32 if FLAGS[1] else p_k.dtype.element_ty
    b_q1, b_q2 = (b_q1 * FLAGS[3]).to(TYPE), (b_q2 * FLAGS[3]).to(TYPE)
    b_top, b_total, b_y = _scan(p_k, p_v, b_q1, b_q2, i_split, splits, position, oldest, SIZES, TYPE)
    last = splits == 1
    if last:
        o_y = i_query[:, None] * SIZES[0] + tl.arange(0, SIZES[0])[None, :]
        tl.store(p_y + o_y, b_y / b_total[:, None], mask=(i_row < SIZES[1])[:, None])
    else:
        o_sums = ((i_head * SIZES[4] + i_split) * SIZES[2] + i_row) * (SIZES[0] + 2)
        tl.store(p_sums + o_sums[:, None] + tl.arange(0, SIZES[0])[None, :], b_y, mask=(i_row < SIZES[1])[:, None])
        tl.store(p_sums + o_sums + SIZES[0], b_top)
        tl.store(p_sums + o_sums + SIZES[0] + 1, b_total)
        tl.debug_barrier()
        last = tl.atomic_add(p_count + i_head, 1) == splits - 1
        if last:
            tl.store(p_count + i_head, 0)
            _merge(p_sums, p_y, i_head, splits, SIZES)
    if last:  # noqa: SIM102 - a number of the device and a constant of the compiler
        if FLAGS[2] > 0:
            _prepare_output(p_y, p_direction, p_x, p_m, p_part, i_head, kv_heads, SIZES, FLAGS[2], FLAGS[5])


@triton.jit
def attention_kernel(
    p_qkv, p_k, p_v, p_cos, p_qnorm, p_knorm, p_position, p_sums, p_count, p_y, p_direction, p_x, p_m, p_part,
    p_later, p_later_range, heads, kv_heads, room, lines, SIZES: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """p_later: planes of a later product that `lines` lines are asked for of, or None.
    SIZES: (head dim, query heads per key-value head, the same padded, positions per block, splits, window).
    FLAGS: (PDL, fp32 products, router's hidden size or 0 to leave the output raw, score scale, norm eps, whether the
    router is a sketch)."""
    begin_dependent(FLAGS[0])
    # Read before the wait: the position changes after a step's last layer, older keys and values come from earlier
    # steps, and a step begins with a launch that overlaps with none (embed), so all of it was there before this step's
    # first kernel began. What kernels of this step write, the newest token's queries, keys and values, comes after it.
    position = tl.load(p_position)
    splits = _splits_for(position, SIZES)
    i_head, i_split = tl.program_id(0), tl.program_id(1)
    oldest = tl.maximum(position - SIZES[5] + 1, 0)
    turn = _two_halves(p_cos + position * SIZES[0], SIZES[0] // 2)
    qnorm, knorm = _two_halves(p_qnorm, SIZES[0] // 2), _two_halves(p_knorm, SIZES[0] // 2)
    if FLAGS[0] and i_split < splits:
        _ask_ahead(p_k, p_v, p_direction, i_head, i_split, splits, kv_heads, room, position, oldest, SIZES,
                   FLAGS[2], True)  # fmt: skip
    if p_later is not None:
        ask_for_plane(p_later, p_later_range, lines, i_head, i_split, splits, kv_heads, SIZES[4], True)
    if i_split < splits:
        wait_for_inputs(FLAGS[0])
        _attend(p_qkv, p_k, p_v, turn, qnorm, knorm, p_sums, p_count, p_y, p_direction, p_x, p_m, p_part,
                heads, kv_heads, room, position, oldest, i_head, i_split, splits, SIZES, FLAGS)  # fmt: skip
