"""Trained routers of a student: how wide they may be and where they start.

They start as the layer policy (constant scores) and learn the rest end to end. It knows sizes, no loss.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.calibrate.student import FitSite, Student
from mobiquant_core.router import MlpRouter

LARGEST_SHARE = 0.028
"""Router bytes (fp16) over the bytes of the weights they steer, a little under the promised 3 %."""


def router_widths(student: Student, hidden: int = 16) -> dict[str, int]:
    """Hidden units per kind of site: `hidden`, less for the widest inputs until the share is met."""
    first = [site for site in student.sites if site.layer == 0 and site.leader is None]
    widths = {site.site.name: hidden for site in first}
    bits = student.config.total_bits + 32 / student.config.group_size
    layer_weights = sum(linear.weight.numel() for linear in student.linears_of(0))

    def share() -> float:
        parameters = sum(_parameters(site, widths[site.site.name], student.config.depths - 1) for site in first)
        return 16 * parameters / (layer_weights * bits)

    while share() > LARGEST_SHARE and any(width > 2 for width in widths.values()):
        costliest = max(first, key=lambda site: site.in_features * (widths[site.site.name] - 2))
        widths[costliest.site.name] -= 1
    return widths


def attach_routers(student: Student, layer_scores: Float[Tensor, "linears extra"], seed: int = 0) -> None:
    """Gives every site without a leader a router that repeats the layer policy until it is trained."""
    widths = router_widths(student)
    extra = student.config.depths - 1
    device = student.linears[0].weight.device
    torch.manual_seed(seed)
    for site in student.sites:
        if site.leader is not None:
            continue
        router = MlpRouter(site.in_features, site.heads, extra, widths[site.site.name]).to(device)
        with torch.no_grad():
            scores = layer_scores[site.first_index : site.first_index + site.heads].to(device)
            router.base.copy_(scores.flatten())
        site.router = router.requires_grad_(True)


def router_share(student: Student) -> float:
    """Bytes of all routers over the bytes of all quantized weights."""
    routers = [site.router for site in student.sites if site.router is not None]
    parameters = sum(parameter.numel() for router in routers for parameter in router.parameters())
    bits = student.config.total_bits + 32 / student.config.group_size
    return 16 * parameters / (float(student.weights.sum()) * bits)


def _parameters(site: FitSite, hidden: int, extra: int) -> int:
    outputs = site.heads * extra
    return hidden * (site.in_features + 2 + outputs) + outputs
