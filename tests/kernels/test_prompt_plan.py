"""The plan of a prompt's product: tokens in the order of their depth, and tiles that hold each of them once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobiquant_core.kernels.prompt_plan import Plan, most_tiles, plan

MOST = (288, 256, 128, 64)
"""Tokens of a tile of each kind."""


def depths_of(counts: list[int]) -> Tensor:
    depths = torch.repeat_interleave(torch.arange(1, len(counts) + 1), torch.tensor(counts)).to(torch.uint8)
    return depths[torch.randperm(depths.numel())]


def sizes_of(made: Plan) -> Tensor:
    return made.sizes.view(-1, 4)


def tiles_of(made: Plan, section: int = 0) -> list[list[int]]:
    sizes = sizes_of(made)
    tiles = made.tiles.view(int((sizes[:, 2] > 0).sum()), -1, 8)
    return tiles[section, : int(sizes[section, 1])].tolist()


@pytest.mark.parametrize("slices", [4, 3, 2])
def test_tokens_come_in_the_order_of_their_depth(device: str, slices: int) -> None:
    x = torch.randn(70, 200, device=device).half()
    depths = torch.randint(1, slices + 1, (70,), dtype=torch.uint8, device=device)
    made = plan(x, depths[None], slices, rows=(256,))
    order = torch.argsort(depths, stable=True)
    assert torch.equal(made.tokens.long(), order)
    assert torch.equal(made.x[:70], x[order]) and all(tile[4] == -1 for tile in tiles_of(made))
    # No half of a narrow unit is done, and no unit is taken.
    assert made.arrived.tolist() == [0] * 2 * slices and sizes_of(made)[0, 3] == 0
    assert not sizes_of(made)[1:].any()  # sections that there are not


@pytest.mark.parametrize("tokens", [9, 256])
def test_only_whole_tiles_of_one_depth_stay_where_they_are(device: str, tokens: int) -> None:
    x, depths = torch.randn(tokens, 128, device=device), torch.full((1, tokens), 3, dtype=torch.uint8, device=device)
    made = plan(x, depths, 4, rows=(16,))
    assert made.tokens.tolist() == list(range(tokens))
    assert torch.equal(made.x[:tokens], x) == (tokens == 9)
    assert [tile[4] for tile in tiles_of(made)] == [-1 if tokens == 9 else 0]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 600), min_size=4, max_size=4).filter(any))
def test_every_token_is_in_one_tile_of_its_depth(counts: list[int]) -> None:
    depths = depths_of(counts)
    made = plan(torch.zeros(depths.numel(), 8), depths[None], 4, rows=(16,))
    held = torch.zeros(depths.numel(), dtype=torch.int32)
    for kind, depth, first, tokens, *_rest in tiles_of(made):
        assert 0 < tokens <= MOST[kind]
        assert (depths[made.tokens[first : first + tokens].long()] == depth).all()
        held[first : first + tokens] += 1
    assert (held == 1).all()
    kinds = [kind for kind, *_rest in tiles_of(made)]
    assert kinds == sorted(kinds) and sum(kind < 2 for kind in kinds) == sizes_of(made)[0, 0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # Whole tiles take what is left, as few of them as can; too much of it is a tile of its own.
        ([524, 0, 0, 0], [(0, 268), (1, 256)]),
        ([0, 0, 552, 0], [(0, 288), (0, 264)]),
        ([0, 300, 0, 0], [(1, 256), (3, 44)]),
        ([0, 0, 0, 400], [(1, 256), (1, 144)]),
        ([100, 0, 0, 3], [(2, 100), (3, 3)]),
    ],
)
def test_what_fills_no_tile_is_a_surplus_or_the_narrowest_tile(
    counts: list[int], expected: list[tuple[int, int]]
) -> None:
    made = plan(torch.zeros(sum(counts), 8), depths_of(counts)[None], 4, rows=(16,))
    assert sorted((kind, tokens) for kind, _depth, _first, tokens, *_rest in tiles_of(made)) == sorted(expected)


@pytest.mark.parametrize("rows", [(256, 128), (272, 16, 129)])
def test_every_section_has_the_order_and_the_tiles_that_it_has_alone(device: str, rows: tuple[int, ...]) -> None:
    tokens = 512
    x = torch.randn(tokens, 24, device=device)
    depths = torch.stack([depths_of(counts) for counts in ([300, 90, 122, 0], [0, 512, 0, 0], [0, 1, 0, 511])])
    depths = depths[: len(rows)].to(device)
    made = plan(x, depths, 4, rows)
    assert made.tiles.numel() == 8 * len(rows) * most_tiles(tokens, 4)
    first_row, unit = 0, 0
    for section, own_rows in enumerate(rows):
        alone = plan(x, depths[section : section + 1], 4, (own_rows,))
        own = slice(section * tokens, (section + 1) * tokens)
        assert torch.equal(made.tokens[own], alone.tokens)
        # The second section stays where it is.
        assert section == 1 or torch.equal(made.x[own], alone.x[:tokens])
        assert torch.equal(sizes_of(made)[section], sizes_of(alone)[0])
        first_tile = torch.tensor([0, 0, section * tokens, 0, 0, first_row // 16, first_row // 16, unit])
        assert tiles_of(made, section) == (torch.tensor(tiles_of(alone)) + first_tile).tolist()
        first_row, unit = first_row + own_rows, unit + alone.arrived.numel()
    assert made.arrived.tolist() == [0] * unit


def test_a_tile_says_which_rows_and_units_are_its_sections(device: str) -> None:
    depths = torch.tensor([[1] * 3 + [2] * 2, [2] * 5], dtype=torch.uint8, device=device)
    made = plan(torch.zeros(5, 8, device=device), depths, 2, rows=(144, 40))
    # Two blocks of rows, then one; nine 16 rows, then three. Room for two depths each.
    assert sizes_of(made)[:, 2].tolist() == [2, 1, 0] and made.arrived.numel() == 2 * 2 + 2 * 1
    assert [tile[5:] for tile in tiles_of(made)] == [[0, 9, 2], [0, 9, 0]]
    assert [tile[5:] for tile in tiles_of(made, 1)] == [[9, 12, 5]]
