"""Which budgets a training step visits, and the thresholds that meet them.

Thresholds follow a running table over budgets, fed by every step's own scores. It knows scores and weights
of linears, nothing of the model.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig

SOFTEST, HARDEST = 0.2, 1e-3
OPEN_ALL, OPEN_NONE = -1e4, 1e4


def draw_budgets(
    count: int,
    config: MobiQuantConfig,
    highest: float,
    generator: torch.Generator,
    crowding: float = 1.8,
    at_lowest: int = 1,
) -> Float[Tensor, " count"]:
    """One budget per window: both ends of the range, the rest spread evenly and denser where bits are scarce.

    The full depth needs no router but keeps the ranges honest, so it is always there.
    """
    lowest, top = config.bits(1), config.total_bits
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    budgets = lowest + (min(highest, top) - lowest) * places**crowding
    if count >= 4:
        budgets[:at_lowest], budgets[-1] = lowest, top
    return budgets


def cosine_rate(progress: float, warm_up: float = 0.03) -> float:
    """Share of the peak learning rate: short linear rise, cosine fall to 2 %."""
    if progress < warm_up:
        return (progress + 1e-3) / warm_up
    return 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def softness_at(progress: float) -> float:
    """Choices of cells harden over the first three quarters; the rest of the run sees the weights that will be."""
    return max(HARDEST, SOFTEST * (1 - progress / 0.75))


class ThresholdSchedule:
    """A running table: budget -> threshold that spends it on average."""

    POINTS = 97

    def __init__(self, config: MobiQuantConfig, weights: Float[Tensor, " linears"], device: torch.device) -> None:
        self.config = config
        self.share = (weights / weights.sum()).float().to(device)
        self.gain = torch.tensor([float(b) for b in config.slice_bits[1:]], device=device)
        self.grid = torch.linspace(config.bits(1), config.total_bits, self.POINTS, device=device)
        self.table: Tensor | None = None

    def update(self, scores: Float[Tensor, "linears batch tokens extra"], keep: float = 0.9) -> None:
        """Moves the table towards the thresholds of these scores; every operation stays on the device."""
        fresh = self.solve(scores)
        self.table = fresh if self.table is None else self.table * keep + fresh * (1 - keep)

    def solve(self, scores: Float[Tensor, "linears batch tokens extra"]) -> Float[Tensor, " points"]:
        """Thresholds of the whole grid: sort all scores once and read off where the spent bits pass each budget."""
        tokens = scores.shape[1] * scores.shape[2]
        cost = (self.share.view(-1, 1, 1, 1) * self.gain / tokens).expand_as(scores).flatten()
        ordered, order = scores.flatten().float().sort(descending=True)
        spent = cost[order].double().cumsum(0) + self.config.bits(1)
        place = torch.searchsorted(spent, self.grid.double()).clamp_max(len(ordered) - 1)
        return ordered[place]

    def at(self, budgets: Float[Tensor, " count"]) -> Float[Tensor, " count"]:
        """Thresholds of some budgets; the two ends are exact."""
        if self.table is None:
            raise RuntimeError("The threshold table is empty: update it with scores first.")
        lowest, top = self.config.bits(1), self.config.total_bits
        position = (budgets - lowest) / (top - lowest) * (self.POINTS - 1)
        left = position.floor().clamp(0, self.POINTS - 2).long()
        mixed = torch.lerp(self.table[left], self.table[left + 1], position - left)
        mixed = torch.where(budgets <= lowest, OPEN_NONE, mixed)
        return torch.where(budgets >= top, OPEN_ALL, mixed)
