"""One sequence under way in a quantized model: processes further tokens of it and makes their columns.

Tokens go through the model's modules, or one at a time through a captured step where the run was lent one; that runs
while the columns of the token before are made. It chooses neither tokens nor budgets.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.analysis import ErrorProbe, ProbedPass
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.decode import DecodeState, decode_one_token, prefill
from mobiquant_core.errors import PromptError
from mobiquant_core.recording import TOP, ResidualRecorder, recording, token_losses, top_predictions
from mobiquant_core.routing import Recorder, RoutingPlan
from mobiquant_core.token_text import TextStream, TokenTexts
from mobiquant_core.trace import Columns, average_bits

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.session import Measured, Session


@dataclass(frozen=True)
class Decoded:
    """A token that was processed after the prompt."""

    columns: Callable[[], Columns]
    """Made when asked for, in the order of the tokens."""
    seconds: float
    """What it took beside the drawing and beginning of it."""


class Run:
    """What was processed so far: `position` tokens at `bits` on average, and the prediction after the last one."""

    def __init__(self, quantized: QuantizedModel, texts: TokenTexts, session: "Session | None" = None) -> None:
        self.quantized, self.session = quantized, session
        self.state = DecodeState()
        self.previous: Tensor | None = None
        self.bits = 0.0
        self._texts, self._stream = texts, TextStream(texts)
        self._begun: tuple[int, RoutingPlan, float] | None = None
        self._measured: Measured | None = None
        """The last prediction in a session, of which `previous` then knows nothing."""

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

    def candidates(self, top_k: int) -> tuple[Float[Tensor, " candidates"], np.ndarray | None]:
        """Logits that the next token is drawn from, and their ids; None for all of the vocabulary.

        The `top_k` largest (0: all) are among them.
        """
        if self._measured is None:
            return self._prediction, None
        if 0 < top_k <= len(self._measured.ids):
            return torch.from_numpy(self._measured.largest), self._measured.ids
        return self._in_session.logits(), None

    def begin(self, token: int, plan: RoutingPlan) -> None:
        """A drawn token after the prompt: under way, where there is a captured step, until `finish`."""
        loss = 0.0
        if self.session is not None:
            if self.state.cache is not None:
                self._hand_over(self.session)
            # Before the step overwrites its prediction.
            loss = self._loss(token)
            self.session.start(token, plan)
        self._begun = token, plan, loss

    def finish(self) -> Decoded:
        """Waits for the token begun last, and counts it."""
        if self._begun is None:
            raise PromptError("No token is under way. Begin one first.")
        token, plan, loss = self._begun
        self._begun = None
        if self.session is None:
            started = time.perf_counter()
            columns = self.process([token], plan)[0]
            return Decoded(lambda: columns, time.perf_counter() - started)
        found = self._measured = self.session.finish()
        position = self.position
        self.state.position += 1
        self._count(found.depths[:, None], position)
        return Decoded(lambda: self._columns(token, plan, loss, found), found.seconds)

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

    def _hand_over(self, session: "Session") -> None:
        """The prompt's keys and values to the session; its cache is the only one from then on."""
        layers = self.state.cache.layers
        session.begin(self.position, [layer.keys[0] for layer in layers], [layer.values[0] for layer in layers])
        self.state.cache = None

    def _loss(self, token: int) -> float:
        """Nats of a token under the last prediction."""
        found = self._measured
        if found is None:
            return float(self._prediction.logsumexp(-1) - self._prediction[token])
        at = np.flatnonzero(found.ids == token)
        logit = found.largest[at[0]] if len(at) else self._in_session.logits()[token]
        return found.log_total - float(logit)

    @property
    def _in_session(self) -> "Session":
        if self.session is None:
            raise PromptError("This run has no captured step. Decode through the modules.")
        return self.session

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
