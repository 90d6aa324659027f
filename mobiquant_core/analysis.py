"""What a run lost against full precision: output error of every linear and token, loss and divergence of predictions.

Measured on the run's own inputs. It knows linears and logits, nothing about text.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mobiquant_core.convert import QuantizedModel
from mobiquant_core.decode import DecodeState, prefill
from mobiquant_core.linear import MobiLinear
from mobiquant_core.recording import token_losses
from mobiquant_core.routing import Depths, Recorder, RoutingPass, RoutingPlan

_EPSILON = 1e-20


class FullPrecision:
    """The exact product of every quantized linear; all slices stand in where the 16-bit weights were not kept."""

    def __init__(self, quantized: QuantizedModel) -> None:
        self._originals = quantized.originals
        self.note = "" if self._originals else "Errors are against all slices: the 16-bit weights are not loaded."

    def product(self, linear: MobiLinear, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out"]:
        """x W^T without the bias."""
        if self._originals is None:
            return F.linear(x, linear.dense(linear.config.depths, x.dtype))
        return F.linear(x, self._originals[linear.index].to(x.device, x.dtype))


class ErrorProbe:
    """Collects the relative output error of each linear at the depth its tokens got."""

    def __init__(self, quantized: QuantizedModel) -> None:
        self._exact = FullPrecision(quantized)
        self._rows: list[Tensor | None] = [None] * len(quantized.linears)
        self.note = self._exact.note

    def observe(self, linear: MobiLinear, x: Float[Tensor, "tokens in_features"], depths: Depths) -> None:
        exact = self._exact.product(linear, x)
        self._rows[linear.index] = relative_error(output_at(linear, x, depths), exact, linear.bias)

    def take(self) -> np.ndarray:
        """float32 [linears, tokens] of the forward just done."""
        return torch.stack([row for row in self._rows if row is not None]).cpu().numpy()


def output_at(
    linear: MobiLinear, x: Float[Tensor, "tokens in_features"], depths: Depths
) -> Float[Tensor, "tokens out"]:
    """The quantized output with one depth for all tokens, or one each."""
    if isinstance(depths, int):
        depths = torch.full((x.shape[0],), depths, dtype=torch.uint8, device=x.device)
    return linear.at_depths(x, depths)


class ProbedPass(RoutingPass):
    """A routing pass that also shows every linear's input to a probe."""

    def __init__(
        self, quantized: QuantizedModel, plan: RoutingPlan, position: int, recorder: Recorder, probe: ErrorProbe
    ) -> None:
        super().__init__([site for site in quantized.sites for _ in site.linears], plan, position, recorder)
        self._probe = probe

    def depths(self, linear: MobiLinear, x: Tensor) -> Depths:
        depths = super().depths(linear, x)
        self._probe.observe(linear, x.reshape(-1, x.shape[-1]), depths)
        return depths


class ReferenceComparison:
    """Runs the full-precision model over the same tokens, chunk by chunk, with a cache of its own."""

    def __init__(self, reference: nn.Module) -> None:
        self._reference = reference
        self._state = DecodeState()
        self._previous: Tensor | None = None

    def chunk(self, ids: list[int], logits: Float[Tensor, "tokens vocabulary"]) -> tuple[np.ndarray, np.ndarray]:
        """(full-precision loss of each token, KL(full precision || run) of each prediction), float32 [tokens]."""
        exact = prefill(self._reference, self._state, ids).to(logits.device)
        losses = token_losses(self._previous, exact, ids)
        self._previous = exact[-1]
        return losses, divergence(exact, logits).cpu().numpy()


def divergence(
    exact: Float[Tensor, "tokens vocabulary"], logits: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, " tokens"]:
    """KL(exact || logits) in nats for each row."""
    log_exact, log_run = exact.log_softmax(-1), logits.log_softmax(-1)
    return (log_exact.exp() * (log_exact - log_run)).sum(-1).clamp_min(0.0)


def squared_errors(
    output: Float[Tensor, "tokens out"], exact: Float[Tensor, "tokens out"], bias: Float[Tensor, " out"] | None
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """(squared norm of the error, squared norm of the exact product) of each token, float32."""
    target = exact if bias is None else exact + bias.to(exact.dtype)
    error = (output - target).float().square().sum(-1)
    return error, exact.float().square().sum(-1)


def relative_error(
    output: Float[Tensor, "tokens out"], exact: Float[Tensor, "tokens out"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, " tokens"]:
    """Squared norm of the error over the squared norm of the exact product."""
    error, size = squared_errors(output, exact, bias)
    return error / (size + _EPSILON)


def perplexity_of(losses: Float[Tensor, " tokens"]) -> float:
    """exp of the mean loss; infinite where the mean is too large for a float."""
    mean = float(losses.double().mean())
    return math.exp(mean) if mean < 700 else math.inf
