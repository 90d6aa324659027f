"""Learnt rounding: neutral bits change nothing, moves go one cell, nesting stays exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError
from mobiquant_core.rounding import neighbours, pack_parity, unpack_parity
from mobiquant_core.slicing import dequantize, group_columns, positions, round_range, slice_weight, truncate

CONFIGS = [MobiQuantConfig(), MobiQuantConfig((3,)), MobiQuantConfig((4, 2)), MobiQuantConfig((2, 1, 3))]
COLUMNS = st.sampled_from([64, 128, 172, 300])
CASE = {"seed": st.integers(0, 1000), "columns": COLUMNS, "config": st.sampled_from(CONFIGS)}


def _weight(seed: int, columns: int) -> torch.Tensor:
    return torch.randn(5, columns, generator=torch.Generator().manual_seed(seed))


def _cells(weight: torch.Tensor, config: MobiQuantConfig) -> torch.Tensor:
    grouped = group_columns(weight, config)
    return positions(grouped, *round_range(grouped.amin(-1), grouped.amax(-1), config), config)


@settings(max_examples=40, deadline=None)
@given(**CASE)
def test_neutral_bits_give_the_plain_codes(seed: int, columns: int, config: MobiQuantConfig) -> None:
    weight = _weight(seed, columns)
    cell, _, _ = neighbours(_cells(weight, config), config)
    rounded = slice_weight(weight, config, rounding=pack_parity((cell % 2 == 1).flatten(1)))
    assert torch.equal(rounded.codes, slice_weight(weight, config).codes)


@settings(max_examples=40, deadline=None)
@given(**CASE)
def test_random_bits_move_weights_at_most_to_the_nearer_neighbour(
    seed: int, columns: int, config: MobiQuantConfig
) -> None:
    weight = _weight(seed, columns)
    plain = slice_weight(weight, config)
    odd = torch.rand(plain.codes.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    rounded = slice_weight(weight, config, rounding=pack_parity(odd))
    pivot = min(2, config.depths)
    moved = (truncate(rounded.codes, pivot, config) != truncate(plain.codes, pivot, config))[:, :columns]
    assert torch.equal(rounded.codes[:, :columns][~moved], plain.codes[:, :columns][~moved])
    for depth in range(1, config.depths + 1):
        step = (plain.step.float() * 2.0 ** (config.bits(1) - config.bits(depth))).repeat_interleave(128, 1)
        error = (dequantize(rounded, depth) - weight).abs() / step[:, :columns]
        assert (error[~moved] <= 0.5 + 1e-3).all()
        if depth <= pivot:
            assert (error[moved] <= 1.0 + 1e-3).all()
    finest = dequantize(rounded, config.depths) - weight
    pivot_step = (plain.step.float() * 2.0 ** (config.bits(1) - config.bits(pivot))).repeat_interleave(128, 1)
    assert (finest.abs()[moved] <= pivot_step[:, :columns][moved] * 1.001).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-1e-4, 1e-4))
def test_a_weight_at_a_cells_edge_decodes_alike_on_both_sides(seed: int, shift: float) -> None:
    config, weight = MobiQuantConfig(), _weight(seed, 128)
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    odd = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_parity(odd)
    first = slice_weight(weight, config, low, high, bits)
    second = slice_weight(weight + shift * (high - low), config, low, high, bits)
    cell, _, distance = neighbours(_cells(weight, config), config)
    sure = (distance < 0.45).flatten(1) & (cell.flatten(1) > 0) & (cell.flatten(1) < 15)
    assert torch.equal((first.codes >> 4)[sure], (second.codes >> 4)[sure])


def test_packing_keeps_every_bit_and_refuses_other_shapes() -> None:
    odd = torch.rand(3, 256, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpack_parity(pack_parity(odd), 256), odd)
    with pytest.raises(CheckpointError, match="Calibrate again"):
        unpack_parity(pack_parity(odd), 128)
