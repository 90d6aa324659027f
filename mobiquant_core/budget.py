"""From a bit budget to thresholds, and the slow correction of what was really spent.

It sees score quantiles and weight counts only: any policy, any model.
"""

import math
from functools import cached_property
from numbers import Real

import torch
from jaxtyping import Float
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
        self._quantiles = quantiles.double().contiguous()
        self._weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        self._slice_bits = torch.tensor(config.slice_bits[1:], dtype=torch.float64)
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
            too_many = self._average_at(middle[:, None], common)[:, 0] > budget
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        return high.float()

    def _bracket(self, budget: float, common: bool) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """(low, high) around the solution, mostly too close for fp32 to tell apart.

        From a table of averages along straight lines: bisecting alone takes longer than a GPU takes for some tokens.
        """
        points, curves = self._coarse
        curve = curves[common]
        left = (curve > budget + _ROUNDING).sum(-1, keepdim=True) - 1
        right = curve.shape[-1] - (curve < budget - _ROUNDING).sum(-1, keepdim=True)
        low, high, above, below = points[left], points[right], curve.gather(-1, left), curve.gather(-1, right)
        for share in _NARROWINGS:
            if _alike(low, high):
                break
            guess = low + (high - low) * ((above - budget) / (above - below))
            reach = (high - low) * share
            tried = torch.cat([torch.maximum(guess - reach, low), torch.minimum(guess + reach, high)], dim=-1)
            found = self._average_at(tried, common)
            over, under = found > budget + _ROUNDING, found < budget - _ROUNDING
            low = torch.where(over, tried, low).amax(-1, keepdim=True)
            above = torch.where(over, found, above).amin(-1, keepdim=True)
            high = torch.where(under, tried, high).amin(-1, keepdim=True)
            below = torch.where(under, found, below).amax(-1, keepdim=True)
        # At 0 fp32 tells more apart than bisecting ever does: there the whole range decides what is found.
        at_zero = (low <= 0) & (high >= 0)
        return torch.where(at_zero, points[0], low)[:, 0], torch.where(at_zero, points[-1], high)[:, 0]

    @cached_property
    def _coarse(self) -> tuple[Float[Tensor, " points"], tuple[Float[Tensor, "_ points"], Float[Tensor, "1 points"]]]:
        """Thresholds from below all scores to above them, and the averages there: of every linear, and of all."""
        ends = float(self._quantiles.min()) - 1, float(self._quantiles.max()) + 1
        points = torch.linspace(*ends, _COARSE_POINTS, dtype=torch.float64)
        per_linear = self._average_at(points[None], False)
        return points, (per_linear, (per_linear * self._weights[:, None]).sum(0, keepdim=True))

    def _average_at(self, thresholds: Float[Tensor, "n points"], common: bool) -> Float[Tensor, "_ points"]:
        """Average bits at some thresholds, one row for all linears or one for each."""
        per_linear = self._bits_at(thresholds.expand(self._quantiles.shape[0], -1))
        return (per_linear * self._weights[:, None]).sum(0, keepdim=True) if common else per_linear

    def _bits_at(self, thresholds: Float[Tensor, "linears points"]) -> Float[Tensor, "linears points"]:
        """Average bits of every linear on the calibration scores."""
        quantiles, last = self._quantiles, self._quantiles.shape[-1] - 1
        sought = thresholds[:, None].expand(-1, quantiles.shape[1], -1).contiguous()
        upper = torch.searchsorted(quantiles, sought, right=True)
        right = upper.clamp(1, last)
        left_value, right_value = quantiles.gather(-1, right - 1), quantiles.gather(-1, right)
        within = ((sought - left_value) / (right_value - left_value).clamp_min(1e-300)).clamp(0, 1)
        below = torch.where(upper > last, 1.0, (right - 1 + within) / last)
        below = torch.where(upper == 0, 0.0, below).transpose(1, 2)
        return self.config.bits(1) + ((1 - below) * self._slice_bits).sum(-1)

    def _translated(self, budget: float) -> float:
        """The budget to solve for so that `budget` is what a run spends."""
        least, most = float(self.config.bits(1)), float(self.config.total_bits)
        spent, asked = [least, *self._spent, most], [least, *self._asked, most]
        for i in range(1, len(spent)):
            if budget <= spent[i] and spent[i] > spent[i - 1]:
                part = (budget - spent[i - 1]) / (spent[i] - spent[i - 1])
                return asked[i - 1] + max(part, 0.0) * (asked[i] - asked[i - 1])
        return budget


def _alike(low: Tensor, high: Tensor) -> bool:
    """Whether fp32, the type of every threshold, tells them apart nowhere."""
    return torch.equal(low.float(), high.float())


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
