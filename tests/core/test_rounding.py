"""Learnt rounding: neutral residues change nothing, moves cross one edge, nesting stays exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core.calibrate.fake_quant import HARD, leaning_base, leaning_residue, nested_weights
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError
from mobiquant_core.rounding import (
    FARTHEST_HOME,
    LARGEST_REACH,
    cells_per_base,
    cells_per_pivot,
    crossings,
    pack_residues,
    residue_bits,
    unpack_residues,
)
from mobiquant_core.slicing import dequantize, group_columns, positions, round_range, slice_weight, truncate

CONFIGS = [MobiQuantConfig(), MobiQuantConfig((3,)), MobiQuantConfig((4, 2)), MobiQuantConfig((2, 1, 3))]
COLUMNS = st.sampled_from([64, 128, 172, 300])
REACHES = st.sampled_from([0.0, 0.2, LARGEST_REACH])
CASE = {"seed": st.integers(0, 1000), "columns": COLUMNS, "config": st.sampled_from(CONFIGS), "reach": REACHES}


def _weight(seed: int, columns: int) -> torch.Tensor:
    return torch.randn(5, columns, generator=torch.Generator().manual_seed(seed))


def _cells(weight: torch.Tensor, config: MobiQuantConfig) -> torch.Tensor:
    grouped = group_columns(weight, config)
    return positions(grouped, *round_range(grouped.amin(-1), grouped.amax(-1), config), config)


def _rounding(weight: torch.Tensor, lean: torch.Tensor, config: MobiQuantConfig, reach: float) -> torch.Tensor:
    residue = leaning_residue(_cells(weight, config), lean, config, reach)
    return pack_residues(residue.flatten(1), residue_bits(reach))


@settings(max_examples=60, deadline=None)
@given(**CASE)
def test_weights_that_do_not_lean_keep_their_codes(
    seed: int, columns: int, config: MobiQuantConfig, reach: float
) -> None:
    weight = _weight(seed, columns)
    rounded = slice_weight(weight, config, rounding=_rounding(weight, torch.zeros_like(weight), config, reach))
    assert torch.equal(rounded.codes, slice_weight(weight, config).codes)


@settings(max_examples=60, deadline=None)
@given(**CASE)
def test_what_leans_crosses_its_edge_and_what_is_stored_says_so(
    seed: int, columns: int, config: MobiQuantConfig, reach: float
) -> None:
    weight = _weight(seed, columns)
    lean = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1)) / 2
    plain = slice_weight(weight, config)
    codes = slice_weight(weight, config, rounding=_rounding(weight, lean, config, reach)).codes[:, :columns]
    found = crossings(_cells(weight, config), config, reach)
    beyond, direction, distance = (part.flatten(1)[:, :columns] for part in found)
    crossed = lean * direction > distance
    assert torch.equal(codes, torch.where(crossed, beyond, plain.codes[:, :columns].float()).to(torch.uint8))


@settings(max_examples=60, deadline=None)
@given(**CASE)
def test_moves_stay_within_one_cell_of_their_kind_at_every_depth(
    seed: int, columns: int, config: MobiQuantConfig, reach: float
) -> None:
    weight = _weight(seed, columns)
    lean = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
    plain = slice_weight(weight, config)
    rounded = slice_weight(weight, config, rounding=_rounding(weight, lean, config, reach))
    pivot = min(2, config.depths)
    for depth in range(1, config.depths + 1):
        step = (plain.step.float() * 2.0 ** (config.bits(1) - config.bits(depth))).repeat_interleave(128, 1)
        moved = (truncate(rounded.codes, depth, config) != truncate(plain.codes, depth, config))[:, :columns]
        error = (dequantize(rounded, depth) - weight).abs() / step[:, :columns]
        assert (error[~moved] <= 0.5 + 1e-3).all()
        farthest = max(0.5, reach * 2.0 ** (config.bits(pivot) - config.bits(1)))
        finer = 2.0 ** (config.bits(depth) - config.bits(pivot))
        assert (error <= farthest * finer + 0.5 + 1e-3).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-1e-4, 1e-4), reach=REACHES)
def test_a_weight_at_an_edge_decodes_alike_on_both_sides(seed: int, shift: float, reach: float) -> None:
    config, weight = MobiQuantConfig(), _weight(seed, 128)
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    lean = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    bits = _rounding(weight, lean, config, reach)
    first = slice_weight(weight, config, low, high, bits).codes
    second = slice_weight(weight + shift * (high - low), config, low, high, bits).codes
    place = _cells(weight, config).flatten(1) / cells_per_pivot(config)
    # A parity is undecided half a cell from an edge; two bits are nowhere, but for the ends of the range.
    sure = ((place - place.floor() - 0.5).abs() > 0.01) if reach == 0 else torch.ones_like(place, dtype=torch.bool)
    sure &= (place > 0.6) & (place < 15.4)
    assert torch.equal((first >> 4)[sure], (second >> 4)[sure])


@pytest.mark.parametrize("reach", [0.0, 0.3])
def test_the_gradient_of_leaning_is_that_of_the_soft_weights(reach: float) -> None:
    config, weight, softness = MobiQuantConfig(), _weight(3, 128), torch.tensor(0.2)
    low, high = weight.amin(-1, keepdim=True) * 0.8, weight.amax(-1, keepdim=True) * 0.8
    lean = torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)) / 5
    lean.requires_grad_(True)
    pull = torch.randn(4, *weight.shape, generator=torch.Generator().manual_seed(5))

    def pulled(leaning: torch.Tensor) -> torch.Tensor:
        stack = nested_weights(weight, low, high, config, lean=leaning, softness=softness, reach=reach)
        return (stack * pull).sum(0)

    (found,) = torch.autograd.grad(pulled(lean).sum(), lean)
    small = 1e-3
    numeric = (pulled(lean.detach() + small) - pulled(lean.detach() - small)) / (2 * small)
    smooth = (found != 0) == (numeric.abs() > 1e-2)
    assert smooth.float().mean() > 0.97 and (found != 0).float().mean() > 0.1
    assert torch.isclose(found, numeric, atol=2e-2, rtol=2e-2).float().mean() > 0.97


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    columns=COLUMNS,
    config=st.sampled_from([config for config in CONFIGS if config.depths > 1]),
    reach=REACHES,
    wider=st.floats(0.9, 1.1),
)
def test_settled_base_codes_outlive_new_ranges_and_choices(
    seed: int, columns: int, config: MobiQuantConfig, reach: float, wider: float
) -> None:
    weight, generator = _weight(seed, columns), torch.Generator().manual_seed(seed + 1)
    grouped = group_columns(weight, config)
    low, high = grouped.amin(-1), grouped.amax(-1)
    first, second = torch.randn(2, *weight.shape, generator=generator) / 3
    home = leaning_base(weight, low, high, first, config, reach)
    edge, step = round_range(low * wider, high * wider, config)
    cells = positions(grouped, edge, step, config)
    residue = leaning_residue(cells, second, config, reach, home)
    bits = pack_residues(residue.flatten(1), residue_bits(reach, settled=True))
    sliced = slice_weight(weight, config, low * wider, high * wider, bits)
    base = cells_per_base(config)
    place = cells.flatten(1)[:, :columns].clamp(0, 2**config.total_bits)
    away = (place - place.clamp(min=home * base).minimum((home + 1.0) * base - 0.5)).abs()
    near = away < (FARTHEST_HOME - 1e-3) * cells_per_pivot(config)
    kept = truncate(sliced.codes, 1, config)[:, :columns] == home
    assert kept[near].all() and near.float().mean() > 0.5
    bounds = edge.float(), edge.float() + step.float() * 2 ** config.slice_bits[0]
    trained = nested_weights(weight, *bounds, config, lean=second, home=home)
    for depth in range(1, config.depths + 1):
        different = ~torch.isclose(trained[depth - 1], dequantize(sliced, depth), atol=1e-4)
        # Where a weight lies at a finest cell's edge or at the limit of what is held, fp32 decides.
        assert different.float().mean() <= 0.01


def test_values_of_settled_base_codes_follow_the_range_exactly() -> None:
    config, weight = MobiQuantConfig(), _weight(5, 128)
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    home = leaning_base(weight, low, high, torch.zeros_like(weight), config, 0.0)
    low.requires_grad_(True)
    pull = torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    lean, softness = torch.zeros_like(weight), torch.tensor(HARD)

    def pulled(lower: torch.Tensor) -> torch.Tensor:
        return (nested_weights(weight, lower, high, config, torch.float32, lean, softness, 0.0, home)[0] * pull).sum(1)

    (found,) = torch.autograd.grad(pulled(low).sum(), low)
    small = 1e-2
    numeric = (pulled(low.detach() + small) - pulled(low.detach() - small)) / (2 * small)
    assert torch.allclose(found.flatten(), numeric, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("bits", [1, 2])
def test_packing_keeps_every_bit_and_refuses_other_shapes(bits: int) -> None:
    residue = torch.randint(0, 2**bits, (3, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, modulus = unpack_residues(pack_residues(residue, bits), 256)
    assert torch.equal(found, residue) and modulus == 2**bits
    with pytest.raises(CheckpointError, match="Calibrate again"):
        unpack_residues(pack_residues(residue, bits), 96)
