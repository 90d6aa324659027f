"""Routers: from the input of a site to the scores of its residual slices, and of sites that it leads.

A score is the log of the expected loss reduction per weight read, so one threshold compares all layers.
It knows neither thresholds nor budgets; calibration fits the parameters.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mobiquant_core.errors import CheckpointError
from mobiquant_core.token_scores import TokenScorer

ROUTER_KINDS = ("mlp", "sketch", "none")
_SMALLEST_GAIN = 1e-30
"""Keeps the log finite where a slice is not expected to gain anything."""


def log_gain(gain: Float[Tensor, "*tokens extra"]) -> Float[Tensor, "*tokens extra"]:
    """Scores of expected gains: logarithms, made non-increasing so that the active slices are a prefix."""
    return running_minimum(gain.clamp_min(_SMALLEST_GAIN).log())


def running_minimum(scores: Float[Tensor, "*tokens extra"]) -> Float[Tensor, "*tokens extra"]:
    """The smallest of each slice's score and those before it, so that active slices are a prefix.

    A chain of minima: a scan over three numbers takes a GPU as long as one over three thousand.
    """
    least = list(accumulate(scores.unbind(-1), torch.minimum))
    return torch.stack(least, dim=-1) if least else scores


class SketchRouter(nn.Module):
    """Closed form: the error energy a slice removes, from squared inputs and the energy of residual columns.

    `energy` holds each slice's column energies brought to a common size, `offset` the log of everything else.
    `centre` is the mean input, whose error the linears' shifts already take away.
    """

    def __init__(self, in_features: int, heads: int, extra: int) -> None:
        super().__init__()
        self.heads, self.extra = heads, extra
        self.energy = nn.Parameter(torch.zeros(heads * extra, in_features), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(heads * extra), requires_grad=False)
        self.centre = nn.Parameter(torch.zeros(in_features), requires_grad=False)

    def forward(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens heads extra"]:
        energy = F.linear((x.float() - self.centre).square_(), self.energy).clamp_min_(_SMALLEST_GAIN)
        scores = energy.log_().add_(self.offset)
        return running_minimum(scores.view(-1, self.heads, self.extra))


class MlpRouter(nn.Module):
    """The two-layer perceptron: direction and length of the input to scores."""

    def __init__(self, in_features: int, heads: int, extra: int, hidden: int = 16) -> None:
        super().__init__()
        self.heads, self.extra = heads, extra
        self.direction = nn.Parameter(torch.randn(hidden, in_features) / math.sqrt(in_features))
        self.size = nn.Parameter(torch.zeros(hidden))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Parameter(torch.zeros(heads * extra, hidden))
        self.base = nn.Parameter(torch.zeros(heads * extra))
        self._scorer: TokenScorer | None = None

    @property
    def token_scorer(self) -> TokenScorer | None:
        """The quick way for one token on a CPU; None while the parameters are being fitted or are elsewhere."""
        if self._scorer is None and self.direction.device.type == "cpu" and not self.direction.requires_grad:
            parameters = (self.direction, self.size, self.hidden_bias, self.output, self.base)
            self._scorer = TokenScorer(*(parameter.float().numpy() for parameter in parameters))
        return self._scorer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._scorer = None  # what moves or changes its type leaves the copy behind
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._scorer = None
        super()._load_from_state_dict(*arguments)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        self._scorer = None  # a fit changes the parameters in place
        return super().requires_grad_(requires_grad)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_scorer": None}  # a copy has parameters of its own

    def forward(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens heads extra"]:
        x = x.float()
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-6)
        # The product with the raw input is rescaled afterwards: cheaper than normalizing every channel first.
        direction = F.linear(x, self.direction) * (math.sqrt(x.shape[-1]) / length)
        hidden = F.relu(direction + length.log() * self.size + self.hidden_bias)
        scores = F.linear(hidden, self.output, self.base)
        return running_minimum(scores.view(-1, self.heads, self.extra))


def router_from_state(kind: str, state: dict[str, Tensor], heads: int, extra: int) -> SketchRouter | MlpRouter:
    """A router of stored (fp16) parameters; its sizes follow from their shapes."""
    try:
        if kind == "sketch":
            router: SketchRouter | MlpRouter = SketchRouter(state["energy"].shape[1], heads, extra)
        elif kind == "mlp":
            hidden, in_features = state["direction"].shape
            router = MlpRouter(in_features, heads, extra, hidden)
        else:
            raise CheckpointError(f"The router kind {kind!r} is unknown. Known: {', '.join(ROUTER_KINDS)}.")
        router.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The stored {kind} router does not fit a site with {heads} linears and {extra} residual slices. "
            "Calibrate again for this model."
        ) from error
    return router.requires_grad_(False)
