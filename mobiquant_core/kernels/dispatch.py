"""Picks how a mixed-depth product is computed: by kernels from planes, or as the definition says.

It knows codes and depths, not where depths come from. Triton is imported at the first product that needs it.
"""

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.kernels import reference
from mobiquant_core.packing import PackedWeight, can_pack

OLDEST_CAPABILITY = (8, 0)
"""Ampere: the first cards with the integer product the kernels are made of."""


class Perceptron(Protocol):
    """The parameters of a router."""

    @property
    def direction(self) -> Tensor: ...
    @property
    def size(self) -> Tensor: ...
    @property
    def hidden_bias(self) -> Tensor: ...
    @property
    def output(self) -> Tensor: ...
    @property
    def base(self) -> Tensor: ...
    @property
    def heads(self) -> int: ...


@runtime_checkable
class SlicedFields(Protocol):
    """What a product needs of a sliced weight."""

    @property
    def codes(self) -> Tensor: ...
    @property
    def edge(self) -> Tensor: ...
    @property
    def step(self) -> Tensor: ...
    @property
    def config(self) -> MobiQuantConfig: ...


@cache
def why_no_kernels(device: torch.device, config: MobiQuantConfig) -> str:
    """Why products on this device take the reference path, as one line; empty where kernels run. Said once."""
    reason = _reason(device, config)
    if reason and device.type == "cuda":
        warnings.warn(f"Quantized products take the slower reference path: {reason}.", stacklevel=2)
    return reason


def _reason(device: torch.device, config: MobiQuantConfig) -> str:
    reason = why_no_triton(device)
    if not reason and not can_pack(config):
        return f"slices {config.slice_bits} in groups of {config.group_size} have no kernels"
    return reason


@cache
def why_no_triton(device: torch.device) -> str:
    """Why no kernel at all runs on this device, as one line; empty where they run."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"there is no CUDA device behind {str(device)!r}"
    if torch.version.hip:
        return "the kernels are written for NVIDIA cards"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return ""


def mixed_linear(
    x: Float[Tensor, "tokens in_features"],
    sliced: SlicedFields,
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    dense: Callable[[int], Tensor] | None = None,
) -> Float[Tensor, "tokens out"]:
    """Every token times the weight at its own depth; `dense` gives cached dense weights where they are kept."""
    if dense is not None:
        return reference.grouped_linear(x, dense, depths, bias, shift)
    return reference.mixed_linear(
        x,
        sliced.codes,
        sliced.edge,
        sliced.step,
        depths,
        bias,
        shift,
        bits_by_depth=sliced.config.bits_by_depth,
    )


def mixed_planes(
    x: Float[Tensor, "tokens in_features"],
    packed: PackedWeight,
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
) -> Float[Tensor, "tokens out"]:
    """The same from planes, by kernels: gain[depth - 1] * (W_depth x) + bias + shift[depth - 1]."""
    from mobiquant_core.kernels import gpu

    return gpu.mixed_linear(packed, x, depths, bias, shift, gain)


def fused_planes(
    x: Float[Tensor, "tokens in_features"],
    packed: PackedWeight,
    depths: UInt8[Tensor, "sections tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
) -> list[Float[Tensor, "tokens rows"]]:
    """The same for all sections of fused planes at once, where `whole_prompt` says so."""
    from mobiquant_core.kernels import prompt_product

    return prompt_product.multiply(packed, x, depths, bias, shift, gain)


def whole_prompt(packed: PackedWeight, x: Float[Tensor, "tokens in_features"]) -> bool:
    """Whether planes, which have no gradient, are quicker than a dense weight where all these tokens have one depth."""
    if not x.is_cuda or (torch.is_grad_enabled() and x.requires_grad):
        return False
    from mobiquant_core.kernels import gpu

    return gpu.whole_prompt(packed, x)


def router_scores(
    router: Perceptron, x: Float[Tensor, "tokens in_features"]
) -> Float[Tensor, "tokens heads extra"] | None:
    """Scores of a perceptron by one kernel, which has no gradient; None where its definition has to do."""
    has_gradient = torch.is_grad_enabled() and (x.requires_grad or router.direction.requires_grad)
    if not x.is_cuda or x.stride(1) != 1 or has_gradient or why_no_triton(x.device):
        return None
    if x.dtype not in (torch.bfloat16, torch.float16) or router.direction.dtype != torch.float32:
        return None
    from mobiquant_core.kernels import prompt_scores

    hidden = router.direction.shape[0]
    if hidden < prompt_scores.LEAST_HIDDEN or hidden & (hidden - 1):
        return None
    parameters = (router.direction, router.size, router.hidden_bias, router.output, router.base)
    return prompt_scores.scores(x, *parameters, heads=router.heads)


def dense(
    packed: PackedWeight, depth: int, dtype: torch.dtype, gain: Float[Tensor, "depths out"] | None = None
) -> Float[Tensor, "out in_features"]:
    """The 16-bit weight at one depth out of planes, gain included."""
    from mobiquant_core.kernels import gpu

    return gpu.dense(packed, depth, dtype, gain)
