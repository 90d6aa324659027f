"""Activation outliers: how large a few channels of a few tokens are beside the rest.

Ratios, not absolute thresholds: the level differs from family to family. It measures and draws nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.decode import DecodeState, prefill
from mobiquant_core.engine import Engine
from mobiquant_core.errors import PromptError
from mobiquant_core.linear import MobiLinear
from mobiquant_core.recording import ResidualRecorder, recording
from mobiquant_core.routing import Depths, FixedDepth


@dataclass(frozen=True)
class ActivationReport:
    """Statistics of the input of every site (projections that read the same vector), over all tokens."""

    layers: np.ndarray
    """int32 [sites]."""
    sites: list[str]
    maximum: np.ndarray
    """float32 [sites]: max |x|; `top3` [sites, 3] are the three largest, `median` [sites] the median of |x|."""
    top3: np.ndarray
    median: np.ndarray
    kurtosis: np.ndarray
    """float32 [sites]: excess kurtosis of x over tokens and channels; 0 for a normal distribution."""
    token_maximum: np.ndarray
    """float32 [sites, T]: max |x| of each token."""


@dataclass(frozen=True)
class ChannelSurface:
    """|h| of the residual stream after one layer, its most active channels only."""

    layer: int
    channels: np.ndarray
    """int32 [C]: channel numbers, rising."""
    magnitude: np.ndarray
    """float32 [T, C]."""


def activation_report(engine: Engine, ids: list[int]) -> ActivationReport:
    """Statistics of every site's input on a text (ids with BOS), all slices active."""
    _check_length(engine, ids)
    collector = _SiteInputs(engine.quantized.config.depths)
    with collector:
        prefill(engine.quantized.model, DecodeState(), ids)
    sites = engine.quantized.sites
    rows = [_statistics(collector.inputs[site.first]) for site in sites]
    return ActivationReport(
        layers=np.array([site.layer for site in sites], dtype=np.int32),
        sites=[site.name for site in sites],
        maximum=np.array([row[0][0] for row in rows], dtype=np.float32),
        top3=np.stack([row[0] for row in rows]),
        median=np.array([row[1] for row in rows], dtype=np.float32),
        kurtosis=np.array([row[2] for row in rows], dtype=np.float32),
        token_maximum=np.stack([row[3] for row in rows]),
    )


def channel_surface(engine: Engine, ids: list[int], layer: int, channels: int = 128) -> ChannelSurface:
    """The `channels` channels with the largest magnitude after `layer` (-1: the embeddings)."""
    _check_length(engine, ids)
    layers = len(engine.quantized.model.get_submodule(engine.quantized.architecture.layers))  # type: ignore[arg-type]
    if not -1 <= layer < layers:
        raise PromptError(f"Layer {layer} does not exist: this model has layers 0 to {layers - 1}.")
    recorder = ResidualRecorder()
    with recording(recorder), FixedDepth(engine.quantized.config.depths):
        prefill(engine.quantized.model, DecodeState(), ids)
    magnitude = recorder.hidden()[layer + 1].abs().float()
    chosen = magnitude.amax(0).topk(min(channels, magnitude.shape[1])).indices.sort().values
    return ChannelSurface(layer, chosen.to(torch.int32).cpu().numpy(), magnitude[:, chosen].cpu().numpy())


class _SiteInputs(FixedDepth):
    """Runs at one depth and keeps what every linear was given."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.inputs: dict[int, Tensor] = {}

    def depths(self, linear: MobiLinear, x: Tensor) -> Depths:
        self.inputs[linear.index] = x.reshape(-1, x.shape[-1])
        return super().depths(linear, x)


def _statistics(x: Float[Tensor, "tokens channels"]) -> tuple[np.ndarray, float, float, np.ndarray]:
    """(top 3 of |x|, median of |x|, excess kurtosis, max |x| of each token)."""
    magnitude = x.abs().float()
    top3 = magnitude.flatten().topk(3).values.cpu().numpy()
    centred = x.double() - x.double().mean()
    variance = centred.square().mean()
    kurtosis = float(centred.pow(4).mean() / variance.square().clamp_min(1e-60)) - 3.0
    return top3, float(magnitude.median()), kurtosis, magnitude.amax(-1).cpu().numpy()


def _check_length(engine: Engine, ids: list[int]) -> None:
    if not 1 <= len(ids) <= engine.context_length:
        raise PromptError(f"The text has {len(ids):,} tokens; give from 1 to {engine.context_length:,}.")
