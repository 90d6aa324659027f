"""Words of planes to bf16 weights, as four warps write them into shared memory (Gluon). It knows no tokens.

Nothing is converted: a code is moved to the top of a byte, and that byte read as a 16-bit number lies below bf16's
smallest normal number, where it is byte * 2^-133 exactly. One multiply-add makes two of them values.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mobiquant_core.kernels.prompt_plan import ROWS

COLUMNS = gl.constexpr(64)
"""Columns that are cut at once: half a group."""
THREADS = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
SCALE = gl.constexpr(65536.0)
"""What the products have to be multiplied by: weights are made times 2^-16, so that their factors are bf16 numbers."""


@gluon.jit
def load_words(p, o, o_plane, K: gl.constexpr):
    """Four words of each of the first K planes."""
    w = ()
    for plane in gl.static_range(K):
        w = w + gl.inline_asm_elementwise(
            "ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {$0, $1, $2, $3}, [$4];",
            "=r,=r,=r,=r,l",
            [(p + plane * o_plane + o).to(gl.int64)],
            dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
            is_pure=False,
            pack=1,
        )
    return w


@gluon.jit
def load_ranges(p, o):
    """The words of ranges of rows g and g + 8."""
    return gl.inline_asm_elementwise(
        "ld.global.nc.v2.b32 {$0, $1}, [$2];",
        "=r,=r,l",
        [(p + o).to(gl.int64)],
        dtype=(gl.int32, gl.int32),
        is_pure=False,
        pack=1,
    )


@gluon.jit
def factors(b_range, K: gl.constexpr):
    """(factor of a code's byte, value of code 0) of a row's range, each twice in a number and times 2^-16."""
    # Half a cell: 2^(1 - 2 K).
    HALF: gl.constexpr = (
        "0f3F000000" if K == 1 else "0f3E000000" if K == 2 else "0f3D000000" if K == 3 else "0f3C000000"
    )
    # A byte holds 64 steps of the first slice: step * 2^-6 * 2^133 * 2^-16.
    return gl.inline_asm_elementwise(
        "{ .reg .b16 s, e; .reg .f32 step, edge, a; mov.b32 {s, e}, $2; cvt.f32.f16 step, s; cvt.f32.f16 edge, e; "
        "mul.f32 a, step, 0f77000000; cvt.rn.bf16x2.f32 $0, a, a; fma.rn.f32 edge, step, " + HALF + ", edge; "
        "mul.f32 edge, edge, 0f37800000; cvt.rn.bf16x2.f32 $1, edge, edge; }",
        "=&r,=&r,r",
        [b_range],
        dtype=(gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _select(b_on, b_off, MASK: gl.constexpr):
    return gl.inline_asm_elementwise(
        "lop3.b32 $0, $1, $2, " + MASK + ", 0xE4;", "=r,r,r", [b_on, b_off], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _shift(b, LEFT: gl.constexpr):
    if LEFT >= 0:
        return b << LEFT
    else:
        return b >> -LEFT


@gluon.jit
def _nibbles(w, WORD: gl.constexpr, PLANE: gl.constexpr, ODD: gl.constexpr, BOTH: gl.constexpr):
    """Codes of planes PLANE and, with BOTH, PLANE + 1 as nibbles: fields (0, 2) of every byte, or (1, 3)."""
    b_first = w[4 * PLANE + WORD]
    if not BOTH:
        return b_first if ODD else b_first << 2
    elif ODD:
        return _select(b_first, w[4 * PLANE + 4 + WORD] >> 2, "0xCCCCCCCC")
    else:
        return _select(b_first << 2, w[4 * PLANE + 4 + WORD], "0xCCCCCCCC")


@gluon.jit
def _code_bytes(w, WORD: gl.constexpr, FIELD: gl.constexpr, K: gl.constexpr):
    """Codes of field FIELD at the top of every byte, nothing below."""
    if K == 1:
        return _shift(w[WORD], 6 - 2 * FIELD) & -0x3F3F3F40
    else:
        b_first = _shift(_nibbles(w, WORD, 0, FIELD % 2, True), 0 if FIELD >= 2 else 4)
        if K == 2:
            return b_first & -0x0F0F0F10
        else:
            b_last = _shift(_nibbles(w, WORD, 2, FIELD % 2, K == 4), -4 if FIELD >= 2 else 0)
            b_codes = _select(b_first, b_last, "0xF0F0F0F0")
            return b_codes & -0x03030304 if K == 3 else b_codes


@gluon.jit
def _pair(b_code, f, SECOND: gl.constexpr):
    """Values of bytes 0 and 1, or 2 and 3, as bits: [threads, column]."""
    PICK: gl.constexpr = "0x4342" if SECOND else "0x4140"
    b_first, b_second = gl.inline_asm_elementwise(
        "{ .reg .b32 m; prmt.b32 m, $2, 0, " + PICK + "; fma.rn.bf16x2 m, m, $3, $4; mov.b32 {$0, $1}, m; }",
        "=h,=h,r,r,r",
        [b_code, f[0], f[1]],
        dtype=(gl.int16, gl.int16),
        is_pure=True,
        pack=1,
    )
    return gl.join(b_first, b_second)


@gluon.jit
def _row(w, f, FIRST: gl.constexpr, HALF: gl.constexpr, K: gl.constexpr):
    """Fields 2 HALF and 2 HALF + 1 of one row of a tile: [threads, column, pair, word, field]."""
    fields = ()
    for field in gl.static_range(2 * HALF, 2 * HALF + 2):
        words = ()
        for word in gl.static_range(2):
            b_code = _code_bytes(w, FIRST + 2 * word, field, K)
            # Triton joins tuples, but does not unpack them in place.
            words = words + (gl.join(_pair(b_code, f, False), _pair(b_code, f, True)),)  # noqa: RUF005
        fields = fields + (gl.join(words[0], words[1]),)  # noqa: RUF005
    return gl.join(fields[0], fields[1])


@gluon.jit
def _tile(w, f, HALF: gl.constexpr, K: gl.constexpr):
    """Half the columns of a group for the tile of a warp: [threads, column, pair, word, field, row g or g + 8]."""
    return gl.join(_row(w, (f[0], f[1]), 0, HALF, K), _row(w, (f[2], f[3]), 1, HALF, K))


@gluon.jit
def cut(w0, w1, f0, f1, HALF: gl.constexpr, K: gl.constexpr):
    """Half the columns of a group for two tiles a warp: [128, 64] weights, eight in a row a thread.

    Row 4 a + 2 b + c of every eight stands at 4 c + 2 b + a: eight threads that write at once then meet no bank twice.
    """
    b = gl.join(_tile(w0, f0, HALF, K), _tile(w1, f1, HALF, K))
    # warp, a, b, c, lane of four, column, pair, word, field, rows g and g + 8, tile
    b = gl.reshape(b, [4, 2, 2, 2, 4, 2, 2, 2, 2, 2, 2])
    b = gl.reshape(gl.permute(b, [10, 0, 9, 3, 2, 1, 8, 4, 7, 6, 5]), [ROWS, COLUMNS])
    return b.to(gl.bfloat16, bitcast=True)


@gluon.jit
def row_at(i_place):
    """The row that `cut` put at a place; its own inverse."""
    return (i_place & -6) + (i_place & 1) * 4 + (i_place & 4) // 4
