"""Learnt rounding: every weight may keep its cell or cross one edge, and a stored residue says where it went.

The edge is that of its nearest pivot cell (a pivot cell is one of the second slice, of the only one where there is
one), or within `reach` of a base cell's border that border: so coarse depths, where rounding matters, choose, and
finer slices come as close to the weight as the chosen cell allows. What is stored is the pivot cell modulo a power of
two, and the weight's own cell is among those with every residue, so decoding needs no `reach` and a weight on
an edge decodes alike whichever side fp32 puts it on. Base cells may be settled ("home"): then only edges within them
are crossed, and a weight that lies elsewhere is held at the border it crossed. It knows positions only.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError

LARGEST_REACH = 0.36
"""In base cells: beyond 0.375, a weight that crossed would lie as near to another cell of the same residue."""

FARTHEST_HOME = 1.45
"""In pivot cells: the centre of the cell a weight is held in must be nearer than two, a half of the modulus."""


def cells_per_base(config: MobiQuantConfig) -> int:
    """How many finest cells one base cell holds."""
    return 2 ** (config.total_bits - config.slice_bits[0])


def cells_per_pivot(config: MobiQuantConfig) -> int:
    """How many finest cells one cell of the pivot depth holds."""
    return 2 ** (config.total_bits - config.bits(min(2, config.depths)))


def crossings(
    position: Float[Tensor, "*shape"], config: MobiQuantConfig, reach: float = 0.0, settled: bool = False
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """(finest code beyond the edge a weight may cross, direction of that edge, distance to it in cells of its kind).

    Positions are in finest cells. An end of the range is no edge, nor is a base cell's border once base cells are
    `settled`: it is infinitely far, and `reach` has no meaning.
    """
    pivot = cells_per_pivot(config)
    base = cells_per_base(config)
    size: Tensor | float = float(pivot)
    if reach > 0 and base > pivot and not settled:
        border = (position / base).round()
        near = (position / base - border).abs_() < reach
        near &= (border > 0) & (border < 2 ** config.slice_bits[0])
        size = near.to(position.dtype).mul_(base - pivot).add_(pivot)
    place = position / size
    edge = place.round()
    direction = (place < edge).to(position.dtype).mul_(2).sub_(1)
    distance = (place - edge).abs_()
    edge.mul_(size)
    closed = (edge <= 0) | (edge >= 2**config.total_bits)
    if settled:
        closed |= edge % base == 0
    distance.masked_fill_(closed, torch.inf)
    return edge.add_(direction, alpha=0.5).sub_(0.5), direction, distance


def hold_at_home(
    position: Float[Tensor, "*shape"], home: Tensor, config: MobiQuantConfig
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """(positions with weights outside their settled base cell just inside its border, which ones these are).

    A weight that ranges have since moved too far away for its residue is let go.
    """
    base = cells_per_base(config)
    place = position.clamp(0, 2**config.total_bits)
    inside = place.maximum(home * base).minimum(home * base + (base - 0.5))
    held = (place / base).floor_().clamp_(max=2 ** config.slice_bits[0] - 1) != home
    held &= (inside - place).abs_() <= FARTHEST_HOME * cells_per_pivot(config)
    return torch.where(held, inside, position), held


def choose_codes(
    position: Float[Tensor, "*shape"], residue: UInt8[Tensor, "*shape"], modulus: int, config: MobiQuantConfig
) -> Float[Tensor, "*shape"]:
    """The finest codes nearest to the weights inside the nearest pivot cells of the wanted residues."""
    size = cells_per_pivot(config)
    last = 2**config.total_bits // size - 1
    place = (position / size).clamp_(0, last + 1)
    turns = ((place - 0.5 - residue) / modulus + 0.5).floor_()
    cell = (turns * modulus + residue).clamp_(0, last)
    return position.floor().maximum(cell * size).minimum(cell * size + (size - 1))


def residue_bits(reach: float, settled: bool = False) -> int:
    """Bits a weight that say where it went: a parity while it moves one pivot cell, two bits beyond."""
    return 2 if reach > 0 or settled else 1


def pack_residues(residue: UInt8[Tensor, "out padded_in"], bits: int) -> UInt8[Tensor, "out bytes"]:
    """Residues below 2 ** bits side by side in bytes, the first in the lowest bits."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=residue.device)
    return (residue.view(residue.shape[0], -1, 8 // bits) << shifts).sum(-1, dtype=torch.uint8)


def unpack_residues(packed: UInt8[Tensor, "out bytes"], columns: int) -> tuple[UInt8[Tensor, "out padded_in"], int]:
    """(residues, their modulus) of `pack_residues`; CheckpointError where they are not for so many columns."""
    bits = packed.shape[-1] * 8 // columns
    if packed.dtype != torch.uint8 or packed.dim() != 2 or bits not in (1, 2) or packed.shape[1] * 8 != columns * bits:
        raise CheckpointError(
            f"The calibration's rounding of shape {tuple(packed.shape)} is not for {columns} columns. "
            "Calibrate again for this model."
        )
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> shifts).bitwise_and_(2**bits - 1).flatten(1), 2**bits
