"""The captured step token after token, with all that a trace keeps of each in one copy to the host.

The device draws the tokens itself, so a token can be started before the host has read the one before it. It knows no
text and no budgets: a plan's thresholds are numbers to it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.decode import Sampling
from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.decoder import Decoder, replayable
from mobiquant_core.kernels.likeliest import HEAD
from mobiquant_core.kernels.step_statistics import residual_statistics
from mobiquant_core.routing import RoutingPlan, depths_above

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.step import Step


MOST_UNDER_WAY = 2
"""Tokens that the device has before it: one that it works at, and the next."""


@dataclass(frozen=True)
class Measured:
    """What one token's pass decided and predicted, as copies."""

    depths: np.ndarray
    """uint8 [linears]."""
    scores: np.ndarray
    """float32 [linears, extra]: the policy's."""
    residual_top3: np.ndarray
    """float32 [layers + 1, 3]."""
    residual_median: np.ndarray
    """float32 [layers + 1]."""
    log_total: float
    """Log of the sum of all logits' exponentials."""
    next_token: int
    largest: np.ndarray
    """float32 [candidates]: the largest logits, in falling order."""
    ids: np.ndarray
    """int32 [candidates]: whose they are; of equal logits the lowest id first."""
    seconds: float
    """Of the device, from the start of this token, or from the end of the one before it."""


@dataclass
class _Slot:
    """Where the host finds a token's report, and when the device began and ended with it."""

    report: Float[Tensor, " numbers"]
    ends: tuple[torch.cuda.Event, ...]
    scores: np.ndarray | None = None

    @classmethod
    def empty(cls, numbers: int, on_gpu: bool) -> "_Slot":
        ends = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) if on_gpu else ()
        return cls(torch.zeros(numbers, pin_memory=on_gpu), ends)

    def mark(self, end: int) -> None:
        if self.ends:
            self.ends[end].record()

    def wait(self) -> float:
        """Seconds between the ends; 0 where the host did the work."""
        if not self.ends:
            return 0.0
        self.ends[1].synchronize()
        return self.ends[0].elapsed_time(self.ends[1]) / 1e3


class Session:
    """A step that records residuals, made to be used token by token."""

    def __init__(self, step: "Step", extra: int) -> None:
        buffers, shape = step.buffers, step.shape
        if buffers.residuals is None:
            raise KernelError("A session reads the residual stream. Make its step with record_residuals=True.")
        self.step, self._decoder, self._extra = step, Decoder(step), extra
        self._residuals, self._device = buffers.residuals, buffers.record.device
        self._sizes = [buffers.record.numel(), 4 * (shape.layers + 1), buffers.prediction.numel()]
        self._report = torch.zeros(sum(self._sizes), device=self._device)
        self._parts = self._report.split(self._sizes)
        on_gpu = self._device.type == "cuda"
        self._slots = tuple(_Slot.empty(self._report.numel(), on_gpu) for _ in range(MOST_UNDER_WAY))
        self._started = self._finished = 0
        self._plan: RoutingPlan | None = None
        self.position = 0
        self.broken = False
        """Whether the device failed under it; its buffers can then hold anything."""
        with torch.cuda.device_of(self._report):
            self.replay = replayable(self._run, (buffers.token, buffers.position))

    @property
    def room(self) -> int:
        return self.step.room

    def begin(
        self, token: int, position: int, keys: Sequence[Tensor], values: Sequence[Tensor], sampling: Sampling
    ) -> None:
        """Go on with `token` after `position` others, whose keys and values [kv_heads, positions, head_dim] a cache
        holds; the first number of `sampling` decides what follows it."""
        with self._running():
            self._decoder.begin(token, position, keys, values)
            self._decoder.set_sampling(sampling, position)
        self.position, self._plan = position, None
        # What a run before this one left under way is nobody's.
        self._finished = self._started

    def start(self, plan: RoutingPlan) -> None:
        """Run the next token under `plan`: nothing is waited for, and `finish` tells what came of it."""
        if self.position >= self.room:
            raise KernelError(f"The decoder has room for {self.room:,} positions and they are full. Shorten the run.")
        if self._started - self._finished >= MOST_UNDER_WAY:
            raise KernelError(f"{MOST_UNDER_WAY} tokens are under way, which is the most. Finish one first.")
        slot = self._slots[self._started % MOST_UNDER_WAY]
        with self._running():
            slot.scores = self._decide(plan)
            slot.mark(0)
            self.replay()
            slot.report.copy_(self._report, non_blocking=True)
            slot.mark(1)
        self._started += 1
        self.position += 1

    def finish(self) -> Measured:
        """What came of the token that was started first of those under way."""
        slot = self._slots[self._finished % MOST_UNDER_WAY]
        with self._running():
            seconds = slot.wait()
        self._finished += 1
        return self._measured(slot.report.clone(), slot.scores, seconds)

    def _decide(self, plan: RoutingPlan) -> np.ndarray | None:
        """Tell the step the plan's thresholds, or the depths of this position; the scores where they are not read."""
        if plan.policy.reads_input:
            if plan is not self._plan:
                self._decoder.set_budget(plan.thresholds)
                self._plan = plan
            return None
        scores = plan.policy.position_scores(torch.tensor([self.position]))  # type: ignore[union-attr]
        self._decoder.set_budget(plan.thresholds, depths_above(scores, plan.thresholds.cpu())[0])
        return scores[0].float().numpy()

    def _run(self) -> None:
        """One token: what a GPU captures."""
        record, residual, prediction = self._parts
        buffers = self.step.buffers
        self.step.run()
        residual_statistics(self._residuals, residual.view(-1, 4))
        record.copy_(buffers.record.view(-1))
        prediction.copy_(buffers.prediction)

    def _measured(self, report: Tensor, scores: np.ndarray | None, seconds: float) -> Measured:
        record, residual, prediction = (part.numpy() for part in report.split(self._sizes))
        record, residual = record.reshape(-1, 4), residual.reshape(-1, 4)
        largest, ids = prediction[HEAD.value :].reshape(2, -1)
        return Measured(
            depths=record[:, 3].astype(np.uint8),
            scores=record[:, : self._extra] if scores is None else scores,
            residual_top3=residual[:, :3],
            residual_median=residual[:, 3],
            log_total=float(prediction[0]),
            next_token=int(prediction[1]),
            largest=largest,
            ids=ids.astype(np.int32),
            seconds=seconds,
        )

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Work on the model's GPU, which need not be the current one; what fails there is one line."""
        try:
            with torch.cuda.device_of(self._report):
                yield
        except RuntimeError as error:
            self.broken = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise KernelError(
                f"The fast decode step failed: {reason}. Generate again; if that fails as well, load the model again."
            ) from error
