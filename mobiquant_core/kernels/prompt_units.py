"""What the programs of the prompt product share out: units of 128 rows by a tile of tokens (Gluon).

Whole tiles of every section come first, the slowest of each before its others, then halves of narrow ones. A program
that is done takes the next unit. It knows neither weights nor tokens.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mobiquant_core.kernels.prompt_plan import MOST_SECTIONS, SIZES

_BAND = gl.constexpr(4)
_ROW = gl.constexpr(12)
"""Bits of a word below the row block: 65,535 tokens make fewer than 2^11 tiles in three sections."""


@gluon.jit
def parts_of(groups):
    """Units that share the groups of a narrow tile: half of one fills smaller gaps."""
    return gl.where(groups > 1, 2, 1)


@gluon.jit
def all_units(p_size, most_tiles, groups):
    """Runs of units, of whole tiles of each section and then of narrow ones: (first unit, first tile, tiles, blocks of
    rows) of each; and how many units there are. Sections that there are not have none."""
    runs, begin = (), groups * 0
    for run in gl.static_range(2 * MOST_SECTIONS):
        p_own = p_size + run % MOST_SECTIONS * SIZES
        wholes, blocks = gl.load(p_own), gl.load(p_own + 2)
        # Triton joins tuples, but does not unpack them in place.
        if run < MOST_SECTIONS:
            runs = runs + ((begin, run * most_tiles, wholes, blocks),)  # noqa: RUF005
            begin += wholes * blocks
        else:
            narrow = gl.load(p_own + 1) - wholes
            runs = runs + ((begin, (run - MOST_SECTIONS) * most_tiles + wholes, narrow, blocks),)  # noqa: RUF005
            begin += narrow * blocks * parts_of(groups)
    return runs, begin


@gluon.jit
def unit_at(index, units, groups):
    """(token tile, row block, first group, groups) of a unit; of the last one for those past it.

    Bands of whole tiles, so that programs that run together share rows and tokens in the L2 cache.
    """
    runs, end = units
    index = gl.minimum(index, end - 1)
    begin, first_tile, tiles, blocks = runs[0]
    for run in gl.static_range(1, 2 * MOST_SECTIONS):
        is_behind = index >= runs[run][0]
        begin = gl.where(is_behind, runs[run][0], begin)
        first_tile = gl.where(is_behind, runs[run][1], first_tile)
        tiles = gl.where(is_behind, runs[run][2], tiles)
        blocks = gl.where(is_behind, runs[run][3], blocks)
    is_whole = index < runs[MOST_SECTIONS][0]
    parts = gl.where(is_whole, 1, parts_of(groups))
    most_wide = gl.where(is_whole, _BAND, 1)
    half, part, place = groups // parts, (index - begin) % parts, (index - begin) // parts
    band = place // (most_wide * blocks)
    within = place - band * (most_wide * blocks)
    wide = gl.maximum(gl.minimum(most_wide, tiles - band * most_wide), 1)
    first = part * half
    last = gl.where(part == parts - 1, groups, half)
    return first_tile + band * most_wide + within % wide, within // wide, first, last - first


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
