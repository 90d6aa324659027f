"""Learnt rounding: one bit per weight says whether it keeps its cell or takes the nearer neighbour.

The choice is made at the pivot, the second slice (the only one where there is one): coarse depths, where rounding
matters, follow it, and finer slices come as close to the weight as the chosen cell allows. The bit is the parity of
the chosen cell, so a weight on a cell's edge decodes alike whichever side fp32 puts it on. It knows positions only.
"""

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError

_PLACES = (1, 2, 4, 8, 16, 32, 64, 128)


def cells_per_pivot(config: MobiQuantConfig) -> int:
    """How many finest cells one cell of the pivot depth holds."""
    return 2 ** (config.total_bits - config.bits(min(2, config.depths)))


def neighbours(
    position: Float[Tensor, "*shape"], config: MobiQuantConfig
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """(pivot cell, nearer neighbour, distance to the edge between them in pivot cells) of positions in finest cells.

    At the ends of the range a weight has no neighbour and stays: the neighbour is the cell itself.
    """
    size = cells_per_pivot(config)
    last = 2**config.total_bits // size - 1
    cell = (position / size).floor().clamp_(0, last)
    fraction = (position / size - cell).clamp_(0, 1)
    upward = fraction >= 0.5
    other = torch.where(upward, cell + 1, cell - 1)
    other = torch.where((other < 0) | (other > last), cell, other)
    return cell, other, torch.where(upward, 1 - fraction, fraction)


def entry_code(
    cell: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"], config: MobiQuantConfig
) -> Float[Tensor, "*shape"]:
    """The finest code of the neighbour that lies next to the cell a weight leaves."""
    size = cells_per_pivot(config)
    return torch.where(other < cell, other * size + (size - 1), other * size)


def choose_codes(
    position: Float[Tensor, "*shape"], odd: Bool[Tensor, "*shape"], config: MobiQuantConfig
) -> Float[Tensor, "*shape"]:
    """Finest codes whose pivot cell has the wanted parity: the plain code, or the neighbour's nearest."""
    cell, other, _ = neighbours(position, config)
    plain = position.floor().clamp(0, 2**config.total_bits - 1)
    moved = ((cell % 2 == 1) != odd) & (other != cell)
    return torch.where(moved, entry_code(cell, other, config), plain)


def pack_parity(odd: Bool[Tensor, "out padded_in"]) -> UInt8[Tensor, "out bytes"]:
    """Eight parities a byte, the first in the lowest bit."""
    places = torch.tensor(_PLACES, dtype=torch.uint8, device=odd.device)
    return (odd.view(odd.shape[0], -1, 8).to(torch.uint8) * places).sum(-1, dtype=torch.uint8)


def unpack_parity(packed: UInt8[Tensor, "out bytes"], columns: int) -> Bool[Tensor, "out padded_in"]:
    """The parities of `pack_parity`; CheckpointError where they are not for so many columns."""
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] * 8 != columns:
        raise CheckpointError(
            f"The calibration's rounding of shape {tuple(packed.shape)} is not for {columns} columns. "
            "Calibrate again for this model."
        )
    places = torch.tensor(_PLACES, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) & places) != 0).flatten(1)
