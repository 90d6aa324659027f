"""From a fitted student to the calibration artefact: parameters, score quantiles, and what budgets really spend.

Quantiles are taken while windows run at all sorts of budgets, as they will in use. It fits nothing.
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiquant_core.budget import QUANTILES, ThresholdTable
from mobiquant_core.calibrate.local_gains import measure_sensitivity
from mobiquant_core.calibrate.schedule import ThresholdSchedule, draw_budgets
from mobiquant_core.calibrate.student import GATED, FitLinear, FitSite, Student, learnt_rounding
from mobiquant_core.calibrate.student_policies import Thresholds, policy_losses
from mobiquant_core.calibration import Calibration
from mobiquant_core.policies import RouterPolicy

ASKED = (2.25, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0)
"""Budgets at which the real spending is measured."""
ROUNDS = 3


def student_calibration(student: Student, windows: Int[Tensor, "windows tokens"]) -> Calibration:
    """The artefact of a fitted student, measured on `windows`."""
    found = Calibration(config=student.config)
    with torch.no_grad():
        found.ranges = {}
        for linear in student.linears:
            low, high = linear.ranges()
            found.ranges[student.name_of(linear)] = (low.half().cpu(), high.half().cpu())
        shifted = {student.name_of(linear): linear.output_shift().cpu() for linear in student.linears}
        found.shifts = shifted if any(bool(shift.any()) for shift in shifted.values()) else None
        gained = {student.name_of(linear): linear.gain().cpu() for linear in student.linears}
        found.gains = gained if any(bool((gain != 1).any()) for gain in gained.values()) else None
        choices = {student.name_of(linear): learnt_rounding(linear) for linear in student.linears}
        found.rounding = {name: bits.cpu() for name, bits in choices.items() if bits is not None} or None
        scaled = {_site_name(site): site.log_scale.exp().cpu() for site in student.sites if site.log_scale is not None}
        found.input_scales = scaled or None
    if student.config.depths > 1:
        student.freeze()
        _measure_policies(student, windows, found)
        student.thaw()
    return found


def _measure_policies(student: Student, windows: Tensor, found: Calibration) -> None:
    found.sensitivity = measure_sensitivity(student, windows).cpu()
    found.router_kind = "mlp"
    for site in student.sites:
        if site.router is None:
            continue
        state = site.router.state_dict()
        found.routers |= {f"{_site_name(site)}.{name}": value.half().cpu() for name, value in state.items()}
        # What is measured below is what will run: the stored fp16 parameters.
        site.router.load_state_dict({name: value.half().float() for name, value in state.items()})
    quantiles, norms = _collect(student, windows)
    found.score_quantiles["router"], found.norm_quantiles = quantiles, norms
    # A rival that spends as the router does, but blind to tokens: what the router says of each linear on average.
    found.layer_scores = quantiles.mean(-1)
    found.spent_bits["router"] = _spending(student, windows, quantiles)


@torch.no_grad()
def _collect(student: Student, windows: Tensor) -> tuple[Float[Tensor, "linears extra quantiles"], Tensor]:
    """Quantiles of scores and of input norms over windows that run at mixed budgets."""
    norms: dict[int, Tensor] = {}

    def note_norm(linear: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norms[cast(FitLinear, linear).index] = torch.linalg.vector_norm(inputs[0].float(), dim=-1)

    run, schedule = student.run, ThresholdSchedule(student.config, student.weights, windows.device)
    generator = torch.Generator().manual_seed(0)
    budgets = draw_budgets(len(windows), student.config, 6.0, generator).to(windows.device)
    run.mode, run.temperature = GATED, 1.0
    hooks = [linear.register_forward_pre_hook(note_norm) for linear in student.linears]
    try:
        thresholds = torch.zeros(len(windows), device=windows.device)
        for _ in range(ROUNDS):
            scores, lengths = [], []
            for part, limit in zip(windows.split(8), thresholds.split(8), strict=True):
                run.scores.clear()
                run.thresholds = limit
                student.backbone.logits(part)
                scores.append(torch.stack([run.scores[index] for index in sorted(run.scores)]))
                lengths.append(torch.stack([norms[index] for index in sorted(norms)]))
            every = torch.cat(scores, dim=1)
            schedule.update(every, keep=0.0)
            thresholds = schedule.at(budgets)
    finally:
        run.scores.clear()
        for hook in hooks:
            hook.remove()
    flat = every.flatten(1, 2).transpose(1, 2)
    return _quantiles(flat).cpu(), _quantiles(torch.cat(lengths, dim=1).flatten(1)).cpu()


def _quantiles(values: Float[Tensor, "*rows samples"]) -> Float[Tensor, "*rows quantiles"]:
    ordered = values.float().sort(dim=-1).values
    places = torch.linspace(0, ordered.shape[-1] - 1, QUANTILES, device=values.device).round().long()
    return ordered[..., places]


def _spending(student: Student, windows: Tensor, quantiles: Tensor) -> dict[str, list[float]]:
    """What the table's budgets really cost, uncorrected."""
    table = ThresholdTable(quantiles, [int(n) for n in student.weights.tolist()], student.config)
    thresholds = Thresholds(table, windows.device)
    asked = [bits for bits in ASKED if student.config.bits(1) < bits < student.config.total_bits]
    spent = [
        policy_losses(student, windows, RouterPolicy(), thresholds, bits, batch=8, correct=False)[1] for bits in asked
    ]
    return {"asked": asked, "spent": spent}


def _site_name(site: FitSite) -> str:
    return f"layers.{site.layer}.{site.site.name}"
