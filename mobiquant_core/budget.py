"""From a bit budget to thresholds, and the slow correction of what was really spent.

It sees score quantiles and weight counts only: any policy, any model.
"""

import math
from functools import cached_property
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import BudgetError

GRID_POINTS = 121
QUANTILES = 257
THRESHOLD_MODES = ("global", "per_linear")
_BISECTIONS = 64
_COARSE_POINTS = 1025
_NARROWINGS = (0.02, 0.02, 0.01, 0.01, 1e-3, 1e-3)
"""Shares of a bracket on either side of the straight line's guess at which the average is looked up, in turn."""
_ROUNDING = 1e-12
"""Averages this close to a budget may be on either side of it, depending on the order of a sum."""
_END = 1e-9
"""Budgets this close to the least or the most are that end exactly."""


def validate_budget(bits: object, config: MobiQuantConfig) -> float:
    """The budget as a float; BudgetError for anything that is no number within the slices' range."""
    least, most = config.bits(1), config.total_bits
    if isinstance(bits, bool) or not isinstance(bits, Real) or not math.isfinite(bits):
        raise BudgetError(f"The bit budget {bits!r} is not a number. Give one from {least} to {most}, for example 3.5.")
    bits = float(bits)
    if not least <= bits <= most:
        raise BudgetError(f"The bit budget {bits:g} is outside {least} to {most}. Give one in that range.")
    return bits


class ThresholdTable:
    """Thresholds that meet any average exactly on the scores the quantiles were taken from.

    `spent` says what runs at the budgets `asked` really used on calibration text (scores shift a little with the
    precision of the layers before); a request is translated through it.
    """

    def __init__(
        self,
        quantiles: Float[Tensor, "linears extra quantiles"],
        weights: list[int],
        config: MobiQuantConfig,
        asked: list[float] | None = None,
        spent: list[float] | None = None,
    ) -> None:
        self.config = config
        self._quantiles = quantiles.double().cpu().numpy()
        self._weights = np.array(weights, np.float64) / sum(weights)
        self._slice_bits = np.array(config.slice_bits[1:], np.float64)
        # Rows one after another, filled up to a power of two with what no threshold reaches.
        count = self._quantiles.shape[-1]
        self._width = 1 << count.bit_length()
        filled = np.pad(self._quantiles, ((0, 0), (0, 0), (0, self._width - count)), constant_values=np.inf)
        self._padded = filled.ravel()
        self._rows = np.arange(filled.size // self._width).reshape(*self._quantiles.shape[:2], 1) * self._width
        self._asked, self._spent = asked or [], spent or []
        self.budget_grid = torch.linspace(config.bits(1), config.total_bits, GRID_POINTS, dtype=torch.float64)

    @cached_property
    def global_thresholds(self) -> Float[Tensor, " budgets"]:
        return torch.stack([self.at(budget)[0] for budget in self.budget_grid.tolist()])

    @cached_property
    def per_linear(self) -> Float[Tensor, "budgets linears"]:
        return torch.stack([self.at(budget, "per_linear") for budget in self.budget_grid.tolist()])

    def at(self, budget: float, mode: str = "global") -> Float[Tensor, " linears"]:
        """The threshold of every linear; +inf at the smallest budget and -inf at the largest."""
        if mode not in THRESHOLD_MODES:
            raise BudgetError(f"The threshold mode {mode!r} is unknown. Known: {', '.join(THRESHOLD_MODES)}.")
        budget = validate_budget(budget, self.config)
        linears = self._quantiles.shape[0]
        if budget <= self.config.bits(1) + _END:
            return torch.full((linears,), math.inf)
        if budget >= self.config.total_bits - _END:
            return torch.full((linears,), -math.inf)
        if mode == "global":
            return self._solve(self._translated(budget), True).expand(linears)
        return self._solve(budget, False)

    def _solve(self, budget: float, common: bool) -> Float[Tensor, " n"]:
        """One common threshold (n = 1) or one per linear: the least at which the average is no more than `budget`."""
        low, high = self._bracket(budget, common)
        for _ in range(_BISECTIONS):
            if _alike(low, high):
                break
            middle = (low + high) / 2
            too_many = self._average_at(middle, common) > budget
            low, high = np.where(too_many, middle, low), np.where(too_many, high, middle)
        return torch.from_numpy(high[:, 0]).float()

    def _bracket(self, budget: float, common: bool) -> tuple[Float[np.ndarray, "n 1"], Float[np.ndarray, "n 1"]]:
        """(low, high) around the solution, mostly too close for fp32 to tell apart.

        From a table of averages along straight lines: bisecting alone takes longer than a GPU takes for some tokens.
        """
        points, curves = self._coarse
        curve = curves[common]
        left = (curve > budget + _ROUNDING).sum(-1, keepdims=True) - 1
        right = curve.shape[-1] - (curve < budget - _ROUNDING).sum(-1, keepdims=True)
        low, high = points[left], points[right]
        above, below = np.take_along_axis(curve, left, -1), np.take_along_axis(curve, right, -1)
        for share in _NARROWINGS:
            if _alike(low, high):
                break
            guess = low + (high - low) * ((above - budget) / (above - below))
            reach = (high - low) * share
            tried = np.concatenate([np.maximum(guess - reach, low), np.minimum(guess + reach, high)], -1)
            found = self._average_at(tried, common)
            over, under = found > budget + _ROUNDING, found < budget - _ROUNDING
            low = np.where(over, tried, low).max(-1, keepdims=True)
            above = np.where(over, found, above).min(-1, keepdims=True)
            high = np.where(under, tried, high).min(-1, keepdims=True)
            below = np.where(under, found, below).max(-1, keepdims=True)
        # At 0 fp32 tells more apart than bisecting ever does: there the whole range decides what is found.
        at_zero = (low <= 0) & (high >= 0)
        return np.where(at_zero, points[0], low), np.where(at_zero, points[-1], high)

    @cached_property
    def _coarse(self) -> tuple[Float[np.ndarray, " points"], tuple[Float[np.ndarray, "_ points"], ...]]:
        """Thresholds from below all scores to above them, and the averages there: of every linear, and of all."""
        points = np.linspace(float(self._quantiles.min()) - 1, float(self._quantiles.max()) + 1, _COARSE_POINTS)
        return points, (self._average_at(points[None], False), self._average_at(points[None], True))

    def _average_at(self, thresholds: Float[np.ndarray, "n points"], common: bool) -> Float[np.ndarray, "_ points"]:
        """Average bits at some thresholds, one row for all linears or one for each."""
        per_linear = self._bits_at(np.broadcast_to(thresholds, (self._quantiles.shape[0], thresholds.shape[1])))
        if not common:
            return per_linear
        # Where averages stand still at the budget, rounding decides between thresholds: torch's order, as ever.
        return torch.from_numpy(per_linear * self._weights[:, None]).sum(0, keepdim=True).numpy()

    def _bits_at(self, thresholds: Float[np.ndarray, "linears points"]) -> Float[np.ndarray, "linears points"]:
        """Average bits of every linear on the calibration scores."""
        last = self._quantiles.shape[-1] - 1
        sought = thresholds[:, None]
        upper = self._not_above(sought)
        right = np.clip(upper, 1, last)
        i_right = self._rows + right
        left_value, right_value = self._padded[i_right - 1], self._padded[i_right]
        within = np.clip((sought - left_value) / np.maximum(right_value - left_value, 1e-300), 0, 1)
        below = np.where(upper > last, 1.0, (right - 1 + within) / last)
        below = np.where(upper == 0, 0.0, below)
        return self.config.bits(1) + ((1 - below) * self._slice_bits[:, None]).sum(1)

    def _not_above(self, sought: Float[np.ndarray, "linears 1 points"]) -> Int[np.ndarray, "linears extra points"]:
        """How many of each slice's quantiles are not above what is sought.

        By halving, for all rows at once: torch.searchsorted wakes its threads for a few hundred numbers, and a plan
        then takes 100 times as long where other threads are busy.
        """
        found = np.zeros((*self._quantiles.shape[:2], sought.shape[-1]), np.int64)
        step = self._width // 2
        while step:
            found += step * (self._padded[self._rows + found + (step - 1)] <= sought)
            step //= 2
        return found

    def _translated(self, budget: float) -> float:
        """The budget to solve for so that `budget` is what a run spends."""
        least, most = float(self.config.bits(1)), float(self.config.total_bits)
        spent, asked = [least, *self._spent, most], [least, *self._asked, most]
        for i in range(1, len(spent)):
            if budget <= spent[i] and spent[i] > spent[i - 1]:
                part = (budget - spent[i - 1]) / (spent[i] - spent[i - 1])
                return asked[i - 1] + max(part, 0.0) * (asked[i] - asked[i - 1])
        return budget


def _alike(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether fp32, the type of every threshold, tells them apart nowhere."""
    return bool((low.astype(np.float32) == high.astype(np.float32)).all())


class BudgetController:
    """Slow causal correction between chunks: what was under- or overspent is made good over a horizon of tokens."""

    def __init__(
        self, requested: float, config: MobiQuantConfig, horizon_tokens: int = 64, largest_correction: float = 1.0
    ) -> None:
        self.requested = validate_budget(requested, config)
        self._range = (float(config.bits(1)), float(config.total_bits))
        self._horizon = horizon_tokens
        self._largest = largest_correction
        self._unspent = 0.0
        self._chunk = 0

    def observe(self, average_bits: float, tokens: int) -> None:
        """A chunk of `tokens` tokens used `average_bits`."""
        self._unspent += (self.requested - average_bits) * tokens
        self._chunk = tokens

    @property
    def effective(self) -> float:
        """The budget for the next chunk; the ends of the range are never corrected, they are exact."""
        if self.requested in self._range:
            return self.requested
        # A horizon shorter than the chunk itself would overcorrect and swing.
        correction = self._unspent / max(self._horizon, self._chunk)
        corrected = self.requested + min(max(correction, -self._largest), self._largest)
        return min(max(corrected, self._range[0]), self._range[1])
