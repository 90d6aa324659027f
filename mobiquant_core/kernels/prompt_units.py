"""What the programs of the prompt product share out: units of 128 rows by a tile of tokens (Gluon).

Whole tiles come first, the slowest of them before the others, then halves of narrow ones. A program that is done takes
the next unit. It knows neither weights nor tokens.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

_BAND = gl.constexpr(4)
_ROW = gl.constexpr(12)
"""Bits of a word below the row block: 65,535 tokens make fewer than 2^11 tiles."""


@gluon.jit
def parts_of(groups):
    """Units that share the groups of a narrow tile: half of one fills smaller gaps."""
    return gl.where(groups > 1, 2, 1)


@gluon.jit
def row_blocks(tiles):
    return (tiles + 7) // 8


@gluon.jit
def all_units(p_size, tiles, groups):
    """(units of whole tiles, units of all, whole tiles, blocks of rows)."""
    blocks = row_blocks(tiles)
    whole_tiles, token_tiles = gl.load(p_size), gl.load(p_size + 1)
    wholes = whole_tiles * blocks
    return wholes, wholes + (token_tiles - whole_tiles) * blocks * parts_of(groups), whole_tiles, blocks


@gluon.jit
def unit_at(index, units, groups):
    """(token tile, row block, first group, groups) of a unit; of the last one for those past it.

    Bands of token tiles, so that programs that run together share rows and tokens in the L2 cache.
    """
    wholes, end, whole_tiles, blocks = units
    index = gl.minimum(index, end - 1)
    band = index // (_BAND * blocks)
    within = index - band * (_BAND * blocks)
    wide = gl.maximum(gl.minimum(_BAND, whole_tiles - band * _BAND), 1)
    parts = parts_of(groups)
    narrow = index - wholes
    half, part = groups // parts, narrow % parts
    narrow = narrow // parts
    is_whole = index < wholes
    row = gl.where(is_whole, within // wide, narrow % blocks)
    tile = gl.where(is_whole, band * _BAND + within % wide, whole_tiles + narrow // blocks)
    first = gl.where(is_whole, 0, part * half)
    last = gl.where(is_whole | (part == parts - 1), groups, half)
    return tile, row, first, last - first


@gluon.jit
def take_unit(p_taken):
    """The next unit that no program has; every one has that of its own number from the start."""
    return gl.num_programs(0) + gl.atomic_add(p_taken, 1, sem="relaxed", scope="gpu")


@gluon.jit
def in_a_word(tile, row, first):
    """A unit in one number, so that those who multiply are told where it is and need not divide."""
    return (row << _ROW) | (tile << 1) | (first > 0).to(gl.int32)


@gluon.jit
def of_a_word(word):
    """(token tile, row block, half) of a unit."""
    return (word >> 1) & ((1 << (_ROW - 1)) - 1), word >> _ROW, word & 1


@gluon.jit
def advance(slot, phase, SLOTS: gl.constexpr):
    """The next slot of a ring, and the phase of its barriers."""
    last = slot == SLOTS - 1
    return gl.where(last, 0, slot + 1), gl.where(last, phase ^ 1, phase)


@gluon.jit
def before(slot, SLOTS: gl.constexpr):
    return gl.where(slot == 0, SLOTS - 1, slot - 1)
