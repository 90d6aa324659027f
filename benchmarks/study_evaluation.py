"""Everything the calibration study measures about one fitted student. It fits nothing."""

import math
from dataclasses import asdict

import torch
from torch import Tensor

from mobiquant_core.budget import ThresholdTable
from mobiquant_core.calibrate.fake_quant import leaning_residue
from mobiquant_core.calibrate.student import CHOSEN, FULL_PRECISION, FitLinear, Student
from mobiquant_core.calibrate.student_policies import (
    PolicyPass,
    Thresholds,
    depth_losses,
    policy_losses,
    reference_loss,
)
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.policies import (
    LayerPolicy,
    NormPolicy,
    OraclePolicy,
    Policy,
    RandomPolicy,
    RouterPolicy,
    UniformPolicy,
    layer_quantiles,
    unit_quantiles,
)
from mobiquant_core.rounding import choose_codes
from mobiquant_core.slicing import group_columns, positions, round_range
from mobiquant_core.tasks import Request, score_task

BATCH = 32
"""Windows of an evaluation pass."""


class PolicyBook:
    """The policies of one fitted student with their threshold lookups, each made once."""

    def __init__(self, student: Student, found: Calibration, sample: Tensor) -> None:
        self.student, self.found, self.sample = student, found, sample
        self._made: dict[str, tuple[Policy, Thresholds]] = {}

    def get(self, name: str) -> tuple[Policy, Thresholds]:
        if name not in self._made:
            self._made[name] = _make_policy(self.student, self.found, name, self.sample)
        return self._made[name]


def _make_policy(student: Student, found: Calibration, name: str, sample: Tensor) -> tuple[Policy, Thresholds]:
    """A policy of a fitted student with its threshold lookup."""
    device = student.linears[0].weight.device
    linears, extra = len(student.linears), student.config.depths - 1
    assert found.layer_scores is not None and found.norm_quantiles is not None and found.sensitivity is not None
    spent: dict = {}
    if name == "router":
        policy: Policy = RouterPolicy()
        quantiles, spent = found.score_quantiles["router"], found.spent_bits["router"]
    elif name == "layer":
        policy, quantiles = LayerPolicy(found.layer_scores.to(device)), layer_quantiles(found.layer_scores)
    elif name == "norm":
        policy, quantiles = NormPolicy(found.norm_quantiles.to(device), extra), unit_quantiles(linears, extra)
    elif name == "oracle":
        policy = OraclePolicy(found.sensitivity, tuple(linear.weight for linear in student.linears))
        quantiles = _sampled_quantiles(student, policy, sample)
    else:
        kind = {"uniform": UniformPolicy, "random": RandomPolicy}[name]
        policy, quantiles = kind(linears, extra), unit_quantiles(linears, extra)
    table = ThresholdTable(quantiles, [int(n) for n in student.weights.tolist()], student.config, **spent)
    return policy, Thresholds(table, device)


@torch.no_grad()
def _sampled_quantiles(student: Student, policy: Policy, sample: Tensor) -> Tensor:
    """Score quantiles of a policy at full depth, for policies whose scores the artefact does not hold."""
    everything = torch.full((len(student.linears),), -math.inf, device=sample.device)
    run = PolicyPass(student, policy, everything)
    student.run.mode, student.run.choose = CHOSEN, run
    student.backbone.logits(sample)
    scores = torch.stack([run.scores[index] for index in sorted(run.scores)]).transpose(1, 2)
    ordered = scores.float().sort(-1).values
    places = torch.linspace(0, ordered.shape[-1] - 1, 257, device=sample.device).round().long()
    return ordered[..., places].cpu()


def policy_rows(
    student: Student,
    book: PolicyBook,
    windows: Tensor,
    policies: dict[str, tuple[float, ...]],
    batch: int,
) -> list[dict]:
    """One row per policy and budget: measured bits, perplexity, ratio to full precision. Stacks must be frozen."""
    reference = reference_loss(student, windows, batch)
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    rows = [{"policy": "full precision", "bits": 16.0, "measured_bits": 16.0, "perplexity": math.exp(reference)}]
    for depth, loss in enumerate(depth_losses(student, windows, range(1, student.config.depths + 1), batch), 1):
        bits = float(student.config.bits(depth))
        rows.append({"policy": "fixed depth", "bits": bits, "measured_bits": bits, "perplexity": math.exp(loss)})
    for name, budgets in policies.items():
        policy, thresholds = book.get(name)
        for bits in budgets:
            loss, spent = policy_losses(student, windows, policy, thresholds, bits, batch)
            rows.append({"policy": name, "bits": bits, "measured_bits": spent, "perplexity": math.exp(loss)})
    return [row | {"ratio": row["perplexity"] / math.exp(reference), "tokens": tokens} for row in rows]


def task_rows(student: Student, book: PolicyBook, requests: dict[str, tuple[list[dict], list[Request]]]) -> list[dict]:
    """Task scores at full precision and through the router at several budgets."""
    device = student.linears[0].weight.device
    policy, thresholds = book.get("router")
    rows = []
    for bits in (16.0, 2.5, 3.0, 4.0, 6.0):

        def logits(ids: Tensor, bits: float = bits) -> Tensor:
            if bits == 16.0:
                student.run.mode = FULL_PRECISION
            else:
                student.run.mode = CHOSEN
                student.run.choose = PolicyPass(student, policy, thresholds.at(bits))
            with torch.no_grad():
                return student.backbone.logits(ids)

        for task, (items, asked) in requests.items():
            score = score_task(task, items, asked, logits, str(device))
            rows.append({"bits": bits, "policy": "full precision" if bits == 16.0 else "router", **asdict(score)})
    return rows


class OutlierTokensStay:
    """Runs the finer of two depths except for the tokens whose relative error at the coarser is largest."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, linear: FitLinear, x: Tensor) -> Tensor:
        exact = torch.nn.functional.linear(x, linear.weight)
        scaled = x if linear.site.log_scale is None else x * (-linear.site.log_scale).exp()
        coarse = torch.nn.functional.linear(scaled, linear.dense(1, x.dtype))
        error = (coarse - exact).square().sum(-1) / exact.square().sum(-1).clamp_min(1e-12)
        limit = torch.quantile(error[:, 1:].float(), 1 - self.share, dim=1, keepdim=True)
        return torch.where(error >= limit, 1, 2)


@torch.no_grad()
def run_three_at_four(linear: FitLinear, fitted: dict[str, Tensor]) -> None:
    """Gives a linear of slices (3, 1) what was fitted at 3 bits alone; the fourth bit only refines the chosen cells."""
    three = MobiQuantConfig((3,))
    linear.ranges.below.copy_(fitted[f"{linear.index}.below"])
    linear.ranges.above.copy_(fitted[f"{linear.index}.above"])
    if linear.site.log_scale is not None:
        linear.site.log_scale.copy_(fitted[f"{linear.site.first_index}.log_scale"])
    linear.free_depths.fill_(1.0)
    linear.shift.copy_(fitted[f"{linear.index}.shift"].expand_as(linear.shift))
    bottom, top = (bound.half().float() for bound in linear.ranges())
    edge, step = round_range(bottom, top, three)
    cells = positions(group_columns(linear.scaled_weight(), three), edge, step, three)
    lean = fitted.get(f"{linear.index}.lean")
    code = cells.floor().clamp(0, 7)
    if lean is not None:
        code = choose_codes(cells, leaning_residue(cells, lean, three), 2, three)
    finer = (cells * 2).floor().maximum(code * 2).minimum(code * 2 + 1)
    low, width = edge.float().unsqueeze(-1), step.float().unsqueeze(-1)
    stack = torch.stack([low + width * (code + 0.5), low + width * (finer + 0.5) / 2])
    gain = 1 + fitted[f"{linear.index}.readout"]
    linear.frozen_stack = stack.flatten(2)[:, :, : linear.in_features] * gain.unsqueeze(-1)


@torch.no_grad()
def loss_under(student: Student, choose, windows: Tensor, batch: int) -> float:
    """Mean loss with depths chosen by a function of linear and input."""
    total = 0.0
    for part in windows.split(batch):
        student.run.mode, student.run.choose = CHOSEN, choose
        logits = student.backbone.logits(part)[:, :-1]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())) * len(part)
    return total / len(windows)


def print_rows(title: str, rows: list[dict], write) -> None:
    """A compact table: policy, then ratio@measured for each budget."""
    write(f"== {title}\n")
    by_policy: dict[str, list[str]] = {}
    for row in rows:
        cell = f"{row['bits']:g}: {row['ratio']:.4f}@{row['measured_bits']:.2f}"
        by_policy.setdefault(row["policy"], []).append(cell)
    for policy, cells in by_policy.items():
        write(f"{policy:16s} {'  '.join(cells)}\n")
