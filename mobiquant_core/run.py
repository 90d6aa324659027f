"""One sequence under way in a quantized model: processes further tokens of it and makes their columns.

Tokens go through the model's modules, or through a captured step where the run was lent one; that draws the tokens as
well, and works at the next while the columns of the last are made. It chooses no budgets.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.analysis import ErrorProbe, ProbedPass
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.decode import DecodeState, Sampling, decode_one_token, not_finite, prefill, sample
from mobiquant_core.errors import PromptError
from mobiquant_core.recording import TOP, ResidualRecorder, recording, token_losses, top_predictions
from mobiquant_core.routing import Recorder, RoutingPlan
from mobiquant_core.token_text import TextStream, TokenTexts
from mobiquant_core.trace import Columns, average_bits

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.session import Measured, Session


@dataclass(frozen=True)
class Decoded:
    """A token that was drawn and processed after the prompt."""

    columns: Columns
    seconds: float
    """Of a device while the host was free; 0 where the host waited."""


class Run:
    """What was processed so far: `position` tokens at `bits` on average, and the prediction after the last one."""

    def __init__(self, quantized: QuantizedModel, texts: TokenTexts, session: "Session | None" = None) -> None:
        self.quantized, self.session = quantized, session
        self.state = DecodeState()
        self.previous: Tensor | None = None
        self.bits = 0.0
        self._texts, self._stream = texts, TextStream(texts)
        self._plans: deque[RoutingPlan] = deque()
        self._drawn = 0
        self._next, self._next_loss = 0, 0.0
        """In a session: the token that is processed next, and its loss."""

    @property
    def position(self) -> int:
        return self.state.position

    def process(self, ids: list[int], plan: RoutingPlan, probe: ErrorProbe | None = None) -> tuple[Columns, Tensor]:
        """One forward over `ids` through the modules: their columns and the predictions made from them."""
        quantized, position = self.quantized, self.position
        recorder, residual = Recorder(), ResidualRecorder()
        if probe is None:
            routing_pass = quantized.routing_pass(plan, position, recorder)
        else:
            routing_pass = ProbedPass(quantized, plan, position, recorder, probe)
        with recording(residual), routing_pass:
            if len(ids) == 1:
                logits = decode_one_token(quantized.model, self.state, ids[0])
            else:
                logits = prefill(quantized.model, self.state, ids)
        depths, scores = recorder.arrays()
        residual_max, residual_top3, residual_median = residual.statistics()
        top_ids, top_probabilities = top_predictions(logits)
        columns = Columns(
            token_ids=list(ids),
            token_texts=self._stream.push_all(ids),
            depths=depths,
            scores=scores,
            residual_max=residual_max,
            residual_top3=residual_top3,
            residual_median=residual_median,
            top_ids=top_ids,
            top_texts=[self._top_texts(row) for row in top_ids],
            top_probabilities=top_probabilities,
            loss=token_losses(self.previous, logits, ids),
            errors=None if probe is None else probe.take(),
            thresholds=_thresholds_of(plan, len(ids)),
        )
        self._count(depths, position)
        self.previous = logits[-1]
        return columns, logits

    def begin(self, plan: RoutingPlan, sampling: Sampling) -> None:
        """The next token, drawn from what the one before it predicts, goes under `plan`.

        In a session it is under way from here on, also where the one before it is not finished yet.
        """
        self._plans.append(plan)
        if self.session is None:
            return
        if self.state.cache is not None:
            self._hand_over(self.session, sampling)
        self.session.start(plan)

    def finish(self, sampling: Sampling, end: int | None) -> Decoded | None:
        """Draws, processes and counts the token begun first of those that are not finished; None where it is `end`."""
        plan = self._plans.popleft()
        if self.session is not None:
            return self._finish_in_session(self.session, plan, end)
        token = sample(self._prediction, sampling, self._drawn)
        self._drawn += 1
        return None if token == end else Decoded(self.process([token], plan)[0], 0.0)

    def _finish_in_session(self, session: "Session", plan: RoutingPlan, end: int | None) -> Decoded | None:
        token, loss, position = self._next, self._next_loss, self.position
        if token == end:
            return None
        found = session.finish()
        if not np.isfinite(found.log_total):
            raise not_finite()
        self._next = found.next_token
        self._next_loss = found.log_total - float(found.largest[found.ids == self._next][0])
        self.state.position += 1
        self._count(found.depths[:, None], position)
        return Decoded(self._columns(token, plan, loss, found), found.seconds)

    def _columns(self, token: int, plan: RoutingPlan, loss: float, found: "Measured") -> Columns:
        top_ids = found.ids[:TOP]
        return Columns(
            token_ids=[token],
            token_texts=[self._stream.push(token)],
            depths=found.depths[:, None],
            scores=found.scores[:, None],
            residual_max=found.residual_top3[:, None, 0],
            residual_top3=found.residual_top3[:, None],
            residual_median=found.residual_median[:, None],
            top_ids=top_ids[None],
            top_texts=[self._top_texts(top_ids)],
            top_probabilities=np.exp(found.largest[None, :TOP] - np.float32(found.log_total)),
            loss=np.array([loss], dtype=np.float32),
            thresholds=_thresholds_of(plan, 1),
        )

    def _hand_over(self, session: "Session", sampling: Sampling) -> None:
        """The first token, and the prompt's keys and values, to the session; its cache is the only one from then on."""
        self._next = sample(self._prediction, sampling, 0)
        self._next_loss = float(self._prediction.logsumexp(-1) - self._prediction[self._next])
        layers = self.state.cache.layers
        keys, values = [layer.keys[0] for layer in layers], [layer.values[0] for layer in layers]
        session.begin(self._next, self.position, keys, values, replace(sampling, uniforms=sampling.uniforms[1:]))
        self.state.cache = None

    @property
    def _prediction(self) -> Float[Tensor, " vocabulary"]:
        """`previous`, once there is one."""
        if self.previous is None:
            raise PromptError("Nothing can be decoded before a prompt. Process one first.")
        return self.previous

    def _count(self, depths: np.ndarray, before: int) -> None:
        """Takes the depths of the newest tokens into the average."""
        bits = average_bits(depths, self.quantized.linear_infos, self.quantized.config.bits_by_depth)
        self.bits = (self.bits * before + bits * depths.shape[1]) / self.position

    def _top_texts(self, ids: np.ndarray) -> list[str]:
        return [self._texts.single(token) for token in ids.tolist()]


def _thresholds_of(plan: RoutingPlan, tokens: int) -> np.ndarray:
    """float32 [1 or linears, tokens]: the plan's thresholds, once for every token it was made for."""
    thresholds = to_numpy(plan.thresholds)
    return np.repeat((thresholds[:1] if plan.mode == "global" else thresholds)[:, None], tokens, axis=1)


def to_numpy(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().float().cpu().numpy()
