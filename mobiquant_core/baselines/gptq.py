"""GPTQ: columns are rounded one after another, and every error is passed on to the columns not yet rounded.

Group of 128, natural column order, 1 % damping, activations of the already quantized layers: the published recipe.
Checked in the tests: with an identity Hessian it is round-to-nearest.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mobiquant_core.architectures import architecture_of
from mobiquant_core.baselines.rtn import group_grid, round_to_grid
from mobiquant_core.calibrate.backbone import Backbone
from mobiquant_core.errors import CheckpointError


def gptq_quantize(
    weight: Float[Tensor, "out in_features"],
    hessian: Float[Tensor, "in_features in_features"],
    bits: int,
    group: int = 128,
    damping: float = 0.01,
) -> Float[Tensor, "out in_features"]:
    """The weight rounded to `bits` bits with errors compensated under `hessian` = X^T X of its inputs."""
    remaining, curvature = weight.float().clone(), hessian.float().clone()
    dead = curvature.diagonal() == 0
    curvature.diagonal()[dead] = 1
    remaining[:, dead] = 0
    upper = _inverse_factor(curvature, damping)
    rounded = torch.zeros_like(remaining)
    for start in range(0, weight.shape[1], group):
        end = min(start + group, weight.shape[1])
        _round_block(remaining[:, start:end], rounded[:, start:end], upper[start:end, start:end], bits)
        # Each column of the block now holds what was rounded: the weight plus the errors passed on to it.
        scaled = (remaining[:, start:end] - rounded[:, start:end]) / upper[start:end, start:end].diagonal()
        remaining[:, end:] -= scaled @ upper[start:end, end:]
    return rounded.to(weight.dtype)


def _inverse_factor(curvature: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the damped inverse; damping grows tenfold where fp32 is not enough."""
    identity = torch.eye(len(curvature), device=curvature.device) * curvature.diagonal().mean()
    for attempt in range(4):
        factor, failed = torch.linalg.cholesky_ex(curvature + identity * damping * 10**attempt)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper
    raise CheckpointError("GPTQ found inputs that are no numbers. Check the checkpoint and the calibration text.")


def _round_block(block: Tensor, rounded: Tensor, upper: Tensor, bits: int) -> None:
    """Rounds the columns of one group in place, passing errors on inside the group; the grid is fixed at its start."""
    scale, zero = group_grid(block, bits)
    for column in range(block.shape[1]):
        values = block[:, column : column + 1]
        rounded[:, column : column + 1] = round_to_grid(values, scale, zero, bits)
        error = (values - rounded[:, column : column + 1]) / upper[column, column]
        block[:, column + 1 :] -= error * upper[column, column + 1 :]


@torch.no_grad()
def gptq_model(model: PreTrainedModel, windows: Int[Tensor, "windows tokens"], bits: int, group: int = 128) -> None:
    """Rounds all projections of a model in place, layer by layer, on activations of the layers already rounded."""
    backbone = Backbone(model)
    architecture = architecture_of(model.config.model_type)
    parts = [backbone.embed(part) for part in windows.split(8)]
    for index, layer in enumerate(backbone.layers):
        linears = {
            f"{site.parent}.{name}": (site.name, layer.get_submodule(site.parent).get_submodule(name))
            for site in architecture.sites
            for name in site.projections
        }
        hessians = _collect_hessians(backbone, index, parts, linears)
        for site_name, linear in linears.values():
            linear.weight.copy_(gptq_quantize(linear.weight, hessians[site_name], bits, group))  # pyright: ignore
        parts = [backbone.run_layer(index, part) for part in parts]


def _collect_hessians(
    backbone: Backbone, index: int, parts: list[Tensor], linears: dict[str, tuple[str, nn.Module]]
) -> dict[str, Tensor]:
    """X^T X of every distinct input of one layer."""
    hessians: dict[str, Tensor] = {}

    def collect(site_name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            hessians[site_name] = hessians.get(site_name, 0) + x.t() @ x

        return hook

    first_of_site = dict(reversed(linears.values()))
    hooks = [linear.register_forward_pre_hook(collect(name)) for name, linear in first_of_site.items()]
    for part in parts:
        backbone.run_layer(index, part)
    for hook in hooks:
        hook.remove()
    return hessians
