"""One token at a time through the captured step, with all that a trace keeps of it in one copy to the host.

The host draws the tokens, so the step only predicts; its statistics are taken inside the same graph. It knows no text
and no budgets: a plan's thresholds are numbers to it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.decoder import Decoder, replayable
from mobiquant_core.kernels.step_statistics import LogitStatistics, residual_statistics
from mobiquant_core.recording import TOP
from mobiquant_core.routing import RoutingPlan, depths_above

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.step import Step


@dataclass(frozen=True)
class Measured:
    """What one token's pass decided and predicted. Its arrays are copies, but for `logits`."""

    depths: np.ndarray
    """uint8 [linears]."""
    scores: np.ndarray
    """float32 [linears, extra]: the policy's."""
    residual_top3: np.ndarray
    """float32 [layers + 1, 3]."""
    residual_median: np.ndarray
    """float32 [layers + 1]."""
    top_ids: np.ndarray
    """int32 [5]."""
    top_probabilities: np.ndarray
    """float32 [5]."""
    logits: Float[Tensor, " vocabulary"]
    """float32 on the host; the next token overwrites it."""
    log_total: float
    """Log of the sum of the logits' exponentials."""


class Session:
    """A step that records residuals, made to be used token by token."""

    def __init__(self, step: "Step", extra: int) -> None:
        buffers, shape = step.buffers, step.shape
        if buffers.residuals is None:
            raise KernelError("A session reads the residual stream. Make its step with record_residuals=True.")
        self.step, self._decoder, self._extra = step, Decoder(step), extra
        self._residuals, self._device = buffers.residuals, buffers.record.device
        self._statistics = LogitStatistics(shape.vocabulary, min(TOP, shape.vocabulary), self._device)
        sizes = (buffers.record.numel(), 4 * (shape.layers + 1), self._statistics.numbers, shape.vocabulary)
        self._report = torch.zeros(sum(sizes), device=self._device)
        self._host = torch.zeros(sum(sizes), pin_memory=self._device.type == "cuda")
        self._parts, self._read = self._report.split(sizes), self._host.split(sizes)
        self._plan: RoutingPlan | None = None
        self.position = 0
        self.broken = False
        """Whether the device failed under it; its buffers can then hold anything."""
        with torch.cuda.device_of(self._report):
            self.replay = replayable(self._run, (buffers.token, buffers.position))

    @property
    def room(self) -> int:
        return self.step.room

    def begin(self, position: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Go on after `position` tokens, whose keys and values [kv_heads, positions, head_dim] a cache holds."""
        with self._running():
            self._decoder.begin(0, position, keys, values)
        self.position, self._plan = position, None

    def process(self, token: int, plan: RoutingPlan, meanwhile: Callable[[], Any]) -> Measured:
        """Run `token` under `plan`; `meanwhile` is called while the device works."""
        if self.position >= self.room:
            raise KernelError(f"The decoder has room for {self.room:,} positions and they are full. Shorten the run.")
        with self._running():
            scores = self._decide(plan)
            self.step.buffers.token.fill_(token)
            self.replay()
            self._host.copy_(self._report, non_blocking=True)
            meanwhile()
            if self._device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        self.position += 1
        return self._measured(scores)

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
        record, residual, prediction, logits = self._parts
        buffers = self.step.buffers
        found = self.step.forward()
        residual_statistics(self._residuals, residual.view(-1, 4))
        self._statistics.take(found, logits, prediction)
        record.copy_(buffers.record.view(-1))
        buffers.position.add_(1)

    def _measured(self, scores: np.ndarray | None) -> Measured:
        record, residual, prediction = (part.numpy() for part in self._read[:3])
        record, residual, top = record.reshape(-1, 4), residual.reshape(-1, 4), self._statistics.top
        return Measured(
            depths=record[:, 3].astype(np.uint8),
            scores=record[:, : self._extra].copy() if scores is None else scores,
            residual_top3=residual[:, :3].copy(),
            residual_median=residual[:, 3].copy(),
            top_ids=prediction[1 + top :].astype(np.int32),
            top_probabilities=np.exp(prediction[1 : 1 + top] - prediction[0]),
            logits=self._read[-1],
            log_total=float(prediction[0]),
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
