"""Runs a student under any policy and threshold table: dense products, thousands of tokens at once.

The same scores, thresholds and depths as the quantized model's routing passes; only the arithmetic is batched
differently. It knows no text and no training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mobiquant_core.budget import BudgetController, ThresholdTable
from mobiquant_core.calibrate.student import CHOSEN, FULL_PRECISION, FitLinear, Student
from mobiquant_core.policies import Policy
from mobiquant_core.routing import RuntimeSite, reader


class PolicyPass:
    """Chooses depths for a whole forward pass and counts the bits they cost."""

    def __init__(self, student: Student, policy: Policy, thresholds: Float[Tensor, " linears"]) -> None:
        self.policy, self.bits = policy, torch.tensor(student.config.bits_by_depth, dtype=torch.float32)
        self.thresholds = thresholds
        self.share = (student.weights / student.weights.sum()).tolist()
        self.sites = runtime_sites(student)
        self.spent: Tensor | float = 0.0
        self.scores: dict[int, Tensor] = {}
        self._positions: Tensor | None = None
        self._everywhere: Tensor | None = None

    def __call__(self, linear: FitLinear, x: Float[Tensor, "batch tokens in_features"]) -> Int[Tensor, "batch tokens"]:
        limit = self.thresholds[linear.index]
        if self.policy.reads_input:
            site = reader(self.policy, self.sites[linear.index])  # pyright: ignore[reportArgumentType]
            if linear.index == site.first:
                scored = self.policy.scores(site, x.flatten(0, 1))  # pyright: ignore[reportAttributeAccessIssue]
                for head in range(scored.shape[1]):
                    self.scores[site.first + head] = scored[:, head]
            scores = self.scores[linear.index]
        else:
            scores = self._position_scores(x)[:, linear.index]
        depths = 1 + (scores > limit).sum(-1)
        self.spent = self.spent + self.bits.to(x.device)[depths - 1].mean() * self.share[linear.index]
        return depths.view(x.shape[:2])

    def _position_scores(self, x: Tensor) -> Tensor:
        if self._everywhere is None:
            positions = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0])
            self._everywhere = self.policy.position_scores(positions)  # pyright: ignore[reportAttributeAccessIssue]
        return self._everywhere


class Thresholds:
    """A threshold table as a quick lookup: the controller asks for another budget at every chunk."""

    def __init__(self, table: ThresholdTable, device: torch.device) -> None:
        self.table, self.device = table, device
        self.grid = table.budget_grid.to(torch.float32)
        values = table.global_thresholds.float()
        # The two ends are infinite; between them and their neighbours the nearest finite value stands in.
        self.values = values.clone()
        self.values[0], self.values[-1] = values[1], values[-2]

    def at(self, budget: float) -> Float[Tensor, " linears"]:
        linears = self.table._quantiles.shape[0]
        if budget <= self.grid[0] or budget >= self.grid[-1]:
            return self.table.at(budget).to(self.device)
        place = (budget - self.grid[0]) / (self.grid[1] - self.grid[0])
        left = min(int(place), len(self.grid) - 2)
        value = torch.lerp(self.values[left], self.values[left + 1], float(place - left))
        return value.expand(linears).to(self.device)


def runtime_sites(student: Student) -> list[RuntimeSite]:
    """One entry per linear, in the form that policies read."""
    sites: list[RuntimeSite] = []
    for site in student.sites:
        count = len(site.site.projections)
        linears = tuple(student.linears[site.first_index : site.first_index + count])
        leader = None if site.leader is None else sites[site.leader.first_index]
        runtime = RuntimeSite(site.layer, site.site.name, linears, site.router, leader)  # pyright: ignore[reportArgumentType]
        sites += [runtime] * count
    return sites


@torch.no_grad()
def policy_losses(
    student: Student,
    windows: Int[Tensor, "windows tokens"],
    policy: Policy,
    thresholds: Thresholds,
    budget: float,
    batch: int = 16,
    correct: bool = True,
) -> tuple[float, float]:
    """(mean loss of predicted tokens, measured bits) of a policy at a budget, windows in order."""
    controller = BudgetController(budget, student.config)
    total, spent = 0.0, 0.0
    for part in windows.split(batch):
        run = PolicyPass(student, policy, thresholds.at(controller.effective if correct else budget))
        student.run.mode, student.run.choose = CHOSEN, run
        total += float(_loss(student, part)) * len(part)
        spent += float(run.spent) * len(part)
        controller.observe(float(run.spent), part.numel())
    return total / len(windows), spent / len(windows)


@torch.no_grad()
def reference_loss(student: Student, windows: Int[Tensor, "windows tokens"], batch: int = 16) -> float:
    """Mean loss of predicted tokens at full precision."""
    student.run.mode = FULL_PRECISION
    return sum(float(_loss(student, part)) * len(part) for part in windows.split(batch)) / len(windows)


@torch.no_grad()
def depth_losses(
    student: Student, windows: Int[Tensor, "windows tokens"], depths: Sequence[int], batch: int = 16
) -> list[float]:
    """Mean loss with every linear at one depth, for several depths."""
    student.run.mode = CHOSEN
    losses = []
    for depth in depths:
        student.run.choose = lambda _, x, depth=depth: torch.full(x.shape[:2], depth, device=x.device)
        losses.append(sum(float(_loss(student, part)) * len(part) for part in windows.split(batch)) / len(windows))
    return losses


def _loss(student: Student, windows: Tensor) -> Tensor:
    logits = student.backbone.logits(windows)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
