"""Weights to nested codes and back: the MobiSlice quantizer.

One code per weight serves every depth: the first k slices are the code with its low bits cut off.
It knows one matrix at a time, no layers, tokens or budgets.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError
from mobiquant_core.kernels import reference
from mobiquant_core.rounding import choose_codes, unpack_residues

SMALLEST_STEP = 2.0**-24
"""The smallest fp16 above zero: a constant group still needs cells of some width."""


@dataclass(frozen=True)
class SlicedWeight:
    """A weight matrix as nested codes, with the lower edge and first-slice step of every group."""

    codes: UInt8[Tensor, "out padded_in"]
    edge: Float16[Tensor, "out groups"]
    step: Float16[Tensor, "out groups"]
    in_features: int
    config: MobiQuantConfig


def slice_weight(
    weight: Float[Tensor, "out in_features"],
    config: MobiQuantConfig,
    low: Float[Tensor, "out groups"] | None = None,
    high: Float[Tensor, "out groups"] | None = None,
    rounding: UInt8[Tensor, "out bytes"] | None = None,
) -> SlicedWeight:
    """Codes of `weight` over the range [low, high] of each group, by default its minimum and maximum.

    `rounding` holds learnt choices (see rounding.py); without it every weight takes the cell it lies in.
    """
    if not torch.isfinite(weight).all():
        raise CheckpointError(
            "The weight holds NaN or infinity, which cannot be quantized. Check the checkpoint it came from."
        )
    grouped = group_columns(weight, config)
    low = grouped.amin(-1) if low is None else low.float()
    high = grouped.amax(-1) if high is None else high.float()
    edge, step = round_range(low, high, config)
    if not (torch.isfinite(edge).all() and torch.isfinite(step).all()):
        raise CheckpointError(
            f"The weight reaches {weight.abs().max().item():.3g}, beyond the fp16 range of 65504 that group edges are "
            "stored in. Check the checkpoint it came from."
        )
    residue, modulus = None, 1
    if rounding is not None:
        residue, modulus = unpack_residues(rounding.to(weight.device), grouped[0].numel())
        residue = residue.view_as(grouped)
    codes = encode(grouped, edge, step, config, residue, modulus)
    return SlicedWeight(codes.view(weight.shape[0], -1), edge, step, weight.shape[1], config)


def group_columns(
    weight: Float[Tensor, "out in_features"], config: MobiQuantConfig
) -> Float[Tensor, "out groups size"]:
    """fp32 weight cut into groups; a short last group repeats the last real column, since no code means zero."""
    missing = -weight.shape[1] % config.group_size
    weight = weight.float()
    if missing:
        weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], dim=1)
    return weight.reshape(weight.shape[0], -1, config.group_size)


def round_range(
    low: Float[Tensor, "out groups"], high: Float[Tensor, "out groups"], config: MobiQuantConfig
) -> tuple[Float16[Tensor, "out groups"], Float16[Tensor, "out groups"]]:
    """(edge, step) in fp16, rounded outwards so that the cells still cover [low, high]."""
    edge = _round_down(low)
    step = (high - edge.float()) / 2 ** config.slice_bits[0]
    return edge, -_round_down(-step.clamp_min(SMALLEST_STEP))


def encode(
    grouped: Float[Tensor, "out groups size"],
    edge: Float16[Tensor, "out groups"],
    step: Float16[Tensor, "out groups"],
    config: MobiQuantConfig,
    residue: UInt8[Tensor, "out groups size"] | None = None,
    modulus: int = 1,
) -> UInt8[Tensor, "out groups size"]:
    """The finest cell every weight falls in; weights outside the range go to the outermost cell.

    `residue` is what learnt rounding wants each weight's pivot cell to leave when divided by `modulus`.
    """
    cells = positions(grouped, edge, step, config)
    if residue is not None:
        return choose_codes(cells, residue, modulus, config).to(torch.uint8)
    return cells.floor_().clamp_(0, 2**config.total_bits - 1).to(torch.uint8)


def positions(
    grouped: Float[Tensor, "out groups size"],
    edge: Float16[Tensor, "out groups"],
    step: Float16[Tensor, "out groups"],
    config: MobiQuantConfig,
) -> Float[Tensor, "out groups size"]:
    """Where every weight lies, in finest cells from the lower edge of its group."""
    finest = step.float() * 2.0 ** (config.slice_bits[0] - config.total_bits)
    return (grouped - edge.float().unsqueeze(-1)).div_(finest.unsqueeze(-1))


def truncate(
    codes: UInt8[Tensor, "out padded_in"], depth: int, config: MobiQuantConfig
) -> UInt8[Tensor, "out padded_in"]:
    """Codes of the first `depth` slices: exactly the full codes without their low bits."""
    return codes >> (config.total_bits - config.bits(depth))


def dequantize(
    sliced: SlicedWeight, depth: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "out in_features"]:
    """The dense weight at `depth`, padding removed."""
    full = reference.dequantize(sliced.codes, sliced.edge, sliced.step, depth, sliced.config.bits_by_depth, dtype)
    return full[:, : sliced.in_features]


def _round_down(values: Float[Tensor, "out groups"]) -> Float16[Tensor, "out groups"]:
    """The largest fp16 number at most as large as each value."""
    nearest = values.half()
    bits = nearest.view(torch.int16)
    # One unit in the last place towards minus infinity, on the bit pattern: fp16 has no portable nextafter.
    below = torch.where(nearest > 0, bits - 1, torch.where(nearest < 0, bits + 1, -32767)).to(torch.int16)
    return torch.where(nearest.float() > values, below.view(torch.float16), nearest)
