"""Lets the linears of a model multiply by kernels: packs their codes as planes, shared by linears that are fused.

It imports no Triton, so it can say that Triton is missing.
"""

from mobiquant_core.convert import QuantizedModel
from mobiquant_core.kernels.dispatch import why_no_kernels
from mobiquant_core.linear import MobiLinear
from mobiquant_core.packing import TILE_ROWS, PackedWeight, fuse, pack, section
from mobiquant_core.routing import RuntimeSite


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
    parts = [_pack(linear) for linear in site.linears]
    if any(part.out_features % TILE_ROWS for part in parts[:-1]):
        for linear, part in zip(site.linears, parts, strict=True):
            linear.use_planes(part, part)
        return parts[0]
    fused = fuse(parts) if len(parts) > 1 else parts[0]
    for index, linear in enumerate(site.linears):
        linear.use_planes(section(fused, index), fused)
    return fused


def _pack(linear: MobiLinear) -> PackedWeight:
    sliced = linear.sliced
    return pack(sliced.codes, sliced.edge, sliced.step, sliced.in_features, sliced.config)
