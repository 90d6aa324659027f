"""Stage (b) of a full calibration: routers, ranges and shifts against the full-precision model's predictions.

Every window of a step runs at its own budget; gates are hard forward and soft backward, and a Lagrange multiplier
per window makes a common shift of all scores neutral. It knows nothing of blocks or files.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiquant_core.calibrate import strange_text
from mobiquant_core.calibrate.blockwise import parameter_groups, set_rates
from mobiquant_core.calibrate.divergence import kl_per_window
from mobiquant_core.calibrate.graphed import Replayed
from mobiquant_core.calibrate.marginal_gains import measure_marginal_scores
from mobiquant_core.calibrate.mlp import attach_routers
from mobiquant_core.calibrate.schedule import ThresholdSchedule, cosine_rate, draw_budgets, softness_at
from mobiquant_core.calibrate.student import FIXED_DEPTHS, FULL_PRECISION, GATED, Student

LONGEST = 10**9
RECENT = 50
"""Steps whose loss is averaged at the end."""


@dataclass(frozen=True)
class EndToEndSettings:
    """How long, how fast, over which budgets."""

    steps: int = 800
    windows_per_step: int = 16
    router_rate: float = 2e-3
    base_rate: float = 1e-2
    range_rate: float = 5e-3
    shift_rate: float = 2e-3
    gain_rate: float = 2e-3
    scale_rate: float = 1e-3
    rounding_rate: float = 0.0
    """Above zero, weights may also choose the nearer neighbour of their cell; in pivot cells per step."""
    base_share: float = 0.0
    """Above zero, so much of the run fits depth 1 alone; then base codes stay and the rest fits all depths and routers.
    A base slice that all depths share from the start falls well behind one fitted for itself."""
    spared_share: float = 0.0
    """Share of the windows of these first steps in which random tokens of every linear run at full precision: a base
    slice that only ever met itself is worth little beside finer slices."""
    rescored: int = 0
    """Windows on which routers are scored anew by measured divergences once base codes stay; 0: they keep scores."""
    settled_range_rate: float = 2e-3
    """`range_rate` once base codes stay."""
    highest_budget: float = 6.0
    fixed_every: int = 0
    """Above zero, each so many steps run one depth everywhere, every depth on its part of the windows: what a router
    never reads coarsely would otherwise be left useless at coarse depths."""
    fixed_first: float = 0.25
    """Share of the windows of such a step that run at depth 1; the others are spread evenly over the depths beyond."""
    crowding: float = 1.8
    """How much more densely routed windows visit scarce budgets than generous ones; 1: evenly."""
    lowest_windows: int = 1
    """Windows of a routed step that run at depth 1 everywhere."""
    exponent: float = 0.5
    """Windows are summed as KL ** exponent: below 1, so that generous budgets count beside scarce ones."""
    first_temperature: float = 1.0
    last_temperature: float = 0.3
    strange_windows: int = 1
    """Windows of a routed step that become each kind of strange text; twice as many give way to other text, where there
    is some: routers must stay sane on text of any kind."""
    seconds: float | None = None
    """A time limit instead of `steps`: the schedule follows the clock."""
    seed: int = 0


class EndToEnd:
    """One run of the optimisation; `step` is public so that a clock or a test can drive it.

    `other`: windows of text of another kind, for routed steps alone.
    """

    def __init__(
        self, student: Student, settings: EndToEndSettings, other: Int[Tensor, "windows tokens"] | None = None
    ) -> None:
        self.student, self.settings = student, settings
        self.other = None if other is None else other.cpu()
        self.device = student.linears[0].weight.device
        self.routed = student.config.depths > 1
        self.settled = not self.routed or settings.base_share == 0
        self._start_optimizer(settings)
        self.schedule = ThresholdSchedule(student.config, student.weights, self.device)
        self.budgets = torch.Generator().manual_seed(settings.seed)
        self.temperature = torch.tensor(settings.first_temperature, device=self.device)
        self.gradients = Replayed(self._compute_gradients)
        self.fixed_gradients = Replayed(lambda batch: self._compute_fixed_gradients(batch, settings.fixed_first))
        self.base_gradients = Replayed(self._compute_base_gradients)
        self.steps_done = 0

    def _start_optimizer(self, settings: EndToEndSettings) -> None:
        groups = parameter_groups(self.student.linears, settings)
        self.fitted = [parameter for group in groups for parameter in group["params"]]
        routers = [site.router for site in self.student.sites if site.router is not None]
        self.router_parameters = [parameter for router in routers for parameter in router.parameters()]
        if self.routed:
            # The offset of a whole linear must be able to travel several nats, so it moves faster than the rest.
            bases = {id(router.base) for router in routers}
            slow = [parameter for parameter in self.router_parameters if id(parameter) not in bases]
            groups.append({"params": slow, "peak": settings.router_rate})
            groups.append({"params": [router.base for router in routers], "peak": settings.base_rate})
        self.optimizer = torch.optim.Adam(groups, lr=1e-3, betas=(0.9, 0.98), fused=self.device.type == "cuda")

    def run(
        self,
        windows: Int[Tensor, "windows tokens"],
        progress: Callable[[str, float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> float:
        """All steps; returns the mean KL of the last ones. `should_stop` ends a run early."""
        order = torch.Generator().manual_seed(self.settings.seed)
        queue = torch.randperm(len(windows), generator=order)
        per_step, recent = min(self.settings.windows_per_step, len(windows)), []
        start, limit = time.monotonic(), self.settings.seconds
        for step in range(self.settings.steps if limit is None else LONGEST):
            if len(queue) < per_step:
                queue = torch.randperm(len(windows), generator=order)
            batch, queue = windows[queue[:per_step].to(windows.device)], queue[per_step:]
            share_done = step / self.settings.steps if limit is None else (time.monotonic() - start) / limit
            if share_done >= 1 or (should_stop is not None and should_stop()):
                break
            loss = self.step(batch.to(self.device), share_done)
            self.steps_done += 1
            recent = [*recent[-RECENT + 1 :], loss]
            if step % 20 == 0:
                # Reading the loss waits for the device, so the clock of a time limit stays honest.
                text = f"step {step}, KL {loss.mean().item():.4f}"
                if progress is not None:
                    progress(text, share_done)
        return float(torch.stack(recent).mean())

    def step(self, batch: Int[Tensor, "batch tokens"], share_done: float) -> Float[Tensor, " batch"]:
        """One optimisation step; returns the KL of every window."""
        share = self.settings.base_share if self.routed else 0.0
        if share_done < share:
            return self._base_step(batch, share_done / share)
        if not self.settled:
            self.settle(batch)
        share_done = (share_done - share) / (1 - share)
        first, last = self.settings.first_temperature, self.settings.last_temperature
        self.temperature.fill_(first + (last - first) * share_done)
        self._harden(share_done)
        if self._is_fixed():
            divergence, fitted = self.fixed_gradients(batch)
            return self._apply(divergence, fitted, [None] * len(self.router_parameters), share_done)
        thresholds = torch.zeros(len(batch), device=self.device)
        if self.routed:
            if self.schedule.table is None:
                self._first_thresholds(batch)
            drawn = draw_budgets(
                len(batch),
                self.student.config,
                self.settings.highest_budget,
                self.budgets,
                self.settings.crowding,
                self.settings.lowest_windows,
            )
            thresholds = self.schedule.at(drawn.to(self.device))
            batch = self._estranged(batch)
        divergence, scores, fitted, routed = self.gradients(batch, thresholds)
        if self.routed:
            self.schedule.update(scores)
        return self._apply(divergence, fitted, routed, share_done)

    def _base_step(self, batch: Int[Tensor, "batch tokens"], share_done: float) -> Float[Tensor, " batch"]:
        self._harden(share_done)
        divergence, fitted = self.base_gradients(batch)
        return self._apply(divergence, fitted, [None] * len(self.router_parameters), share_done)

    def settle(self, batch: Int[Tensor, "batch tokens"]) -> None:
        """Ends the stage of the base slice: its graph goes, the optimizer forgets its moments, and routers start
        again from what finer slices are now worth."""
        self.base_gradients, self.settled = Replayed(self._compute_base_gradients), True
        for linear in self.student.linears:
            linear.settle()
        if self.settings.rescored:
            attach_routers(self.student, measure_marginal_scores(self.student, batch[: self.settings.rescored]))
        self._start_optimizer(replace(self.settings, range_rate=self.settings.settled_range_rate))

    def _harden(self, share_done: float) -> None:
        if self.student.run.softness is not None:
            self.student.run.softness.fill_(softness_at(share_done))

    def _is_fixed(self) -> bool:
        """Whether this step runs one depth everywhere."""
        every = self.settings.fixed_every
        return self.routed and every > 0 and self.steps_done % every == every - 1

    def _apply(
        self, divergence: Tensor, fitted: Sequence[Tensor], routed: Sequence[Tensor | None], share_done: float
    ) -> Float[Tensor, " batch"]:
        for parameter, gradient in zip(self.fitted, fitted, strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(self.router_parameters, routed, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.router_parameters, 1.0)
        set_rates(self.optimizer, cosine_rate(share_done))
        self.optimizer.step()
        return divergence.clone()

    def _estranged(self, batch: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """Strange and other text in the place of some windows; those at both ends of the budgets stay."""
        count, draw = self.settings.strange_windows, self.budgets
        if count == 0 or len(batch) < 8 * count:
            return batch
        windows, vocabulary = batch.to("cpu", copy=True), self.student.model.config.vocab_size
        places = 1 + torch.randperm(len(batch) - 2, generator=draw)[: 4 * count].view(4, count)
        for place in places[0]:
            windows[place] = strange_text.with_replaced(windows[place], vocabulary, draw)
        for place in places[1]:
            windows[place] = strange_text.enciphered(windows[place], draw)
        if self.other is not None:
            windows[places[2:].flatten()] = self.other[torch.randint(len(self.other), (2 * count,), generator=draw)]
        return windows.to(batch.device)

    def _compute_gradients(
        self, batch: Tensor, thresholds: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(KL per window, all scores, gradients of what is fitted, gradients of the routers)."""
        run, backbone = self.student.run, self.student.backbone
        wanted = self._teach(batch)
        run.mode = GATED if self.routed else FIXED_DEPTHS
        run.thresholds, run.temperature = thresholds, self.temperature
        run.scores.clear()
        divergence = kl_per_window(wanted, backbone.logits(batch))
        objective = self._objective(divergence)
        scores = [run.scores[index] for index in sorted(run.scores)]
        gradients = torch.autograd.grad(objective, [*self.fitted, *scores])
        fitted, by_score = gradients[: len(self.fitted)], gradients[len(self.fitted) :]
        if not self.routed:
            return divergence.detach(), batch, fitted, ()
        stacked = torch.stack([score.detach() for score in scores])
        corrected = self._budget_neutral(torch.stack(list(by_score)), stacked, thresholds)
        routed = torch.autograd.grad(scores, self.router_parameters, list(corrected))
        run.scores.clear()
        return divergence.detach(), stacked, fitted, routed

    def _compute_base_gradients(self, batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        spared = round(len(batch) * self.settings.spared_share)
        places = torch.arange(spared, device=batch.device) + torch.rand(spared, device=batch.device)
        return self._compute_parts(batch, (len(batch),), places / spared if spared else None)

    def _compute_fixed_gradients(self, batch: Tensor, first: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self._compute_parts(batch, parts_of(len(batch), self.student.config.depths, first))

    def _compute_parts(
        self, batch: Tensor, parts: tuple[int, ...], spared: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(KL per window, gradients of what is fitted): each part of the windows runs at its depth everywhere."""
        wanted = self._teach(batch)
        with self.student.run.at_fixed_depths(parts, spared):
            divergence = kl_per_window(wanted, self.student.backbone.logits(batch))
        return divergence.detach(), torch.autograd.grad(self._objective(divergence), self.fitted)

    @torch.no_grad()
    def _teach(self, batch: Tensor) -> Float[Tensor, "batch tokens vocabulary"]:
        """Log-probabilities at full precision."""
        self.student.run.mode = FULL_PRECISION
        return self.student.backbone.logits(batch).log_softmax(-1)

    def _objective(self, divergence: Tensor) -> Tensor:
        return divergence.clamp_min(1e-6).pow(self.settings.exponent).mean()

    def _budget_neutral(self, gradient: Tensor, scores: Tensor, thresholds: Tensor) -> Tensor:
        """Adds lambda x d bits / d score per window, lambda such that raising all scores alike changes nothing."""
        soft = torch.sigmoid((scores - thresholds.view(1, -1, 1, 1)) / self.temperature)
        bits = soft * (1 - soft) * self.schedule.share.view(-1, 1, 1, 1) * self.schedule.gain
        price = gradient.sum((0, 2, 3)) / bits.sum((0, 2, 3)).clamp_min(1e-12)
        return gradient - price.view(1, -1, 1, 1) * bits

    @torch.no_grad()
    def _first_thresholds(self, batch: Tensor) -> None:
        """Scores of one gated pass at middling thresholds start the table."""
        run = self.student.run
        run.mode, run.temperature, run.thresholds = GATED, self.temperature, torch.zeros(len(batch), device=self.device)
        run.scores.clear()
        self.student.backbone.logits(batch)
        self.schedule.update(torch.stack([run.scores[index] for index in sorted(run.scores)]))
        run.scores.clear()


def parts_of(windows: int, depths: int, first: float) -> tuple[int, ...]:
    """Windows of every depth: a share for the first, the others as even as they can be, coarse ones favoured.

    Depths beyond the first are left out where they get none.
    """
    rest = windows - round(windows * first)
    if rest == 0:
        return (windows,)
    beyond = [rest // (depths - 1) + (place < rest % (depths - 1)) for place in range(depths - 1)]
    return windows - rest, *beyond
