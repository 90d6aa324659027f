"""One sequence under way in a quantized model: processes further tokens of it and makes their columns.

Tokens go through the model's modules, or one at a time through a captured step where the run was lent one. It chooses
neither tokens nor budgets.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.analysis import ErrorProbe, ProbedPass
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.decode import DecodeState, decode_one_token, prefill
from mobiquant_core.errors import PromptError
from mobiquant_core.recording import ResidualRecorder, recording, token_losses, top_predictions
from mobiquant_core.routing import Recorder, RoutingPlan
from mobiquant_core.token_text import TextStream, TokenTexts
from mobiquant_core.trace import Columns, average_bits

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.session import Session


class Run:
    """What was processed so far: `position` tokens at `bits` on average, and the prediction after the last one."""

    def __init__(self, quantized: QuantizedModel, texts: TokenTexts, session: "Session | None" = None) -> None:
        self.quantized, self.session = quantized, session
        self.state = DecodeState()
        self.previous: Tensor | None = None
        self.bits = 0.0
        self._texts, self._stream = texts, TextStream(texts)
        self._log_total = 0.0
        """Log of the sum of the exponentials of `previous`, in a session."""

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

    def decode(self, token: int, plan: RoutingPlan) -> Columns:
        """One drawn token after the prompt, through the captured step where there is one."""
        if self.session is None:
            return self.process([token], plan)[0]
        return self._decode_captured(self.session, token, plan)

    def _decode_captured(self, session: "Session", token: int, plan: RoutingPlan) -> Columns:
        position = self.position
        if self.state.cache is not None:
            self._hand_over(session)
        # Before the step overwrites its prediction.
        loss = self._log_total - float(self._prediction[token])
        texts: list[str] = []
        found = session.process(token, plan, lambda: texts.append(self._stream.push(token)))
        columns = Columns(
            token_ids=[token],
            token_texts=texts,
            depths=found.depths[:, None],
            scores=found.scores[:, None],
            residual_max=found.residual_top3[:, None, 0],
            residual_top3=found.residual_top3[:, None],
            residual_median=found.residual_median[:, None],
            top_ids=found.top_ids[None],
            top_texts=[self._top_texts(found.top_ids)],
            top_probabilities=found.top_probabilities[None],
            loss=np.array([loss], dtype=np.float32),
            thresholds=_thresholds_of(plan, 1),
        )
        self.state.position += 1
        self._count(columns.depths, position)
        self.previous, self._log_total = found.logits, found.log_total
        return columns

    def _hand_over(self, session: "Session") -> None:
        """The prompt's keys, values and last prediction to the session; its cache is the only one from then on."""
        layers = self.state.cache.layers
        session.begin(self.position, [layer.keys[0] for layer in layers], [layer.values[0] for layer in layers])
        self.state.cache = None
        self.previous = self._prediction.cpu()
        self._log_total = float(self.previous.logsumexp(-1))

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
