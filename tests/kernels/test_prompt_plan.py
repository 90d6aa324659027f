"""The plan of a prompt's product: tokens in the order of their depth, and tiles that hold each of them once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobiquant_core.kernels.prompt_plan import Plan, plan

MOST = (288, 256, 128, 64)
"""Tokens of a tile of each kind."""


def depths_of(counts: list[int]) -> Tensor:
    depths = torch.repeat_interleave(torch.arange(1, len(counts) + 1), torch.tensor(counts)).to(torch.uint8)
    return depths[torch.randperm(depths.numel())]


def tiles_of(made: Plan) -> list[list[int]]:
    return made.tiles[: int(made.sizes[1])].tolist()


@pytest.mark.parametrize("slices", [4, 3, 2])
def test_tokens_come_in_the_order_of_their_depth(device: str, slices: int) -> None:
    x = torch.randn(70, 200, device=device).half()
    depths = torch.randint(1, slices + 1, (70,), dtype=torch.uint8, device=device)
    made = plan(x, depths, slices, row_blocks=2)
    order = torch.argsort(depths, stable=True)
    assert torch.equal(made.tokens.long(), order)
    assert torch.equal(made.x[:70], x[order]) and made.sizes[2] == 1
    # No half of a narrow unit is done, and no unit is taken.
    assert made.arrived.tolist() == [0] * 2 * slices and made.sizes[3] == 0


@pytest.mark.parametrize("tokens", [9, 256])
def test_only_whole_tiles_of_one_depth_stay_where_they_are(device: str, tokens: int) -> None:
    x, depths = torch.randn(tokens, 128, device=device), torch.full((tokens,), 3, dtype=torch.uint8, device=device)
    made = plan(x, depths, 4, row_blocks=1)
    assert made.tokens.tolist() == list(range(tokens))
    assert torch.equal(made.x[:tokens], x) == (tokens == 9) == bool(made.sizes[2])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 600), min_size=4, max_size=4).filter(any))
def test_every_token_is_in_one_tile_of_its_depth(counts: list[int]) -> None:
    depths = depths_of(counts)
    made = plan(torch.zeros(depths.numel(), 8), depths, 4, row_blocks=1)
    held = torch.zeros(depths.numel(), dtype=torch.int32)
    for kind, depth, first, tokens in tiles_of(made):
        assert 0 < tokens <= MOST[kind]
        assert (depths[made.tokens[first : first + tokens].long()] == depth).all()
        held[first : first + tokens] += 1
    assert (held == 1).all()
    kinds = [kind for kind, *_rest in tiles_of(made)]
    assert kinds == sorted(kinds) and sum(kind < 2 for kind in kinds) == made.sizes[0]


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
    made = plan(torch.zeros(sum(counts), 8), depths_of(counts), 4, row_blocks=1)
    assert sorted((kind, tokens) for kind, _depth, _first, tokens in tiles_of(made)) == sorted(expected)
