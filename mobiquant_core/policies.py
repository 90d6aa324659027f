"""Policies: score functions that compete under the same budget.

`router` reads the activations; `layer`, `uniform`, `random` and `norm` are the simpler rivals; `oracle` cheats.
A policy knows no budget: thresholds turn scores into depths.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mobiquant_core.budget import QUANTILES
from mobiquant_core.errors import BudgetError
from mobiquant_core.kernels import dispatch
from mobiquant_core.router import MlpRouter, log_gain
from mobiquant_core.routing import RuntimeSite
from mobiquant_core.token_scores import TokenScorer

POLICIES = ("router", "layer", "uniform", "random", "norm", "oracle")
INPUT_POLICIES = ("router", "norm", "oracle")
"""Those whose score quantiles must be measured; the others' are known in closed form."""

_POSITION_STRIDE, _LINEAR_STRIDE = 0x9E3779B1, 0xC13FA9A9
"""Golden-ratio and plastic-number strides of a 32-bit circle: any run of tokens and layers covers it evenly."""
_DITHER = 0.01
"""Width of the layer policy's dither in nats: splits ties, far below the differences between layers."""


def spread(positions: Int[Tensor, " tokens"], linears: int) -> Float[Tensor, "tokens linears"]:
    """Evenly spread numbers in (0, 1), the same on every device."""
    columns = torch.arange(linears, device=positions.device)
    circle = (positions[:, None] * _POSITION_STRIDE + columns * _LINEAR_STRIDE) & 0xFFFFFFFF
    # 16 bits and a half: exact in fp32, and never 0 or 1.
    return ((circle >> 16).float() + 0.5) / 65536


def hashed(positions: Int[Tensor, " tokens"], linears: int, seed: int = 0) -> Float[Tensor, "tokens linears"]:
    """Unrelated-looking numbers in (0, 1) from position, linear and seed alone."""
    columns = torch.arange(linears, device=positions.device)
    mixed = (positions[:, None] * 0x3C6EF35F + columns * 0x2545F491 + seed * 0x1B873593) & 0xFFFFFFFF
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (((mixed ^ (mixed >> 16)) & 0xFFFF).float() + 0.5) / 65536


def unit_quantiles(linears: int, extra: int) -> Float[Tensor, "linears extra quantiles"]:
    """Quantiles of u - slice with u uniform in (0, 1)."""
    return torch.linspace(0, 1, QUANTILES) - torch.arange(extra)[:, None].expand(linears, extra, 1)


def layer_quantiles(layer_scores: Float[Tensor, "linears extra"]) -> Float[Tensor, "linears extra quantiles"]:
    """Quantiles of the layer policy's dithered scores."""
    return layer_scores.float()[..., None] + _DITHER * (torch.linspace(0, 1, QUANTILES) - 0.5)


@dataclass(frozen=True, eq=False)
class RouterPolicy:
    name: str = "router"
    reads_input: bool = True
    leads: bool = True

    def scores(self, site: RuntimeSite, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens heads extra"]:
        if site.router is None:
            raise BudgetError(
                "This model has no router. Calibrate it with a router (mlp or sketch), or choose the policy uniform."
            )
        found = dispatch.router_scores(site.router, x) if isinstance(site.router, MlpRouter) else None
        return site.router(x) if found is None else found

    def token_scorer(self, site: RuntimeSite) -> TokenScorer | None:
        return site.router.token_scorer if isinstance(site.router, MlpRouter) else None


@dataclass(frozen=True, eq=False)
class UniformPolicy:
    """The same depth everywhere; the fractional part of a budget is spread evenly over tokens and linears."""

    linears: int
    extra: int
    name: str = "uniform"
    reads_input: bool = False

    def position_scores(self, positions: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens linears extra"]:
        return _staircase(spread(positions, self.linears), self.extra)


@dataclass(frozen=True, eq=False)
class RandomPolicy:
    """Every token and linear drawn independently."""

    linears: int
    extra: int
    seed: int = 0
    name: str = "random"
    reads_input: bool = False

    def position_scores(self, positions: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens linears extra"]:
        return _staircase(hashed(positions, self.linears, self.seed), self.extra)


@dataclass(frozen=True, eq=False)
class LayerPolicy:
    """One score for each linear and slice, blind to tokens: a calibration's average gain, or its router's average."""

    layer_scores: Float[Tensor, "linears extra"]
    name: str = "layer"
    reads_input: bool = False

    def position_scores(self, positions: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens linears extra"]:
        dither = _DITHER * (spread(positions, self.layer_scores.shape[0]) - 0.5)
        return self.layer_scores.to(positions.device) + dither[..., None]


@dataclass(frozen=True, eq=False)
class NormPolicy:
    """Tokens with long inputs first, by their rank among the calibration tokens of the same linear."""

    norm_quantiles: Float[Tensor, "linears quantiles"]
    extra: int
    name: str = "norm"
    reads_input: bool = True
    leads: bool = False

    def scores(self, site: RuntimeSite, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens heads extra"]:
        quantiles = self.norm_quantiles[site.first].to(x.device)
        last = quantiles.numel() - 1
        norms = torch.linalg.vector_norm(x.float(), dim=-1)
        right = torch.searchsorted(quantiles, norms).clamp(1, last)
        width = (quantiles[right] - quantiles[right - 1]).clamp_min(1e-12)
        rank = (right - 1 + ((norms - quantiles[right - 1]) / width).clamp(0, 1)) / last
        return _staircase(rank.clamp(1e-5, 1 - 1e-5)[:, None], self.extra).expand(-1, len(site.linears), -1)


@dataclass(frozen=True, eq=False)
class OraclePolicy:
    """The true error reduction of this very token, from dense weights of all depths: an upper bound, not a method."""

    sensitivity: Float[Tensor, " linears"]
    originals: tuple[Float[Tensor, "_ _"], ...] | None
    name: str = "oracle"
    reads_input: bool = True
    leads: bool = False

    def scores(self, site: RuntimeSite, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens heads extra"]:
        return torch.stack([self._linear_scores(site, head, x) for head in range(len(site.linears))], dim=1)

    def _linear_scores(
        self, site: RuntimeSite, head: int, x: Float[Tensor, "tokens in_features"]
    ) -> Float[Tensor, "tokens extra"]:
        linear = site.linears[head]
        depths = range(1, linear.config.depths + 1)
        original = self.originals[linear.index] if self.originals else linear.dense(linear.config.depths, x.dtype)
        exact = F.linear(x, original.to(x.device, x.dtype))
        shifts = [0.0] * len(depths) if linear.shift is None else linear.shift.to(x.dtype)
        errors = [
            (F.linear(x, linear.dense(depth, x.dtype)) + shift - exact).float().square().sum(-1)
            for depth, shift in zip(depths, shifts, strict=True)
        ]
        gains = torch.stack([coarse - fine for coarse, fine in pairwise(errors)], dim=-1)
        return log_gain(gains * (self.sensitivity[linear.index].item() / linear.weights))


Policy = RouterPolicy | UniformPolicy | RandomPolicy | LayerPolicy | NormPolicy | OraclePolicy


def _staircase(unit: Float[Tensor, "tokens linears"], extra: int) -> Float[Tensor, "tokens linears extra"]:
    """u - slice: slice e + 2 is bought only after every u has got slice e + 1."""
    return unit[..., None] - torch.arange(extra, device=unit.device)
