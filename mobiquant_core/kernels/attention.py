"""Attention of one new token over a static key-value cache: rotary embedding, cache write, softmax, in one launch.

Programs share the positions of a key-value head; the last one to finish adds them up and, where the heads fill whole
groups, prepares the output projection's input as well. It reads no weights but that router's first layer. What earlier
steps left in the cache is read before the wait; the newest position enters from registers.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.activation import split_groups
from mobiquant_core.kernels.lanes import begin_dependent, prefetch_l2, rounded16, wait_for_inputs
from mobiquant_core.kernels.route import AS_IT_IS, centre_part, direction_part, write_sketch_part

_NONE: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def _with_partner(p, DIM: tl.constexpr):
    """A row of numbers, and for every one the number half a row away; none where there is no tensor."""
    found = ()
    if p is not None:
        i_dim = tl.arange(0, DIM)
        found = (tl.load(p + i_dim).to(tl.float32), tl.load(p + (i_dim + DIM // 2) % DIM).to(tl.float32))
    return found


@triton.jit
def _turn(p_cos, DIM: tl.constexpr):
    """(cos, sin) of a position's rotation at every dimension; sin carries the sign its partner enters with."""
    i_dim = tl.arange(0, DIM)
    i_half = i_dim % (DIM // 2)
    b_sin = tl.load(p_cos + DIM // 2 + i_half).to(tl.float32)
    return tl.load(p_cos + i_half).to(tl.float32), tl.where(i_dim < DIM // 2, -b_sin, b_sin)


@triton.jit
def _block(p_k, p_v, i_block, position, oldest, SIZES: tl.constexpr):
    """Keys [dims, positions] and values [positions, dims] of a block's older positions."""
    i_dim = tl.arange(0, SIZES[0])
    i_position = i_block * SIZES[3] + tl.arange(0, SIZES[3])
    m_position = (i_position < position) & (i_position >= oldest)
    b_k = tl.load(p_k + i_position[None, :] * SIZES[0] + i_dim[:, None], mask=m_position[None, :], other=0.0)
    b_v = tl.load(p_v + i_position[:, None] * SIZES[0] + i_dim[None, :], mask=m_position[:, None], other=0.0)
    return b_k, b_v


@triton.jit
def _blocks(position, oldest, SIZES: tl.constexpr):
    """(first, end) of the blocks that hold the positions before the newest; at least one."""
    first = oldest // SIZES[3]
    return first, tl.maximum(tl.cdiv(position, SIZES[3]), first + 1)


@triton.jit
def _ask_ahead(p_k, p_v, i_split, splits, room, position, oldest, SIZES: tl.constexpr, ASM: tl.constexpr):
    """Brings the blocks of keys and values that this program takes after those it holds into the L2 cache."""
    LINE: tl.constexpr = 1024 // p_k.dtype.element_ty.primitive_bitwidth
    i_line = tl.arange(0, SIZES[3] * SIZES[0] // LINE)
    first, end = _blocks(position, oldest, SIZES)
    for i_block in range(first + i_split + SIZES[6] * splits, end, splits):
        # A block may reach past the last position there is room for.
        m_line = (i_block * SIZES[3] + i_line * LINE // SIZES[0] < room).to(tl.int32)
        o_line = i_block.to(tl.int64) * (SIZES[3] * SIZES[0]) + i_line * LINE
        prefetch_l2(p_k, o_line, m_line, ASM)
        prefetch_l2(p_v, o_line, m_line, ASM)


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
def _heads(p_x, i_row, m_row, norm, turn, eps, DIM: tl.constexpr):
    """Some heads [rows, DIM], normed (Qwen3) and rotated to the token's position by (cos, sin)."""
    i_dim = tl.arange(0, DIM)
    o_x = i_row[:, None] * DIM
    b_x = tl.load(p_x + o_x + i_dim[None, :], mask=m_row[:, None], other=0.0).to(tl.float32)
    # The partner of every number once more, from the L1 cache: cheaper than an exchange between threads.
    o_other = o_x + ((i_dim + DIM // 2) % DIM)[None, :]
    b_other = tl.load(p_x + o_other, mask=m_row[:, None], other=0.0).to(tl.float32)
    if len(norm) > 0:
        b_scale = tl.rsqrt(tl.sum(b_x * b_x, 1) / DIM + eps)[:, None]
        b_x = b_x * b_scale * norm[0][None, :]
        b_other = b_other * b_scale * norm[1][None, :]
    return b_x * turn[0][None, :] + b_other * turn[1][None, :]


@triton.jit
def _step(state, b_q, b_k, b_v, i_block, position, oldest, SIZES: tl.constexpr, TYPE: tl.constexpr):
    """(best score, sum of weights, weighted values) with one more block of positions."""
    i_position = i_block * SIZES[3] + tl.arange(0, SIZES[3])
    m_position = ((i_position < position) & (i_position >= oldest))[None, :]
    b_s = tl.where(m_position, tl.dot(b_q, b_k.to(TYPE), input_precision="ieee"), _NONE)
    b_best = tl.maximum(state[0], tl.max(b_s, 1))
    b_p = tl.where(m_position, tl.exp2(b_s - b_best[:, None]), 0.0)
    b_fade = tl.exp2(state[0] - b_best)
    b_y = tl.dot(b_p.to(TYPE), b_v.to(TYPE), state[2] * b_fade[:, None], input_precision="ieee")
    return b_best, state[1] * b_fade + tl.sum(b_p, 1), b_y


@triton.jit
def _newest(p_qkv, b_q, knorm, turn, p_k, p_v, i_key, i_value, position, owner, eps, SIZES: tl.constexpr,
            TYPE: tl.constexpr):  # fmt: skip
    """The newest position alone, from registers, by the program that owns it, which also writes it into the cache:
    (its score, 1, its value), or the empty sum."""
    DIM: tl.constexpr = SIZES[0]
    KIND: tl.constexpr = p_k.dtype.element_ty
    i_row, i_dim = tl.arange(0, b_q.shape[0]), tl.arange(0, DIM)
    # Every row has the key beside its query, so that no thread asks another for it; rounded as later steps read it.
    b_k = _heads(p_qkv, i_key + 0 * i_row, i_row < SIZES[2], knorm, turn, eps, DIM).to(KIND)
    b_v = tl.load(p_qkv + i_value * DIM + i_dim).to(KIND)
    b_top = tl.where(owner, tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), 1), _NONE)
    b_y = tl.zeros((b_q.shape[0], DIM), tl.float32) + tl.where(owner, b_v.to(TYPE).to(tl.float32), 0.0)[None, :]
    if owner:
        o_new = position * DIM + i_dim
        tl.store(p_k + o_new[None, :] + 0 * i_row[:, None], b_k, mask=(i_row == 0)[:, None])
        tl.store(p_v + o_new, b_v)
    return b_top, tl.where(owner, 1.0, 0.0) + tl.zeros_like(b_top), b_y


@triton.jit
def _real_rows(b_y, SIZES: tl.constexpr):
    """The rows [query heads, dims] out of those that only fill a tensor-core product."""
    i_row = tl.arange(0, b_y.shape[0])
    b_y = tl.where((i_row < SIZES[1])[:, None], b_y, 0.0)
    return tl.sum(tl.reshape(b_y, (b_y.shape[0] // SIZES[2], SIZES[2], SIZES[0])), 0)


@triton.jit
def _leave(p_sums, state, b_y, i_split, SIZES: tl.constexpr):
    """One split's (best score, sum of weights) of all rows and weighted values, for the split that comes last."""
    ROWS: tl.constexpr = state[0].shape[0]
    i_row = tl.arange(0, ROWS)
    m_row = i_row < SIZES[2]
    p_top = p_sums + SIZES[4] * SIZES[2] * SIZES[0] + i_split * SIZES[2] * 2
    tl.store(p_top + i_row, state[0], mask=m_row)
    tl.store(p_top + SIZES[2] + i_row, state[1], mask=m_row)
    o_y = tl.arange(0, SIZES[2])[:, None] * SIZES[0] + tl.arange(0, SIZES[0])[None, :]
    tl.store(p_sums + i_split * SIZES[2] * SIZES[0] + o_y, b_y)


@triton.jit
def _merge(p_sums, splits, SIZES: tl.constexpr):
    """Adds up the splits of a key-value head: its query heads [query heads, dims]."""
    DIM: tl.constexpr = SIZES[0]
    ROWS: tl.constexpr = SIZES[2]
    SPLITS: tl.constexpr = SIZES[4]
    i_row, i_dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    p_top = p_sums + SPLITS * ROWS * DIM + i_row
    o_y = i_row[:, None] * DIM + i_dim[None, :]
    tops = ()
    b_best = tl.full((ROWS,), _NONE, tl.float32)
    for split in tl.static_range(SPLITS):
        b_top = tl.load(p_top + split * 2 * ROWS, mask=i_row * 0 + split < splits, other=_NONE, cache_modifier=".cg")
        b_best = tl.maximum(b_best, b_top)
        tops = tops + (b_top,)  # noqa: RUF005
    b_total = tl.zeros((ROWS,), tl.float32)
    b_y = tl.zeros((ROWS, DIM), tl.float32)
    # Unrolled: what every split left is on its way before the first of it is added.
    for split in tl.static_range(SPLITS):
        m_row = i_row * 0 + split < splits
        b_weight = tl.exp2(tops[split] - b_best)
        b_sum = tl.load(p_top + (split * 2 + 1) * ROWS, mask=m_row, other=0.0, cache_modifier=".cg")
        p_part = p_sums + split * ROWS * DIM + o_y
        b_part = tl.load(p_part, mask=m_row[:, None] & (o_y >= 0), other=0.0, cache_modifier=".cg")
        b_total += b_weight * b_sum
        b_y += b_weight[:, None] * b_part
    return b_y / b_total[:, None]


@triton.jit
def _prepare_output(
    b_y, b_energy, b_centre, p_x, p_m, p_part, i_head, kv_heads, SIZES: tl.constexpr, HIDDEN: tl.constexpr,
    SKETCH: tl.constexpr,
):  # fmt: skip
    """Bytes, and a closed form's part, of this head's columns of what the output projection reads (route.py)."""
    GROUPS: tl.constexpr = SIZES[0] * SIZES[1] // 128
    i_group = i_head * GROUPS + tl.arange(0, GROUPS)
    split_groups(tl.reshape(b_y, (GROUPS, 128)), p_x, p_m, i_group, kv_heads * GROUPS)
    b_x = tl.reshape(b_y, (SIZES[0] * SIZES[1],))
    if SKETCH:
        write_sketch_part(p_part, i_head, b_x, b_x, b_energy, b_centre, HIDDEN, AS_IT_IS)


@triton.jit
def _splits_for(position, oldest, SIZES: tl.constexpr):
    """How many programs share a key-value head's positions: adding up costs more than a few blocks do."""
    first, end = _blocks(position, oldest, SIZES)
    return tl.minimum(tl.cdiv(end - first, SIZES[7]), SIZES[4])


@triton.jit
def _held_blocks(p_k, p_v, i_split, splits, position, oldest, SIZES: tl.constexpr):
    """This program's first blocks: ((keys, values), ...); those beyond the last are empty."""
    HELD: tl.constexpr = SIZES[6]
    first, _ = _blocks(position, oldest, SIZES)
    held = ()
    for block in tl.static_range(HELD):
        i_block = first + i_split + block * splits
        held = held + (_block(p_k, p_v, i_block, position, oldest, SIZES),)  # noqa: RUF005
    return held


@triton.jit
def _scan(
    state, b_q, held, p_k, p_v, i_split, splits, position, oldest, SIZES: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """The state after every `splits`-th block of positions: those held, then the others."""
    first, end = _blocks(position, oldest, SIZES)
    HELD: tl.constexpr = SIZES[6]
    b_top, b_total, b_y = _step(state, b_q, held[0][0], held[0][1], first + i_split, position, oldest, SIZES, TYPE)
    for block in tl.static_range(1, HELD):
        i_block = first + i_split + block * splits
        if i_block < end:
            b_top, b_total, b_y = _step((b_top, b_total, b_y), b_q, held[block][0], held[block][1], i_block, position,
                                        oldest, SIZES, TYPE)  # fmt: skip
    # Stages would take shared memory from the kernels that overlap with this one.
    for i_block in tl.range(first + i_split + SIZES[6] * splits, end, splits, num_stages=1):
        b_k, b_v = _block(p_k, p_v, i_block, position, oldest, SIZES)
        b_top, b_total, b_y = _step((b_top, b_total, b_y), b_q, b_k, b_v, i_block, position, oldest, SIZES, TYPE)
    return b_top, b_total, b_y


@triton.jit
def _attend(
    p_qkv, p_k, p_v, held, turn, qnorm, knorm, p_sums, p_count, heads, kv_heads, position, oldest, i_head, i_split,
    splits, SIZES: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """One split of one key-value head: (whether it came last, the query heads' outputs then)."""
    ROWS: tl.constexpr = 16 if SIZES[2] < 16 else SIZES[2]
    i_row = tl.arange(0, ROWS)
    TYPE: tl.constexpr = tl.float32 if FLAGS[1] else p_k.dtype.element_ty
    b_q = _heads(p_qkv, i_head * SIZES[1] + i_row, i_row < SIZES[1], qnorm, turn, FLAGS[4], SIZES[0]) * FLAGS[3]
    if not FLAGS[1]:
        b_q = rounded16(b_q, TYPE)
    state = _newest(p_qkv, b_q, knorm, turn, p_k, p_v, heads + i_head, heads + kv_heads + i_head, position,
                    i_split == 0, FLAGS[4], SIZES, TYPE)  # fmt: skip
    state = _scan(state, b_q, held, p_k, p_v, i_split, splits, position, oldest, SIZES, TYPE)
    last = splits == 1
    if last:
        b_y = _real_rows(state[2] / state[1][:, None], SIZES)
    else:
        b_y = _real_rows(state[2], SIZES)
        p_sums += i_head * SIZES[4] * SIZES[2] * (SIZES[0] + 2)
        _leave(p_sums, state, b_y, i_split, SIZES)
        tl.debug_barrier()
        last = tl.atomic_add(p_count + i_head, 1) == splits - 1
        if last:
            tl.store(p_count + i_head, 0)
            b_y = _merge(p_sums, splits, SIZES)
    return last, b_y


@triton.jit
def _energy(p_energy, i_head, kv_heads, SIZES: tl.constexpr, FLAGS: tl.constexpr):
    """This head's columns of a closed form's energies and of its centre, where there is one."""
    WIDTH: tl.constexpr = SIZES[0] * SIZES[1]
    found = (0.0, 0.0)
    if FLAGS[2] > 0 and FLAGS[5]:
        i_column = i_head * WIDTH + tl.arange(0, WIDTH)
        b_energy = direction_part(p_energy, i_column, kv_heads * WIDTH, FLAGS[2])
        found = (b_energy, centre_part(p_energy, i_column, kv_heads * WIDTH, FLAGS[2]))
    return found


@triton.jit
def attention_kernel(
    p_qkv, p_k, p_v, p_cos, p_qnorm, p_knorm, p_position, p_sums, p_count, p_y, p_energy, p_x, p_m, p_part,
    p_later, p_later_range, heads, kv_heads, room, lines, SIZES: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    """p_later: planes of a later product that `lines` lines are asked for of, or None.
    SIZES: (head dim, query heads per key-value head, the same padded, positions per block, splits, window, blocks read
    before the wait, blocks that a program takes before a second one helps).
    FLAGS: (PDL, fp32 products, half the numbers of a router part or 0 to leave the output raw, score scale, norm eps,
    whether the router is a sketch)."""
    begin_dependent(FLAGS[0])
    # Read before the wait: the position changes after a step's last layer, older keys and values come from earlier
    # steps, and a step begins with a launch that overlaps with none (embed), so all of it was there before this step's
    # first kernel began. What kernels of this step write, the newest token's queries, keys and values, comes after it.
    position = tl.load(p_position)
    i_head, i_split = tl.program_id(0), tl.program_id(1)
    oldest = tl.maximum(position - SIZES[5] + 1, 0)
    splits = _splits_for(position, oldest, SIZES)
    if p_later is not None:
        ask_for_plane(p_later, p_later_range, lines, i_head, i_split, splits, kv_heads, SIZES[4], True)
    if i_split < splits:
        p_k += i_head.to(tl.int64) * room * SIZES[0]
        p_v += i_head.to(tl.int64) * room * SIZES[0]
        held = _held_blocks(p_k, p_v, i_split, splits, position, oldest, SIZES)
        turn = _turn(p_cos + position * SIZES[0], SIZES[0])
        qnorm, knorm = _with_partner(p_qnorm, SIZES[0]), _with_partner(p_knorm, SIZES[0])
        b_energy, b_centre = _energy(p_energy, i_head, kv_heads, SIZES, FLAGS)
        if FLAGS[0]:
            _ask_ahead(p_k, p_v, i_split, splits, room, position, oldest, SIZES, True)
        wait_for_inputs(FLAGS[0])
        last, b_y = _attend(p_qkv, p_k, p_v, held, turn, qnorm, knorm, p_sums, p_count, heads, kv_heads, position,
                            oldest, i_head, i_split, splits, SIZES, FLAGS)  # fmt: skip
        if last:
            if FLAGS[2] > 0:
                _prepare_output(b_y, b_energy, b_centre, p_x, p_m, p_part, i_head, kv_heads, SIZES, FLAGS[2], FLAGS[5])
            else:
                i_row = tl.arange(0, SIZES[2])[:, None]
                o_y = (i_head * SIZES[1] + i_row) * SIZES[0] + tl.arange(0, SIZES[0])[None, :]
                tl.store(p_y + o_y, b_y, mask=i_row < SIZES[1])
