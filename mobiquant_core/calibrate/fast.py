"""The fast calibration: closed form throughout, minutes on a small CPU.

Ranges by a search per group, layer scores and sketch routers from sampled inputs and loss gradients.
"""

import time

import torch
from jaxtyping import Int
from torch import Tensor

from mobiquant_core.architectures import Site, architecture_of
from mobiquant_core.calibrate.ranges import search_ranges
from mobiquant_core.calibrate.sketch import fit_sketch, layer_scores, removed_errors
from mobiquant_core.calibrate.statistics import SiteStatistics, collect_statistics
from mobiquant_core.calibrate.thresholds import measure_thresholds
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import (
    PreTrainedModel,
    Progress,
    linear_name,
    quantize_model,
    site_name,
    walk_sites,
    working_copy,
)
from mobiquant_core.slicing import dequantize, slice_weight

_STATISTICS_END, _SITES_END = 0.5, 0.75
"""Shares of the time, for the progress bar."""


def calibrate_fast(
    model: PreTrainedModel,
    token_windows: Int[Tensor, "windows tokens"],
    config: MobiQuantConfig,
    router: str,
    progress: Progress,
) -> Calibration:
    """Fits everything for a 16- or 32-bit model, which is left as it was."""
    started = time.monotonic()
    statistics = collect_statistics(
        model, token_windows, lambda share: progress("Reading activations and gradients", share * _STATISTICS_END)
    )
    found = Calibration(config, router_kind=router, ranges={}, shifts={})
    scores: list[Tensor] = []
    walked = list(walk_sites(model, architecture_of(model.config.model_type)))
    for done, ((layer, site, block), seen) in enumerate(zip(walked, statistics, strict=True)):
        share = _STATISTICS_END + (_SITES_END - _STATISTICS_END) * done / len(walked)
        progress(f"Fitting ranges and routers of layer {layer}", share)
        scores += _fit_site(found, layer, site, block.get_submodule(site.parent), seen)
    heads = [len(site.projections) for _, site, _ in walked]
    found.layer_scores = torch.stack(scores).cpu()
    found.sensitivity = torch.cat([seen.sensitivity for seen in statistics]).cpu()
    found.norm_quantiles = torch.cat(
        [seen.norm_quantiles.expand(count, -1) for seen, count in zip(statistics, heads, strict=True)]
    ).cpu()
    quantized = quantize_model(working_copy(model, found), config, found, keep_originals=True)
    measure_thresholds(
        quantized,
        token_windows,
        lambda share: progress("Measuring thresholds", _SITES_END + (1 - _SITES_END) * share),
    )
    found.provenance = {
        "effort": "fast",
        "windows": str(tuple(token_windows.shape)),
        "seconds": f"{time.monotonic() - started:.0f}",
    }
    return found


@torch.no_grad()
def _fit_site(
    found: Calibration, layer: int, site: Site, parent: torch.nn.Module, seen: SiteStatistics
) -> list[Tensor]:
    """Ranges, shifts, router and layer scores of one site; all but the last go into `found`."""
    ranges, shifts = found.ranges or {}, found.shifts or {}
    residuals: list[list[Tensor]] = []
    weights: list[int] = []
    for projection in site.projections:
        name, weight = (
            linear_name(layer, site, projection),
            parent.get_submodule(projection).get_parameter("weight").float(),
        )
        low, high = search_ranges(weight, seen.moments, found.config)
        ranges[name] = (low.cpu(), high.cpu())
        sliced = slice_weight(weight, found.config, low, high)
        residuals.append([weight - dequantize(sliced, depth) for depth in range(1, found.config.depths + 1)])
        # What a cut weight misses of the mean input is known beforehand: give it back.
        shifts[name] = torch.stack([residual @ seen.mean for residual in residuals[-1]]).cpu()
        weights.append(weight.numel())
    found.ranges, found.shifts = ranges, shifts
    removed = [removed_errors(of_head, seen.inputs) for of_head in residuals]
    if found.router_kind == "sketch":
        state = fit_sketch(residuals, removed, seen, weights).state_dict()
        found.routers |= {f"{site_name(layer, site)}.{name}": value.half() for name, value in state.items()}
    return [layer_scores(removed[head], seen, head, count) for head, count in enumerate(weights)]
