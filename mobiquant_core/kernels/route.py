"""From a site's raw input to what its product needs: activation bytes, and the router's first layer in parts.

A perceptron reads what comes from a norm, and decides for its own site and the one behind it; a closed form reads the
input of every site.

Programs share the columns of a token and never wait for each other: each product adds up the parts by itself and
decides its depth (`decide`), so a decode step needs neither a second launch nor the host. Routers are the two-layer
perceptron of mobiquant_core.router or, with SKETCH, its closed form.
"""

import triton
import triton.language as tl

from mobiquant_core.kernels.activation import split_groups
from mobiquant_core.kernels.lanes import begin_dependent, wait_for_inputs

HEADS: tl.constexpr = tl.constexpr(4)
"""Linears of a site, padded: the router's small parameters are stored for this many."""
EXTRA: tl.constexpr = tl.constexpr(3)
AS_IT_IS: tl.constexpr = tl.constexpr(0)
NORM: tl.constexpr = tl.constexpr(1)
GATE: tl.constexpr = tl.constexpr(2)
_LINEAR: tl.constexpr = tl.constexpr(4)
"""Where the linear sums of a sketch router start in the second half of a part, which begins with the sum of squares."""
_ROUNDING: tl.constexpr = tl.constexpr(1e-7)
"""Least part of the centre's energy that is left of it in fp32 when the input cancels it."""


@triton.jit
def site_inputs(p_h, b_norm, i_column, width, MODE: tl.constexpr):
    """A site's input at some columns: as it is, times the norm's weight (the token's rms comes later), or gated."""
    m_column = i_column < width
    b_x = tl.load(p_h + i_column, mask=m_column, other=0.0).to(tl.float32)
    if MODE == NORM:
        return b_x * b_norm
    elif MODE == GATE:
        return b_x * tl.sigmoid(b_x) * tl.load(p_h + width + i_column, mask=m_column, other=0.0).to(tl.float32)
    else:
        return b_x


@triton.jit
def add2(a0, a1, b0, b1):
    """Adds pairs, for a reduction of two tensors at once."""
    return a0 + b0, a1 + b1


@triton.jit
def write_part(p_part, i_part, b_x, b_h, b_direction, HIDDEN: tl.constexpr, ROUTED: tl.constexpr):
    """One row of 2 HIDDEN numbers: first-layer sums of x, then the sums of h^2 and x^2, with h what the norm reads and
    x that times the norm's weight."""
    p_part += i_part * 2 * HIDDEN
    if ROUTED:
        tl.store(p_part + tl.arange(0, HIDDEN), tl.sum(b_direction.to(tl.float32) * b_x[None, :], 1))
    # In one reduction, so that warps meet once for both.
    found = tl.reduce((b_h * b_h, b_x * b_x), 0, add2)
    for index in tl.static_range(2):
        tl.store(p_part + HIDDEN + index, found[index])


@triton.jit
def write_sketch_part(p_part, i_part, b_x, b_h, b_energy, b_centre, HIDDEN: tl.constexpr, MODE: tl.constexpr):
    """A sketch router's row of 2 HIDDEN numbers: energy sums of every score, sum of h^2 where `write_part` has it.

    Before a norm is known, sum e (s x - c)^2 goes apart into powers of its scale s: e x^2 here, e c x behind.
    """
    p_part += i_part * 2 * HIDDEN
    i_score = tl.arange(0, HIDDEN)
    b_energy = b_energy.to(tl.float32)
    if MODE == NORM:
        b_linear = tl.sum(b_energy * (b_x * b_centre)[None, :], 1)
        tl.store(p_part + HIDDEN + _LINEAR + i_score, b_linear, mask=i_score < HEADS * EXTRA)
        tl.store(p_part + HIDDEN, tl.sum(b_h * b_h, 0))
    else:
        b_x -= b_centre
    tl.store(p_part + i_score, tl.sum(b_energy * (b_x * b_x)[None, :], 1))


@triton.jit
def centre_part(p_direction, i_column, width, HIDDEN: tl.constexpr):
    """A sketch router's centre at some columns: the last row, which is no score's."""
    return tl.load(p_direction + (HIDDEN - 1) * width + i_column, mask=i_column < width, other=0.0).to(tl.float32)


@triton.jit
def direction_part(p_direction, i_column, width, HIDDEN: tl.constexpr):
    """The router's first layer at some columns, [HIDDEN, columns]."""
    o_direction = tl.arange(0, HIDDEN)[:, None] * width + i_column[None, :]
    return tl.load(p_direction + o_direction, mask=(i_column < width)[None, :], other=0.0)


@triton.jit
def prepare_kernel(
    p_h, p_norm, p_direction, p_x, p_m, p_part, p_copy, width, NG, HIDDEN: tl.constexpr, GROUPS: tl.constexpr,
    MODE: tl.constexpr, PDL: tl.constexpr, SKETCH: tl.constexpr,
):  # fmt: skip
    """Bytes and router part of GROUPS groups of one token; what a norm reads is copied where somebody keeps it."""
    begin_dependent(PDL)
    i_program = tl.program_id(0)
    i_group = i_program * GROUPS + tl.arange(0, GROUPS)
    i_column = i_program * GROUPS * 128 + tl.arange(0, GROUPS * 128)
    # Constants come in while the kernel before this one still runs.
    # Without a router the depths are given from outside, and only the norm's sum is needed.
    b_direction = 0.0
    if p_direction is not None:
        b_direction = direction_part(p_direction, i_column, width, HIDDEN)
    b_centre = 0.0
    if SKETCH:
        b_centre = centre_part(p_direction, i_column, width, HIDDEN)
    b_norm = 1.0
    if MODE == NORM:
        b_norm = tl.load(p_norm + i_column, mask=i_column < width, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    b_x = site_inputs(p_h, b_norm, i_column, width, MODE)
    b_h = b_x
    if MODE == NORM:
        # The same numbers once more, from the L1 cache: asked for now, they are there when the bytes are written.
        b_h = tl.load(p_h + i_column, mask=i_column < width, other=0.0)
        if p_copy is not None:
            tl.store(p_copy + i_column, b_h, mask=i_column < width)
    split_groups(tl.reshape(b_x, (GROUPS, 128)), p_x, p_m, i_group, NG)
    if SKETCH:
        write_sketch_part(p_part, i_program, b_x, b_h, b_direction, b_centre, HIDDEN, MODE)
    elif MODE == NORM:
        write_part(p_part, i_program, b_x, b_h, b_direction, HIDDEN, p_direction is not None)


@triton.jit
def router_constants(p_small, p_control, head, HIDDEN: tl.constexpr, MODE: tl.constexpr, SKETCH: tl.constexpr):
    """What the decision at linear `head` reads besides its parts: (threshold, fixed depth or 0), and the router's
    second layer. No kernel of a step writes it, so it is on its way while the kernel before still runs."""
    constants = (tl.load(p_control + 4 * head), tl.load(p_control + 4 * head + 1))
    if p_small is not None:
        if SKETCH:
            constants = constants + _sketch_constants(p_small, head, MODE)
        else:
            constants = constants + _perceptron_constants(p_small, head, HIDDEN)
    return constants


@triton.jit
def _perceptron_constants(p_small, head, HIDDEN: tl.constexpr):
    """Rows for size and bias; then row and base of every slice's score."""
    i_lane = tl.arange(0, 2 * HIDDEN)
    m_hidden = i_lane < HIDDEN
    constants = ()
    for row in tl.static_range(2):
        constants = constants + (tl.load(p_small + row * HIDDEN + i_lane, mask=m_hidden, other=0.0),)  # noqa: RUF005
    p_base = p_small + 2 * HIDDEN
    p_row = p_base + HEADS * EXTRA
    for extra in tl.static_range(EXTRA):
        i_score = head + extra * HEADS
        b_row = tl.load(p_row + i_score * HIDDEN + i_lane, mask=m_hidden, other=0.0)
        constants = constants + (b_row, tl.load(p_base + i_score))  # noqa: RUF005
    return constants


@triton.jit
def _sketch_constants(p_small, head, MODE: tl.constexpr):
    """Offset and energy of the centre of every slice."""
    constants = ()
    for extra in tl.static_range(EXTRA):
        i_score = head + extra * HEADS
        energy = 0.0
        if MODE == NORM:
            energy = tl.load(p_small + HEADS * EXTRA + i_score)
        constants = constants + (tl.load(p_small + i_score), energy)  # noqa: RUF005
    return constants


@triton.jit
def sum_parts(p_part, PARTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Sums over a site's router parts, [2 HIDDEN]."""
    i_lane = tl.arange(0, 2 * HIDDEN)
    b_sum = tl.zeros((2 * HIDDEN,), tl.float32)
    for i in tl.static_range(PARTS):
        b_sum += tl.load(p_part + i * 2 * HIDDEN + i_lane)
    return b_sum


@triton.jit
def decide(
    p_record, constants, b_sum, width, eps, head, record, HIDDEN: tl.constexpr, MODE: tl.constexpr,
    ROUTED: tl.constexpr, SKETCH: tl.constexpr,
):  # fmt: skip
    """(depth, 1 / rms) of the token at linear `head` of the site; every program finds them for itself.

    Of each linear: control (threshold, fixed depth or 0, two unused), record (scores of the residual slices, depth).
    """
    scale = 1.0
    if MODE == NORM:
        scale = tl.rsqrt(_element(b_sum, HIDDEN) / width + eps)
    depth = constants[1].to(tl.int32)
    if ROUTED:
        if SKETCH:
            chosen = _sketch_score(p_record, constants, b_sum, scale, head, record, HIDDEN, MODE)
        else:
            chosen = _score(p_record, constants, b_sum, scale, width, head, record, HIDDEN)
        depth = tl.where(depth > 0, depth, chosen)
    tl.store(p_record + 4 * head + EXTRA, depth.to(tl.float32), mask=record)
    return depth, scale


@triton.jit
def decided(p_record, head):
    """(depth, 1) of a linear about which an earlier product has decided: behind a norm, none follows another."""
    return tl.load(p_record + 4 * head + EXTRA).to(tl.int32), 1.0


@triton.jit
def _element(b_x, INDEX: tl.constexpr):
    """One element of a tensor, which must not be negative: as integers, whose largest a warp finds in one instruction.

    A sum of floats would take five steps of a shuffle and an addition, on the way to the first weight.
    """
    b_bits = tl.where(tl.arange(0, b_x.numel) == INDEX, b_x.to(tl.int32, bitcast=True), 0)
    return tl.max(b_bits, 0).to(tl.float32, bitcast=True)


@triton.jit
def _add3(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _score(p_record, constants, b_sum, scale, width, head, record, HIDDEN: tl.constexpr):
    """The router's second layer: the depth by its scores, which are recorded."""
    squares = tl.maximum(_element(b_sum, HIDDEN + 1), 1e-30)
    # Of the input behind its norm, which the parts do not have yet.
    length = tl.sqrt(squares) * scale
    b_pre = b_sum * tl.sqrt(width.to(tl.float32) / squares) + constants[2] * tl.log(length) + constants[3]
    b_hidden = tl.where(tl.arange(0, 2 * HIDDEN) < HIDDEN, tl.maximum(b_pre, 0.0), 0.0)
    # Three sums at once: their shuffles overlap.
    sums = tl.reduce((constants[4] * b_hidden, constants[6] * b_hidden, constants[8] * b_hidden), 0, _add3)
    least = float("inf")
    depth = 1
    for extra in tl.static_range(EXTRA):
        least = tl.minimum(least, sums[extra] + constants[5 + 2 * extra])
        depth += (least > constants[0]).to(tl.int32)
        tl.store(p_record + 4 * head + extra, least, mask=record)
    return depth


@triton.jit
def _sketch_score(p_record, constants, b_sum, scale, head, record, HIDDEN: tl.constexpr, MODE: tl.constexpr):
    """The depth by a sketch router's scores, which are recorded."""
    i_lane = tl.arange(0, 2 * HIDDEN)
    if MODE == NORM:
        b_sum *= tl.where(i_lane < HIDDEN, scale * scale, -2.0 * scale)
    least = float("inf")
    depth = 1
    for extra in tl.static_range(EXTRA):
        i_score = head + extra * HEADS
        m_own = i_lane == i_score
        if MODE == NORM:
            m_own |= i_lane == HIDDEN + _LINEAR + i_score
        gain = tl.sum(tl.where(m_own, b_sum, 0.0), 0) + constants[3 + 2 * extra]
        # What rounding leaves of terms that cancel must not pass for no gain at all.
        gain = tl.maximum(gain, tl.maximum(constants[3 + 2 * extra] * _ROUNDING, 1e-30))
        least = tl.minimum(least, tl.log(gain) + constants[2 + 2 * extra])
        depth += (least > constants[0]).to(tl.int32)
        tl.store(p_record + 4 * head + extra, least, mask=record)
    return depth
