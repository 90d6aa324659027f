"""Studies that need more than one run of the model: A beside B, and a policy beside the oracle.

Each is a generator of messages for the store, run through `Studio.guarded`; pictures and sentences come from
`app.views`. It knows no layout.
"""

import json
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from app.handlers import MODEL_WAIT_SECONDS, Studio
from app.runner import batches
from app.session import Run, new_run_id
from app.validate import Request, check, one_of, prompt_length
from app.views import agreement, compare
from mobiquant_core.errors import PromptError
from mobiquant_core.trace import Trace, average_bits

TEXTS = ("forced", "free", "given")
"""Which text is compared: A writes and B reads the same; both write; both read the prompt itself."""
_PROGRESS_SECONDS = 0.25
_NEAR_ENOUGH_BITS = 0.03


class Studies:
    """What the Compare and Router lab tabs may ask of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def compare(self, prompt, seed, new_tokens, temperature, request: gr.Request, event: gr.EventData) -> Iterator[str]:
        """Two runs under two settings, beside full precision where that is kept."""
        asked = event._data if isinstance(event._data, dict) else {}
        asked = {**asked, "prompt": prompt, "seed": seed, "tokens": new_tokens, "temperature": temperature}
        yield from self.studio.guarded("compare", asked, request, self._compare)

    def agree(self, request: gr.Request, event: gr.EventData) -> Iterator[str]:
        """The policy of the run on show beside the oracle, on the same text and budget."""
        asked = event._data if isinstance(event._data, dict) else {}
        yield from self.studio.guarded("agreement", asked, request, self._agree)

    def _compare(self, asked: dict, session: str, cancel: threading.Event) -> Iterator[str]:
        text = one_of(asked.get("text", "forced"), "The text", TEXTS)
        wishes = [self._wish(asked, asked.get(side)) for side in ("a", "b")]
        engine = self.studio.slot.engine(cancel, MODEL_WAIT_SECONDS)
        prompt = engine.encode(wishes[0].prompt)
        prompt_length(len(prompt), self.studio.settings)
        with self.studio.slot.lock:
            texts = [prompt, prompt]
            if text != "given":
                texts[0] = yield from self._written(engine, prompt, wishes[0], "A", cancel)
                texts[1] = texts[0]
            if text == "free":
                texts[1] = yield from self._written(engine, prompt, wishes[1], "B", cancel)
            traces = []
            for name, ids, wish in zip("AB", texts, wishes, strict=True):
                yield _progress(f"Measuring {name} against full precision …")
                traces.append(_analyzed(engine, ids, wish, len(prompt), cancel))
            if asked.get("match") is True:
                yield _progress("Bringing B to the bits that A spent …")
                traces[1] = _matched(engine, traces, wishes[1], len(prompt), cancel)
        yield self._compared(traces, text, session)

    def _wish(self, asked: dict, side: Any) -> Request:
        side = side if isinstance(side, dict) else {}
        values = (asked.get("prompt"), side.get("bits"), side.get("policy"), side.get("mode", "global"))
        more = (asked.get("seed"), asked.get("tokens"), asked.get("temperature"))
        return check(self.studio.settings, "generate", *values, *more)

    def _written(
        self, engine: Any, prompt: list[int], wish: Request, name: str, cancel: threading.Event
    ) -> Generator[str, None, list[int]]:
        """Token ids of prompt and continuation under one wish; yields progress."""
        options = {"budget": wish.bits, "policy": wish.policy, "mode": wish.mode, "seed": wish.seed}
        options |= {"max_new_tokens": wish.max_new_tokens, "temperature": wish.temperature}
        ids = list(prompt)
        # Its own wish to stop: running out of time ends the writing, not the comparison.
        stop = threading.Event()
        stream = batches(
            lambda stopped: engine.generate(prompt, cancel=stopped, **options),
            stop,
            interval=_PROGRESS_SECONDS,
            seconds=self.studio.settings.run_seconds,
        )
        for batch in stream:
            if cancel.is_set():
                stop.set()
            ids += [token for step in batch if step.phase == "decode" for token in step.columns.token_ids]
            yield _progress(f"{name} writes: {len(ids) - len(prompt)} of {wish.max_new_tokens} tokens")
        return ids

    def _compared(self, traces: list[Trace], text: str, session: str) -> str:
        a, b = traces
        info = compare.data(a, b)
        runs = []
        for trace, measured in zip(traces, info.measured, strict=True):
            runs.append(Run(new_run_id(), trace, "done", measured))
            self.studio.sessions.remember(session, runs[-1])
        longer = max(traces, key=lambda trace: trace.tokens)
        return _message(
            "compare",
            a=self.studio.opening(runs[0]),
            b=self.studio.opening(runs[1]),
            text=text,
            common=info.common,
            firstDifference=info.first_difference,
            sameText=info.same_text,
            summary=compare.summary(info),
            sentence=compare.sentence(info, longer.columns.token_texts),
            figures={"loss": compare.loss_figure(info), "kl": compare.kl_figure(info)},
        )

    def _agree(self, asked: dict, session: str, cancel: threading.Event) -> Iterator[str]:
        engine = self.studio.slot.engine(cancel, MODEL_WAIT_SECONDS)
        run_id, shown = self.studio.shown(asked)
        if shown.settings.model != engine.model_name:
            raise PromptError(
                f"The run on show is of {shown.settings.model}, but {engine.model_name} is loaded. Generate or "
                "analyze a text with it first."
            )
        policy = shown.settings.policy if shown.settings.policy != "oracle" else "router"
        ids = [int(token) for token in shown.columns.token_ids][: self.studio.settings.max_migration_tokens]
        options = {"budget": shown.settings.requested_bits, "mode": shown.settings.threshold_mode, "cancel": cancel}
        with self.studio.slot.lock:
            mine = engine.analyze(ids, policy=policy, **options)
            best = engine.analyze(ids, policy="oracle", **options)
        info = agreement.data(mine, best)
        figures = {"layers": agreement.layer_figure(info), "confusion": agreement.confusion_figure(info)}
        spent = [average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth) for trace in (mine, best)]
        yield _message(
            "agreement", run=run_id, sentence=agreement.sentence(info), figures=figures, policy=policy, measured=spent
        )


def _analyzed(engine: Any, ids: list[int], wish: Request, prompt_tokens: int, cancel: threading.Event) -> Trace:
    trace = engine.analyze(
        ids, budget=wish.bits, policy=wish.policy, mode=wish.mode, reference=engine.reference is not None, cancel=cancel
    )
    return replace(trace, prompt_tokens=prompt_tokens)


def _matched(engine: Any, traces: list[Trace], wish: Request, prompt_tokens: int, cancel: threading.Event) -> Trace:
    """B once more, at the budget at which it spends what A spent; what it was if that is no nearer."""
    spent = [average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth) for trace in traces]
    if abs(spent[1] - spent[0]) < _NEAR_ENOUGH_BITS or wish.mode != "global":
        return traces[1]
    budget = compare.matched_budget(traces[1], spent[0])
    again = _analyzed(engine, traces[1].columns.token_ids, replace(wish, bits=budget), prompt_tokens, cancel)
    now = average_bits(again.columns.depths, again.linears, again.bits_by_depth)
    return again if abs(now - spent[0]) < abs(spent[1] - spent[0]) else traces[1]


def _progress(text: str) -> str:
    return _message("progress", text=text)


def _message(kind: str, **body: Any) -> str:
    return json.dumps({"kind": kind, **_finite(body)}, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what cannot be told is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value != value else value
