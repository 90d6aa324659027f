"""Codes <-> planes: the order in which a GPU reads a sliced weight.

One plane holds one 2-bit slice of all weights, sixteen weights to a 32-bit word, so a depth of k reads the first k
planes and nothing else. Words are ordered so that 16 bytes per thread are one fragment of the tensor cores'
16 x 32 integer product. Pure torch, any device; it knows no kernels and no layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float16, Int32, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import KernelError

GROUP = 128
TILE_ROWS = 16
WORDS = TILE_ROWS * GROUP // 16
"""Words of one plane for 16 rows of one group: 512 bytes, 16 for each thread of a warp."""
_LOW_BITS = 0x03030303


@dataclass(frozen=True)
class PackedWeight:
    """One or more weights that read the same input, as planes. `sections` are the rows of each."""

    planes: Int32[Tensor, "slices tiles groups 128"]
    ranges: Int32[Tensor, "tiles groups 16"]
    """fp16 step in the low half, fp16 edge in the high half; rows in the order 0, 8, 1, 9, ... 7, 15."""
    in_features: int
    sections: tuple[int, ...]

    @property
    def out_features(self) -> int:
        return sum(self.sections)

    @property
    def slices(self) -> int:
        return self.planes.shape[0]

    @property
    def groups(self) -> int:
        return self.planes.shape[2]

    @property
    def section_tiles(self) -> tuple[int, ...]:
        """First tile after each section."""
        ends, total = [], 0
        for rows in self.sections:
            total += -(-rows // TILE_ROWS)
            ends.append(total)
        return tuple(ends)

    def stored_bytes(self, depth: int | None = None) -> int:
        """Bytes read at `depth`; all slices by default."""
        planes = self.planes.shape[0] if depth is None else depth
        return planes * self.planes[0].numel() * 4 + self.ranges.numel() * 4


def can_pack(config: MobiQuantConfig) -> bool:
    """Whether the kernels know this slicing; others run on the reference path."""
    return config.group_size == GROUP and set(config.slice_bits) == {2} and config.depths <= 4


def pack(
    codes: UInt8[Tensor, "out padded_in"],
    edge: Float16[Tensor, "out groups"],
    step: Float16[Tensor, "out groups"],
    in_features: int,
    config: MobiQuantConfig,
) -> PackedWeight:
    """One weight as planes; rows are padded with zero codes to a multiple of 16."""
    if not can_pack(config):
        raise KernelError(
            f"The kernels take up to four 2-bit slices in groups of {GROUP}, not slice_bits={config.slice_bits} with "
            f"group_size={config.group_size}. Such weights run on the reference path."
        )
    rows, padded_in = codes.shape
    groups, tiles = padded_in // GROUP, -(-rows // TILE_ROWS)
    codes, edge, step = (_pad_rows(tensor, tiles * TILE_ROWS) for tensor in (codes, edge, step))
    # Four neighbouring codes are one 32-bit number, so a whole slice is cut out of it with one shift and one mask.
    # Column s * 32 + c * 8 + h * 4 + b of a group is field s, byte b of the word of lane c (of 4) and half h.
    quads = codes.contiguous().view(torch.int32).view(-1, groups, 4, 4, 2)
    planes = codes.new_empty(config.depths, tiles, groups, WORDS, dtype=torch.int32)
    for plane in range(config.depths):
        fields = (quads >> (config.total_bits - config.bits(plane + 1))) & _LOW_BITS
        words = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
        shape = (tiles, 2, 8, groups, 4, 2)
        planes[plane] = words.view(shape).permute(0, 3, 2, 4, 5, 1).reshape(tiles, groups, WORDS)
    pairs = (step.view(torch.int16).int() & 0xFFFF) | edge.view(torch.int16).int() << 16
    ranges = pairs.view(tiles, 2, 8, groups).permute(0, 3, 2, 1).reshape(tiles, groups, TILE_ROWS)
    return PackedWeight(planes, ranges, in_features, (rows,))


def fuse(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Several weights over the same input as one, so that one launch multiplies them all."""
    if any(rows % TILE_ROWS for part in parts[:-1] for rows in part.sections):
        raise KernelError(
            f"Only weights with a multiple of {TILE_ROWS} rows can be fused; got "
            f"{[part.out_features for part in parts]}. Multiply them one by one."
        )
    planes = torch.cat([part.planes for part in parts], dim=1)
    ranges = torch.cat([part.ranges for part in parts])
    return PackedWeight(planes, ranges, parts[0].in_features, tuple(rows for part in parts for rows in part.sections))


def section(packed: PackedWeight, index: int) -> PackedWeight:
    """One of several fused weights, sharing memory with them."""
    ends = (0, *packed.section_tiles)
    tiles = slice(ends[index], ends[index + 1])
    return PackedWeight(packed.planes[:, tiles], packed.ranges[tiles], packed.in_features, (packed.sections[index],))


def unpack(
    packed: PackedWeight,
) -> tuple[UInt8[Tensor, "out padded_in"], Float16[Tensor, "out groups"], Float16[Tensor, "out groups"]]:
    """(codes, edge, step) again: the exact inverse of `pack`, for checkpoints and tests."""
    slices, tiles, groups, _ = packed.planes.shape
    words = packed.planes.reshape(slices, tiles, groups, 8, 4, 2, 2).permute(0, 1, 6, 3, 2, 4, 5)
    quads = torch.zeros(tiles * TILE_ROWS, groups, 4, 4, 2, dtype=torch.int32, device=words.device)
    for plane in range(slices):
        word = words[plane].reshape(-1, groups, 4, 2)
        for field in range(4):
            quads[:, :, field] |= ((word >> 2 * field) & _LOW_BITS) << 2 * (slices - 1 - plane)
    pairs = packed.ranges.view(tiles, groups, 8, 2).permute(0, 3, 2, 1).reshape(-1, groups)
    step, edge = (pairs & 0xFFFF).to(torch.int16), (pairs >> 16).to(torch.int16)
    rows = packed.out_features
    codes = quads.view(-1, groups * GROUP // 4).view(torch.uint8)
    return codes[:rows], edge.view(torch.float16)[:rows], step.view(torch.float16)[:rows]


def _pad_rows(tensor: Tensor, rows: int) -> Tensor:
    if tensor.shape[0] == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - tensor.shape[0], tensor.shape[1])])
