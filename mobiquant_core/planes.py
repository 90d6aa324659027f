"""Lets the linears of a model multiply by kernels: packs their codes as planes, shared by linears that are fused.

It imports no Triton, so it can say that Triton is missing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.kernels.dispatch import why_no_kernels
from mobiquant_core.packing import GROUP, TILE_ROWS, WORDS, PackedWeight, fuse, pack, section
from mobiquant_core.routing import RuntimeSite
from mobiquant_core.slicing import SlicedWeight, slice_weight

_ROWS_AT_ONCE = 4096
"""Rows of a dense matrix that are sliced together: several fp32 copies of them exist at a time."""


def use_kernels(quantized: QuantizedModel) -> str:
    """Lets a model on a GPU multiply by kernels from now on; why not, as one line, where it cannot."""
    device = quantized.model.get_input_embeddings().get_parameter("weight").device
    reason = why_no_kernels(device, quantized.config)
    if not reason:
        for site in quantized.sites:
            site_planes(site)
    return reason


def site_planes(site: RuntimeSite) -> PackedWeight:
    """The planes of a site's linears as one weight. The linears share them, so that nothing is held twice."""
    shared = site.linears[0].shared
    if shared is not None:
        return shared
    parts = [_pack(linear.sliced) for linear in site.linears]
    if any(part.out_features % TILE_ROWS for part in parts[:-1]):
        for linear, part in zip(site.linears, parts, strict=True):
            linear.use_planes(part, part)
        return parts[0]
    fused = fuse(parts) if len(parts) > 1 else parts[0]
    for index, linear in enumerate(site.linears):
        linear.use_planes(section(fused, index), fused)
    return fused


def planes_of(weight: Float[Tensor, "out in_features"], config: MobiQuantConfig) -> PackedWeight:
    """All slices of a dense matrix over each group's minimum and maximum; beside them memory for a part of its rows."""
    rows, in_features = weight.shape
    tiles, groups = -(-rows // TILE_ROWS), -(-in_features // GROUP)
    planes = weight.new_empty(config.depths, tiles, groups, WORDS, dtype=torch.int32)
    ranges = weight.new_empty(tiles, groups, TILE_ROWS, dtype=torch.int32)
    for first in range(0, rows, _ROWS_AT_ONCE):
        part = _pack(slice_weight(weight[first : first + _ROWS_AT_ONCE], config))
        own = slice(first // TILE_ROWS, first // TILE_ROWS + part.planes.shape[1])
        planes[:, own], ranges[own] = part.planes, part.ranges
    return PackedWeight(planes, ranges, in_features, (rows,))


def _pack(sliced: SlicedWeight) -> PackedWeight:
    return pack(sliced.codes, sliced.edge, sliced.step, sliced.in_features, sliced.config)
