"""Routers: from the input of a site to the scores of its residual slices.

A score is the log of the expected loss reduction per weight read, so one threshold compares all layers.
It knows neither thresholds nor budgets; calibration fits the parameters.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mobiquant_core.errors import CheckpointError

ROUTER_KINDS = ("mlp", "sketch", "none")
_SMALLEST_GAIN = 1e-30
"""Keeps the log finite where a slice is not expected to gain anything."""


def log_gain(gain: Float[Tensor, "*tokens extra"]) -> Float[Tensor, "*tokens extra"]:
    """Scores of expected gains: logarithms, made non-increasing so that the active slices are a prefix."""
    return gain.clamp_min(_SMALLEST_GAIN).log().cummin(-1).values


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
        return scores.view(-1, self.heads, self.extra).cummin(-1).values


class MlpRouter(nn.Module):
    """The two-layer perceptron: direction, length and peak of the input to scores."""

    def __init__(self, in_features: int, heads: int, extra: int, hidden: int = 16) -> None:
        super().__init__()
        self.heads, self.extra = heads, extra
        self.direction = nn.Parameter(torch.randn(hidden, in_features) / math.sqrt(in_features))
        self.size = nn.Parameter(torch.zeros(hidden, 2))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Parameter(torch.zeros(heads * extra, hidden))
        self.base = nn.Parameter(torch.zeros(heads * extra))

    def forward(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens heads extra"]:
        x = x.float()
        if len(x) == 1 and x.device.type == "cpu" and not self.direction.requires_grad:
            return self._score_one_token(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-6)
        peak = torch.linalg.vector_norm(x, ord=math.inf, dim=-1, keepdim=True).clamp_min(1e-6)
        sizes = torch.cat([length, peak], dim=-1).log()
        # The product with the raw input is rescaled afterwards: cheaper than normalizing every channel first.
        direction = F.linear(x, self.direction) * (math.sqrt(x.shape[-1]) / length)
        hidden = F.silu(direction + F.linear(sizes, self.size, self.hidden_bias))
        scores = F.linear(hidden, self.output, self.base)
        return scores.view(-1, self.heads, self.extra).cummin(-1).values

    def _score_one_token(self, x: Float[Tensor, "1 in_features"]) -> Float[Tensor, "1 heads extra"]:
        """The same in numpy: decoding on a CPU is bound by the overhead of calls, a third of torch's here."""
        vector = x.detach().numpy()[0]
        length = max(math.sqrt(vector.dot(vector)), 1e-6)
        peak = max(float(vector.max()), -float(vector.min()), 1e-6)
        size = self.size.numpy()
        hidden = self.direction.numpy().dot(vector) * (math.sqrt(len(vector)) / length)
        hidden += size[:, 0] * math.log(length) + size[:, 1] * math.log(peak) + self.hidden_bias.numpy()
        hidden /= 1 + np.exp(-hidden)
        scores = self.output.numpy().dot(hidden) + self.base.numpy()
        return torch.from_numpy(np.minimum.accumulate(scores.reshape(1, self.heads, self.extra), axis=-1))


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
