"""Results of a unit of the prompt product: sums of both halves of a narrow one, and each token's row (Gluon)."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mobiquant_core.kernels.gluon_names import barrier
from mobiquant_core.kernels.prompt_cuts import SCALE, row_at
from mobiquant_core.kernels.prompt_plan import ROWS, WIDEST_NARROW

PIECE = gl.constexpr(64)
"""Tokens whose results pass through shared memory at once."""
_STORE = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [8, 1], [1, 0]))


@gluon.jit
def _pieces(b_y, WIDTH: gl.constexpr):
    """Results of 64 tokens each."""
    if WIDTH <= PIECE:
        return (b_y,)
    else:
        b_first, b_second = gl.split(gl.permute(gl.reshape(b_y, [ROWS, 2, WIDTH // 2]), [0, 2, 1]))
        return _pieces(b_first, WIDTH // 2) + _pieces(b_second, WIDTH // 2)


@gluon.jit
def _slots(FIRST: gl.constexpr, COUNT: gl.constexpr):
    return FIRST + gl.arange(0, COUNT, layout=gl.SliceLayout(1, _STORE))


@gluon.jit
def tokens_of(p_token, valid, WIDTH: gl.constexpr):
    """The numbers of a tile's tokens, as many in a tensor as are stored at once."""
    AT_ONCE: gl.constexpr = min(PIECE, WIDTH)
    tokens = ()
    for i in gl.static_range(WIDTH // AT_ONCE):
        i_slot = _slots(i * AT_ONCE, AT_ONCE)
        # Triton joins tuples, but does not unpack them in place.
        tokens = tokens + (gl.load(p_token + i_slot, mask=i_slot < valid, other=0),)  # noqa: RUF005
    return tokens


@gluon.jit
def store(
    acc, piece, tokens, valid, first_row, own_rows, p_y, p_gain, p_bias, p_shift, o_section, o_depth,
    WIDTH: gl.constexpr, ACC: gl.constexpr,
):  # fmt: skip
    """Rows of a section times gain plus bias and shift, each token where it came from: 256 bytes of a token in a
    row."""
    i_row = first_row + row_at(gl.arange(0, ROWS, layout=gl.SliceLayout(1, ACC)))
    m_row = i_row < own_rows
    b_gain = gl.full([ROWS], SCALE, gl.float32, layout=gl.SliceLayout(1, ACC))
    b_add = gl.full([ROWS], 0.0, gl.float32, layout=gl.SliceLayout(1, ACC))
    if p_gain is not None:
        b_gain *= gl.load(p_gain + o_depth + i_row, mask=m_row, other=0.0)
    if p_bias is not None:
        b_add += gl.load(p_bias + o_section + i_row, mask=m_row, other=0.0)
    if p_shift is not None:
        b_add += gl.load(p_shift + o_depth + i_row, mask=m_row, other=0.0)
    b_pieces = _pieces((acc * b_gain[:, None] + b_add[:, None]).to(p_y.dtype.element_ty), WIDTH)
    i_out = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, _STORE))
    AT_ONCE: gl.constexpr = min(PIECE, WIDTH)
    for i in gl.static_range(WIDTH // AT_ONCE):
        own = piece.slice(0, AT_ONCE)
        own.store(gl.permute(b_pieces[i], [1, 0]))
        # A thread holds eight places in a row, and puts their rows in order.
        b_out = gl.permute(gl.reshape(own.load(_STORE), [AT_ONCE, ROWS // 8, 2, 2, 2]), [0, 1, 4, 3, 2])
        b_out = gl.convert_layout(gl.reshape(b_out, [AT_ONCE, ROWS]), _STORE)
        p_out = p_y + tokens[i][:, None].to(gl.int64) * own_rows + i_out[None, :]
        gl.store(p_out, b_out, mask=(_slots(i * AT_ONCE, AT_ONCE) < valid)[:, None] & (i_out < own_rows)[None, :])


@gluon.jit
def with_other_half(acc, p_partial, p_arrived, i_tile, part, WIDTH: gl.constexpr, ACC: gl.constexpr):
    """(sum over both halves of a tile's groups, whether this one came last and knows the other's)."""
    i_place = gl.arange(0, ROWS, layout=gl.SliceLayout(1, ACC))[:, None] * WIDTH
    i_place += gl.arange(0, WIDTH, layout=gl.SliceLayout(0, ACC))[None, :]
    p_tile = p_partial + i_tile.to(gl.int64) * (2 * ROWS * WIDEST_NARROW)
    gl.store(p_tile + part * (ROWS * WIDEST_NARROW) + i_place, acc)
    # All of this half is written before anyone hears of it.
    barrier()
    last = gl.atomic_add(p_arrived + i_tile, 1, sem="acq_rel", scope="gpu") > 0
    if last:
        acc += gl.load(p_tile + (1 - part) * (ROWS * WIDEST_NARROW) + i_place, cache_modifier=".cg")
    return acc, last
