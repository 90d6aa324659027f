"""Plain round-to-nearest: asymmetric min-max integers per group, the usual floor of every comparison.

It knows one matrix; `apply_to_projections` puts a function of the weight into a whole model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mobiquant_core.architectures import architecture_of


def group_grid(
    grouped: Float[Tensor, "*rows size"], bits: int
) -> tuple[Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """(scale, zero point) that cover minimum and maximum of the last axis; zero itself stays representable."""
    low = grouped.amin(-1, keepdim=True).clamp_max(0)
    high = grouped.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    return scale, torch.round(-low / scale)


def round_to_grid(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest representable value of each."""
    return scale * ((values / scale).round().add(zero).clamp(0, 2**bits - 1) - zero)


def rtn_quantize(
    weight: Float[Tensor, "out in_features"], bits: int, group: int = 128
) -> Float[Tensor, "out in_features"]:
    """The weight rounded to `bits` bits per group of columns; a short last group is a group of its own."""
    parts = [round_to_grid(part, *group_grid(part, bits), bits) for part in weight.float().split(group, dim=1)]
    return torch.cat(parts, dim=1).to(weight.dtype)


@torch.no_grad()
def apply_to_projections(model: PreTrainedModel, function: Callable[[Tensor], Tensor]) -> None:
    """Replaces the weight of every projection by a function of it, in place."""
    architecture = architecture_of(model.config.model_type)
    for layer in model.get_submodule(architecture.layers).children():
        for site in architecture.sites:
            for name in site.projections:
                weight = layer.get_submodule(site.parent).get_submodule(name).get_parameter("weight")
                weight.copy_(function(weight))
