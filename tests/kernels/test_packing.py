"""Planes hold exactly the codes they were made from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiquant_core import packing, planes
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import KernelError
from mobiquant_core.slicing import slice_weight


def random_fields(rows: int, groups: int, slices: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 4**slices, (rows, groups * 128), dtype=torch.uint8, generator=generator)
    edge = torch.randn(rows, groups, generator=generator).half()
    return codes, edge, torch.rand(rows, groups, generator=generator).half()


@given(rows=st.integers(1, 40), groups=st.integers(1, 3), slices=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_unpack_is_the_inverse_of_pack(rows: int, groups: int, slices: int, seed: int) -> None:
    fields = random_fields(rows, groups, slices, seed)
    packed = packing.pack(*fields, groups * 128, MobiQuantConfig(slice_bits=(2,) * slices))
    for before, after in zip(fields, packing.unpack(packed), strict=True):
        assert torch.equal(before, after)


def test_first_planes_are_the_truncated_code() -> None:
    codes, edge, step = random_fields(16, 1, 4, 0)
    packed = packing.pack(codes, edge, step, 128, MobiQuantConfig())
    first = packing.PackedWeight(packed.planes[:2], packed.ranges, 128, (16,))
    assert torch.equal(packing.unpack(first)[0], codes >> 4)


def test_fused_weights_keep_their_sections() -> None:
    config = MobiQuantConfig()
    parts = [packing.pack(*random_fields(rows, 2, 4, rows), 256, config) for rows in (32, 16)]
    fused = packing.fuse(parts)
    assert fused.sections == (32, 16) and fused.section_tiles == (2, 3)
    assert torch.equal(packing.unpack(fused)[0][32:], packing.unpack(parts[1])[0])


def test_bytes_read_grow_with_depth() -> None:
    sliced = slice_weight(torch.randn(256, 512), MobiQuantConfig())
    packed = packing.pack(sliced.codes, sliced.edge, sliced.step, 512, sliced.config)
    assert [packed.stored_bytes(depth) * 8 / (256 * 512) for depth in (1, 2, 3, 4)] == [2.25, 4.25, 6.25, 8.25]


def test_a_matrix_sliced_in_parts_is_the_one_sliced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "_ROWS_AT_ONCE", 32)
    weight = torch.randn(70, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    sliced = slice_weight(weight, MobiQuantConfig())
    packed = planes.planes_of(weight, MobiQuantConfig())
    assert packed.sections == (70,) and packed.in_features == 200
    for before, after in zip((sliced.codes, sliced.edge, sliced.step), packing.unpack(packed), strict=True):
        assert torch.equal(before, after)


def test_other_slicings_are_refused_by_name() -> None:
    codes, edge, step = random_fields(16, 1, 2, 0)
    with pytest.raises(KernelError, match="group_size=64"):
        packing.pack(codes, edge, step, 128, MobiQuantConfig(slice_bits=(2, 2), group_size=64))
    with pytest.raises(KernelError, match="multiple of 16"):
        odd = packing.pack(*random_fields(17, 1, 4, 0), 128, MobiQuantConfig())
        packing.fuse([odd, odd])
