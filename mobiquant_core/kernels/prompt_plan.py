"""Tokens of a prompt in the order of their depth, and the tiles they are multiplied in, all made on the device.

A tile holds tokens of one depth. Where several weights read the same tokens, each has depths, an order and tiles of its
own: a section. It knows rows of results, but neither weights nor what multiplies.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from mobiquant_core import packing
from mobiquant_core.kernels.lanes import begin_dependent
from mobiquant_core.kernels.quick_launch import quick_launch

MOST_TOKENS = 65535
"""Four counts of tokens share a 64-bit number."""
WIDEST = tl.constexpr(256)
WIDEST_NARROW = tl.constexpr(128)
NARROWEST = tl.constexpr(64)
SURPLUS = tl.constexpr(32)
"""Tokens that a whole tile may take besides."""
KINDS = tl.constexpr(4)
"""Tiles of 256 tokens and a surplus, of 256, of 128 and of 64."""
_MOST_WITH_SURPLUS = tl.constexpr(3)
"""Of one depth. A surplus costs a fifth of a whole tile, a narrow tile four fifths (measured on an H200)."""
MOST_SECTIONS = tl.constexpr(3)
"""Queries, keys and values."""
ENTRY = tl.constexpr(8)
"""Numbers about a tile."""
SIZES = tl.constexpr(4)
"""Numbers about a section."""
TILE_ROWS = tl.constexpr(packing.TILE_ROWS)
ROWS = tl.constexpr(128)
"""Of a block, which are cut and multiplied at once: two tiles of 16 rows for each warp that cuts."""
_SORTED_AT_ONCE, _BLOCK, _COPIED, _TILES_AT_ONCE = 8, 2048, 2048, 64


@dataclass(frozen=True)
class Plan:
    """What the product reads besides weights."""

    x: Float[Tensor, "padded_tokens in_features"]
    """Tokens in the order of their depth, one section after another; those of a section that all have the same depth
    and fill their tiles are left out.

    Behind them is room for a tile, whose contents do not matter: where tiles reach past the end of a tensor they come
    in slowly.
    """
    tokens: Int32[Tensor, " ordered_tokens"]
    """Which they are."""
    tiles: Int32[Tensor, " numbers_of_tiles"]
    """Room for as many tiles of each section as there can be; the slowest whole ones come first, narrow ones last.

    Kind, depth, place of the first token in that order, and how many there are; where they start among tokens that are
    in no order, or -1 for those in `x`; of the section, the first 16 rows, the ones behind its last, and the place in
    `arrived` of the tile's first block of rows.
    """
    sizes: Int32[Tensor, " numbers_of_sections"]
    """Tiles of the first two kinds, of all, blocks of 128 rows; and in the first row how many units are taken: none
    yet. Zeros for a section that there is not."""
    arrived: Int32[Tensor, " units"]
    """Halves of each narrow unit that are done, at first none."""


@triton.jit
def _in_field(b_depth):
    """A one in the field of a depth: four counts of 16 bits in one number."""
    return tl.where(b_depth > 0, tl.full(b_depth.shape, 1, tl.int64) << (16 * (tl.maximum(b_depth, 1) - 1)), 0)


@triton.jit
def _field(counts, depth):
    return ((counts >> (16 * (depth - 1))) & 0xFFFF).to(tl.int32)


@triton.jit
def _first(counts, b_depth):
    """Place of the first token of a depth."""
    b_first = b_depth.to(tl.int32) * 0
    for k in tl.static_range(1, 4):
        b_first += tl.where(b_depth > k, _field(counts, k), 0)
    return b_first


@triton.jit
def _parts(counts):
    """Every kind and depth, the slowest first: kind, depth, place of its first token, tiles, most tokens of a tile, and
    where tokens of that depth end.

    What fills no tile is a surplus of whole ones, if few of them have to take it, and else in the narrowest that holds
    it.
    """
    i_part = tl.arange(0, KINDS * 4)
    b_kind, b_depth = i_part // 4, 4 - i_part % 4
    b_count = _field(counts, b_depth)
    b_first = _first(counts, b_depth)
    b_whole, b_rest = b_count // WIDEST, b_count % WIDEST
    b_more = (b_rest + SURPLUS - 1) // SURPLUS
    b_more = tl.where(b_more <= tl.minimum(b_whole, _MOST_WITH_SURPLUS), b_more, 0)
    b_width = tl.where(b_kind == 0, WIDEST, 2 * WIDEST >> b_kind)
    b_above = tl.where(b_kind == KINDS - 1, 0, b_width // 2)
    b_own = ((b_more == 0) & (b_rest > b_above) & (b_rest <= b_width)).to(tl.int32)
    b_tiles = tl.where(b_kind == 0, b_more, b_own + tl.where(b_kind == 1, b_whole - b_more, 0))
    b_start = tl.where(b_kind == 1, 0, (b_whole - tl.where(b_kind == 0, b_more, 0)) * WIDEST)
    b_most = b_width + tl.where(b_kind == 0, SURPLUS, 0)
    return b_kind, b_depth, b_first + b_start, b_tiles, b_most, b_first + b_count


@triton.jit
def _pick(m, b):
    """What belongs to the part of each tile."""
    return tl.sum(tl.where(m, b[None, :], 0), 1)


@triton.jit
def _write_tiles(counts, first_place, copied, first_row, rows, first_unit, p_tile, p_size, BLOCK: tl.constexpr):
    b_kind, b_depth, b_start, b_tiles, b_most, b_end = _parts(counts)
    b_last = tl.cumsum(b_tiles, 0)
    tiles = tl.sum(b_tiles, 0)
    blocks = tl.cdiv(rows, ROWS)
    tl.store(p_size, tl.sum(tl.where(b_kind < 2, b_tiles, 0), 0))
    tl.store(p_size + 1, tiles)
    tl.store(p_size + 2, blocks)
    tl.store(p_size + 3, 0)
    for first in range(0, tiles, BLOCK):
        i_tile = first + tl.arange(0, BLOCK)
        m = (i_tile[:, None] < b_last[None, :]) & (i_tile[:, None] >= (b_last - b_tiles)[None, :])
        b_own, b_own_depth = i_tile - _pick(m, b_last - b_tiles), _pick(m, b_depth)
        b_place = _pick(m, b_start) + b_own * _pick(m, b_most)
        p_own, m_tile = p_tile + i_tile * ENTRY, i_tile < tiles
        tl.store(p_own, _pick(m, b_kind), mask=m_tile)
        tl.store(p_own + 1, b_own_depth, mask=m_tile)
        tl.store(p_own + 2, first_place + b_place, mask=m_tile)
        tl.store(p_own + 3, tl.minimum(_pick(m, b_end) - b_place, _pick(m, b_most)), mask=m_tile)
        tl.store(p_own + 4, tl.where(copied, -1, b_place), mask=m_tile)
        tl.store(p_own + 5, first_row // TILE_ROWS, mask=m_tile)
        tl.store(p_own + 6, tl.cdiv(first_row + rows, TILE_ROWS), mask=m_tile)
        # A depth has one narrow tile at most.
        tl.store(p_own + 7, first_unit + (b_own_depth - 1) * blocks, mask=m_tile)


@triton.jit
def _section_rows(section, rows_0, rows_1, rows_2):
    """(first row, rows, blocks of rows of the sections before)."""
    first = tl.where(section > 0, rows_0, 0) + tl.where(section > 1, rows_1, 0)
    blocks = tl.where(section > 0, tl.cdiv(rows_0, ROWS), 0) + tl.where(section > 1, tl.cdiv(rows_1, ROWS), 0)
    return first, tl.where(section == 0, rows_0, tl.where(section == 1, rows_1, rows_2)), blocks


@triton.jit
def _clear(p, first, end, BLOCK: tl.constexpr):
    for begin in range(first, end, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        tl.store(p + i, 0, mask=i < end)


# Depths of one linear of several start at any address: nobody should wait for a variant of their own.
@triton.jit(
    do_not_specialize=["tokens", "most_tiles", "rows_0", "rows_1", "rows_2"], do_not_specialize_on_alignment=["p_depth"]
)
def plan_kernel(
    p_x, p_depth, p_out, p_token, p_tile, p_size, p_arrived, o_x, tokens, width, most_tiles, rows_0, rows_1, rows_2,
    SLICES: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A few tokens of a section: their places in the stable order by depth, and a copy there unless all are whole tiles
    of one depth. A section's first program writes its tiles, and that no half of any narrow unit has arrived."""
    begin_dependent(PDL)
    program, section = tl.program_id(0), tl.program_id(1)
    first_place = section * tokens
    p_depth += first_place
    i_own = tl.arange(0, TOKENS)
    i_token = program * TOKENS + i_own
    m_token = i_token < tokens
    b_all, b_before = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    for first in range(0, tokens, BLOCK):
        i_other = first + tl.arange(0, BLOCK)
        b_one = _in_field(tl.load(p_depth + i_other, mask=i_other < tokens, other=0).to(tl.int64))
        b_all += b_one
        b_before += tl.where(i_other < program * TOKENS, b_one, 0)
    counts, before = tl.sum(b_all, 0), tl.sum(b_before, 0)
    b_depth = tl.load(p_depth + i_token, mask=m_token, other=1).to(tl.int64)
    b_beside = tl.load(p_depth + i_token, mask=m_token, other=0).to(tl.int64)
    b_same = (b_beside[None, :] == b_depth[:, None]) & (i_own[None, :] < i_own[:, None])
    b_place = first_place + _first(counts, b_depth) + _field(before, b_depth) + tl.sum(b_same.to(tl.int32), 1)
    most = tl.max(_field(counts, 1 + tl.arange(0, 4)), 0)
    tl.store(p_token + b_place, i_token, mask=m_token)
    copied = (most < tokens) | (tokens % WIDEST != 0)
    if program == 0:
        # Sections that there are not, cleared by the first one's program.
        for other in range(tl.num_programs(1) + section * MOST_SECTIONS, MOST_SECTIONS):
            tl.store(p_size + other * SIZES + tl.arange(0, SIZES), 0)
        first_row, rows, blocks_before = _section_rows(section, rows_0, rows_1, rows_2)
        first_unit = blocks_before * SLICES
        p_own_tile, p_own_size = p_tile + section * most_tiles * ENTRY, p_size + section * SIZES
        _write_tiles(counts, first_place, copied, first_row, rows, first_unit, p_own_tile, p_own_size, TILES)
        _clear(p_arrived, first_unit, first_unit + tl.cdiv(rows, ROWS) * SLICES, BLOCK)
    if copied:
        o_from, o_to = i_token.to(tl.int64) * o_x, b_place.to(tl.int64) * width
        for first in range(0, width, COLUMNS):
            i_column = first + tl.arange(0, COLUMNS)
            m = m_token[:, None] & (i_column < width)[None, :]
            b_x = tl.load(p_x + o_from[:, None] + i_column[None, :], mask=m)
            tl.store(p_out + o_to[:, None] + i_column[None, :], b_x, mask=m)


def most_tiles(tokens: int, slices: int) -> int:
    """Of a section: a depth has one tile at most that is not full, and one narrow tile at most."""
    return tokens // WIDEST.value + slices


def plan(
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, "sections tokens"],
    slices: int,
    rows: tuple[int, ...],
) -> Plan:
    """The plan of a product with so many rows in each section, made in one launch. Only the last section may have a
    number of rows that is no multiple of 16."""
    sections, tokens = depths.shape
    most, units = most_tiles(tokens, slices), slices * sum(-(-own // ROWS.value) for own in rows)
    # In one piece, since asking for memory takes as long as a small launch; each begins at a multiple of 16 bytes.
    numbers = (MOST_SECTIONS.value * SIZES.value, sections * most * ENTRY.value, units, -units % 4, sections * tokens)
    sizes, tiles, arrived, _, order = torch.empty(sum(numbers), dtype=torch.int32, device=x.device).split(numbers)
    made = Plan(x.new_empty(sections * tokens + WIDEST.value, x.shape[1]), order, tiles, sizes, arrived)
    arguments = (
        x, depths.contiguous(), made.x, order, tiles, sizes, arrived, x.stride(0), tokens, x.shape[1], most, *rows,
        *(0,) * (MOST_SECTIONS.value - sections), slices, _SORTED_AT_ONCE, _BLOCK, _COPIED, _TILES_AT_ONCE,
        x.is_cuda and _overlaps(x.device),
    )  # fmt: skip
    quick_launch(plan_kernel, (-(-tokens // _SORTED_AT_ONCE), sections, 1), arguments, num_warps=8)
    return made


@cache
def _overlaps(device: torch.device) -> bool:
    """Whether a launch may begin while the one before it ends."""
    return torch.cuda.get_device_capability(device) >= (9, 0)
