"""Clipped group ranges: how much of a group's outliers to give up for finer cells, judged over all depths at once.

Clipping helps the first slice and ruins the last, so deeper errors weigh more. It sees one matrix at a time.
"""

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.kernels import reference
from mobiquant_core.slicing import encode, group_columns, round_range

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
_ROWS = 512
"""Output rows searched at once: bounds the memory of the search."""


def search_ranges(
    weight: Float[Tensor, "out in_features"], moments: Float[Tensor, " in_features"], config: MobiQuantConfig
) -> tuple[Float16[Tensor, "out groups"], Float16[Tensor, "out groups"]]:
    """(low, high) of every group with the least output error; `moments` are the mean squares of the inputs."""
    importance = (moments / moments.mean().clamp_min(1e-20)).clamp_min(1e-4)
    missing = -weight.shape[1] % config.group_size
    importance = torch.cat([importance, importance.new_zeros(missing)]).view(1, -1, config.group_size)
    parts = [_search_rows(rows, importance, config) for rows in weight.split(_ROWS)]
    return torch.cat([low for low, _ in parts]), torch.cat([high for _, high in parts])


def _search_rows(
    weight: Float[Tensor, "rows in_features"], importance: Float[Tensor, "1 groups size"], config: MobiQuantConfig
) -> tuple[Float16[Tensor, "rows groups"], Float16[Tensor, "rows groups"]]:
    grouped = group_columns(weight, config)
    lowest, highest = grouped.amin(-1), grouped.amax(-1)
    centre, radius = (lowest + highest) / 2, (highest - lowest) / 2
    least = torch.full_like(centre, torch.inf)
    best_low, best_high = lowest.half(), highest.half()
    for shrink in SHRINKS:
        # At the full range the exact ends are kept; rounding to fp16 happens outwards when slicing.
        low, high = (centre - radius * shrink).half(), (centre + radius * shrink).half()
        error = _ladder_error(grouped, low.float(), high.float(), importance, config)
        better = error < least
        least = torch.where(better, error, least)
        best_low, best_high = torch.where(better, low, best_low), torch.where(better, high, best_high)
    return best_low, best_high


def _ladder_error(
    grouped: Float[Tensor, "rows groups size"],
    low: Float[Tensor, "rows groups"],
    high: Float[Tensor, "rows groups"],
    importance: Float[Tensor, "1 groups size"],
    config: MobiQuantConfig,
) -> Float[Tensor, "rows groups"]:
    """Input-weighted squared error summed over depths; a depth's weight doubles with every bit it adds."""
    edge, step = round_range(low, high, config)
    codes = encode(grouped, edge, step, config).flatten(1)
    total = torch.zeros_like(low)
    for depth in range(1, config.depths + 1):
        values = reference.dequantize(codes, edge, step, depth, config.bits_by_depth).view_as(grouped)
        weight = 2.0 ** (config.bits(depth) - config.bits(1))
        total += weight * (values.sub_(grouped).square_() * importance).sum(-1)
    return total
