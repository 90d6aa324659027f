"""A deterministic stand-in for `mobiquant_core.outliers.channel_surface`: one massive channel at the first token."""

from types import SimpleNamespace

import numpy as np
from fake_engine import FakeEngine, _noise


def surface(engine: FakeEngine, ids: list[int], layer: int, channels: int) -> SimpleNamespace:
    tokens = np.arange(len(ids))[:, None]
    magnitude = 0.5 + _noise(tokens, np.arange(channels)[None], layer + 2)
    magnitude[0, channels // 3] = 400
    return SimpleNamespace(layer=layer, channels=np.arange(channels) * 4, magnitude=magnitude.astype(np.float32))
