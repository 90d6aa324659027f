"""What the programs of the prompt product share out: units of 128 rows by up to 256 tokens of one depth (Gluon).

Units come by width, the widest first, then by depth; a program takes every n-th of n programs. Filling and multiplying
warps count them off alike. It knows neither weights nor tokens.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

WIDEST = gl.constexpr(256)
WIDTHS = gl.constexpr(3)
"""Widths of token tiles: 256, 128, 64."""
_NARROWEST = gl.constexpr(64)
_BAND = gl.constexpr(4)


@gluon.jit
def token_tiles(count, width):
    """Token tiles of one depth and width: whole ones of the widest, and the rest in the narrowest that holds it."""
    rest = count % WIDEST
    above = gl.where(width == _NARROWEST, 0, width // 2)
    tiles = ((rest > above) & (rest <= width)).to(gl.int32)
    return tiles + gl.where(width == WIDEST, count // WIDEST, 0)


@gluon.jit
def first_token(tile, count, width):
    """Place among the tokens of its depth where a token tile starts."""
    return gl.where(width == WIDEST, tile, count // WIDEST) * WIDEST


@gluon.jit
def parts_of(width, groups):
    """Units that share the groups of a tile: narrow tiles come last, and half of one fills smaller gaps."""
    return gl.where((width < WIDEST) & (groups > 1), 2, 1)


@gluon.jit
def row_blocks(tiles):
    return (tiles + 7) // 8


@gluon.jit
def place_of(index, tiles, blocks, parts, groups):
    """(token tile, row block, first group, groups) of a unit of one width and depth.

    Bands of token tiles, so that programs that run together share rows and tokens in the L2 cache.
    """
    part, index = index % parts, index // parts
    band = index // (_BAND * blocks)
    within = index - band * (_BAND * blocks)
    wide = gl.minimum(_BAND, tiles - band * _BAND)
    row = within // wide
    half = groups // parts
    return band * _BAND + within - row * wide, row, part * half, gl.where(part == parts - 1, groups - part * half, half)


@gluon.jit
def units_left(end, index):
    """Units before `end` that this program takes."""
    return (gl.maximum(end - index, 0) + gl.num_programs(0) - 1) // gl.num_programs(0)


@gluon.jit
def advance(slot, phase, SLOTS: gl.constexpr):
    """The next slot of a ring, and the phase of its barriers."""
    last = slot == SLOTS - 1
    return gl.where(last, 0, slot + 1), gl.where(last, phase ^ 1, phase)


@gluon.jit
def before(slot, SLOTS: gl.constexpr):
    return gl.where(slot == 0, SLOTS - 1, slot - 1)
