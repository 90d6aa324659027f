"""One token at a time through the captured step, with all that a trace keeps of it in one copy to the host.

The host draws the tokens out of the likeliest, so the step only predicts; its statistics are taken inside the same
graph. While it runs, the host is free. It knows no text and no budgets: a plan's thresholds are numbers to it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.decoder import Decoder, replayable
from mobiquant_core.kernels.step_launches import CANDIDATES
from mobiquant_core.kernels.step_statistics import prediction_statistics, residual_statistics
from mobiquant_core.routing import RoutingPlan, depths_above

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.step import Step


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
    largest: np.ndarray
    """float32 [candidates]: the largest logits, in falling order."""
    ids: np.ndarray
    """int32 [candidates]: whose they are; of equal logits the lowest id first."""
    log_total: float
    """Log of the sum of all logits' exponentials."""
    seconds: float
    """Of the device, while the host was free."""


class Session:
    """A step that records residuals, made to be used token by token."""

    def __init__(self, step: "Step", extra: int) -> None:
        buffers, shape = step.buffers, step.shape
        if buffers.residuals is None:
            raise KernelError("A session reads the residual stream. Make its step with record_residuals=True.")
        self.step, self._decoder, self._extra = step, Decoder(step), extra
        self._residuals, self._device = buffers.residuals, buffers.record.device
        sizes = (buffers.record.numel(), 4 * (shape.layers + 1), 1 + 2 * min(CANDIDATES, shape.vocabulary))
        self._report = torch.zeros(sum(sizes), device=self._device)
        self._host = torch.zeros(sum(sizes), pin_memory=self._on_gpu)
        self._parts = self._report.split(sizes)
        self._ends = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) if self._on_gpu else ()
        self._plan: RoutingPlan | None = None
        self._scores: np.ndarray | None = None
        self.position = 0
        self.broken = False
        """Whether the device failed under it; its buffers can then hold anything."""
        with torch.cuda.device_of(self._report):
            self.replay = replayable(self._run, (buffers.token, buffers.position))

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    @property
    def room(self) -> int:
        return self.step.room

    def begin(self, position: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Go on after `position` tokens, whose keys and values [kv_heads, positions, head_dim] a cache holds."""
        with self._running():
            self._decoder.begin(0, position, keys, values)
        self.position, self._plan = position, None

    def start(self, token: int, plan: RoutingPlan) -> None:
        """Run `token` under `plan`; `finish` waits for it. What was predicted before is gone."""
        if self.position >= self.room:
            raise KernelError(f"The decoder has room for {self.room:,} positions and they are full. Shorten the run.")
        with self._running():
            self._scores = self._decide(plan)
            self.step.buffers.token.fill_(token)
            self._mark(0)
            self.replay()
            self._host.copy_(self._report, non_blocking=True)
            self._mark(1)
        self.position += 1

    def finish(self) -> Measured:
        """What came of the token that was started last."""
        with self._running():
            if self._ends:
                self._ends[1].synchronize()
            seconds = self._ends[0].elapsed_time(self._ends[1]) / 1e3 if self._ends else 0.0
        return self._measured(self._host.numpy().copy(), seconds)

    def logits(self) -> Float[Tensor, " vocabulary"]:
        """The whole of the last prediction, float32 on the host."""
        with self._running():
            return self.step.buffers.logits.view(-1).float().cpu()

    def _mark(self, end: int) -> None:
        if self._ends:
            self._ends[end].record()

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
        found = self.step.forward()
        residual_statistics(self._residuals, residual.view(-1, 4))
        prediction_statistics(found, prediction)
        record.copy_(buffers.record.view(-1))
        buffers.position.add_(1)

    def _measured(self, report: np.ndarray, seconds: float) -> Measured:
        record, residual, prediction = np.split(report, np.cumsum([part.numel() for part in self._parts[:2]]))
        record, residual = record.reshape(-1, 4), residual.reshape(-1, 4)
        largest, ids = np.split(prediction[1:], 2)
        # The device may give equal logits in any order.
        order = np.lexsort((ids, -largest))
        return Measured(
            depths=record[:, 3].astype(np.uint8),
            scores=record[:, : self._extra] if self._scores is None else self._scores,
            residual_top3=residual[:, :3],
            residual_median=residual[:, 3],
            largest=largest[order],
            ids=ids[order].astype(np.int32),
            log_total=float(prediction[0]),
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
