"""One function per event of the page: validate, use the engine, answer with messages for the store.

The only place that turns an error into a toast. It knows no layout; `layout` and `tabs` wire it up.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from threading import Event
from typing import Any

import gradio as gr

from app import wire
from app.backend import EngineSlot
from app.recorded import RUN_ID
from app.runner import batches
from app.session import Run, Sessions, new_run_id
from app.settings import Settings
from app.validate import Request, check, one_of, prompt_length
from app.views import migration
from mobiquant_core.errors import Cancelled, MobiQuantError, PromptError
from mobiquant_core.trace import RunSettings, Step, Trace, average_bits

logger = logging.getLogger(__name__)
ENGINE_QUEUE = {"concurrency_id": "engine", "concurrency_limit": 1}
MODEL_WAIT_SECONDS = 300.0
SURFACE_CHANNELS = 64
"""Channels with the largest magnitudes: the massive ones and enough ordinary ones beside them."""


class Studio:
    """Settings, engine and visitors of one process, and what may be asked of them."""

    def __init__(self, settings: Settings, slot: EngineSlot, recorded: Trace | None = None) -> None:
        self.settings = settings
        self.slot = slot
        self.recorded = recorded
        self.sessions = Sessions(settings.sessions, settings.session_bytes)

    def status(self, _asked: Any = None) -> dict:
        """For the chip; polled by the page, outside the queue."""
        return asdict(self.slot.status)

    def generate(
        self, prompt, bits, policy, mode, seed, max_new_tokens, temperature, request: gr.Request
    ) -> Iterator[str]:
        """Streams a run under a budget."""
        yield from self.guarded(
            "generate", (prompt, bits, policy, mode, seed, max_new_tokens, temperature), request, self._generate
        )

    def analyze(self, prompt, bits, policy, mode, request: gr.Request) -> Iterator[str]:
        """Runs the given text itself, token after token known in advance, with errors where it is short enough."""
        yield from self.guarded("analyze", (prompt, bits, policy, mode), request, self._analyze)

    def generate_if(
        self, wanted, prompt, bits, policy, mode, seed, max_new_tokens, temperature, request: gr.Request
    ) -> Iterator[str]:
        """The same, on releasing the slider, where the visitor left that switched on."""
        if wanted is True:
            yield from self.generate(prompt, bits, policy, mode, seed, max_new_tokens, temperature, request)

    def migrate(self, request: gr.Request, event: gr.EventData) -> Iterator[str]:
        """Measures outlier migration on the text of the run that the page shows."""
        asked = event._data if isinstance(event._data, dict) else {}
        yield from self.guarded("migrate", asked, request, self._migrate)

    def magnitudes(self, request: gr.Request, event: gr.EventData) -> Iterator[str]:
        """Measures |h| of every token and the largest channels after one layer, on the run that the page shows."""
        asked = event._data if isinstance(event._data, dict) else {}
        yield from self.guarded("surface", asked, request, self._magnitudes)

    def stop(self, request: gr.Request) -> None:
        self.sessions.stop(session_of(request))

    def close(self, request: gr.Request) -> None:
        self.sessions.drop(session_of(request))

    def resync(self, asked: Any) -> str | None:
        """The whole of a run as one message, for a page that missed a number."""
        run_id = asked.get("run") if isinstance(asked, dict) else None
        run = self.sessions.find(run_id) if isinstance(run_id, str) else None
        if run is None:
            return None
        return self.opening(run)

    def guarded(self, kind, values, request, work) -> Iterator[str]:
        """Runs `work` for one visitor; a dict of wishes is checked by `work` itself. Errors become one toast."""
        session = session_of(request)
        cancel = self.sessions.begin(session)
        try:
            wish = values if isinstance(values, dict) else check(self.settings, kind, *values)
            for message in work(wish, session, cancel):
                yield wire.marked(message)
        except Cancelled:
            yield wire.marked(wire.failed_message(kind))
        except MobiQuantError as error:
            yield wire.marked(wire.failed_message(kind))
            raise toast(str(error)) from None
        except Exception:
            logger.exception("a run failed")
            yield wire.marked(wire.failed_message(kind))
            raise toast("This run failed inside the engine. The studio is still running; try again.") from None
        finally:
            cancel.set()

    def _ready(self, wish: Request, cancel: Event) -> tuple[Any, list[int]]:
        engine = self.slot.engine(cancel, MODEL_WAIT_SECONDS)
        ids = engine.encode(wish.prompt)
        prompt_length(len(ids), self.settings)
        return engine, ids

    def _generate(self, wish: Request, session: str, cancel: Event) -> Iterator[str]:
        engine, ids = self._ready(wish, cancel)
        asked = RunSettings(
            engine.model_name,
            "generate",
            wish.policy,
            wish.mode,
            wish.bits,
            wish.seed,
            wish.temperature,
            wish.max_new_tokens,
        )
        options = {"budget": wish.bits, "policy": wish.policy, "mode": wish.mode, "seed": wish.seed}
        options |= {"max_new_tokens": wish.max_new_tokens, "temperature": wish.temperature}
        steps: list[Step] = []
        run: Run | None = None
        with self.slot.lock:
            stream = batches(
                lambda stopped: engine.generate(ids, cancel=stopped, **options),
                cancel,
                interval=1 / self.settings.updates_per_second,
                seconds=self.settings.run_seconds,
            )
            for batch in stream:
                steps += batch
                if run is None:
                    run = Run(new_run_id(), engine.assemble(steps, asked), "running", batch[-1].measured_bits)
                    run.assemble = partial(_joined, engine, steps, asked)
                    self.sessions.remember(session, run)
                    yield self.opening(run)
                    continue
                run.measured = batch[-1].measured_bits
                run.seq += 1
                yield wire.columns_message(batch, run.id, run.seq, run.measured)
        if run is not None:
            yield self._finish(run, engine.assemble(steps, asked), session, cancel)

    def _analyze(self, wish: Request, session: str, cancel: Event) -> Iterator[str]:
        engine, ids = self._ready(wish, cancel)
        with self.slot.lock:
            trace = engine.analyze(
                ids,
                budget=wish.bits,
                policy=wish.policy,
                mode=wish.mode,
                errors=True,
                reference=engine.reference is not None,
                cancel=cancel,
            )
        measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
        run = Run(new_run_id(), trace, "done", measured)
        self.sessions.remember(session, run)
        yield self.opening(run)

    def _migrate(self, asked: dict, session: str, cancel: Event) -> Iterator[str]:
        engine = self.slot.engine(cancel, MODEL_WAIT_SECONDS)
        run_id, trace = self.shown(asked)
        ids = [int(token) for token in trace.columns.token_ids][: self.settings.max_migration_tokens]
        error = one_of(asked.get("error", "relative"), "The error kind", ("relative", "absolute"))
        with self.slot.lock:
            report = self.slot.core.migration(
                engine, ids, error=error, skip_first=asked.get("skipFirst") is not False, cancel=cancel
            )
        names = [f"{info.projection}, layer {info.layer}" for info in report.linears]
        sentences = [migration.sentence(migration.data(report), "Whole model")]
        sentences += [migration.sentence(migration.data(report, index), name) for index, name in enumerate(names)]
        ranks = migration.ranks_of(report.errors, int(report.first_skipped))
        hardest = migration.ranks_of(report.reference_loss, 1)  # the first token has no loss
        yield wire.migration_message(report, run_id, sentences, ranks, hardest)

    def _magnitudes(self, asked: dict, session: str, cancel: Event) -> Iterator[str]:
        engine = self.slot.engine(cancel, MODEL_WAIT_SECONDS)
        run_id, trace = self.shown(asked)
        ids = [int(token) for token in trace.columns.token_ids][: self.settings.max_migration_tokens]
        layer = asked.get("layer")
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise PromptError(f"The layer {layer!r} cannot be used: give a whole number, -1 for the embeddings.")
        with self.slot.lock:
            surface = self.slot.core.surface(engine, ids, layer, SURFACE_CHANNELS)
        yield wire.surface_message(surface, run_id)

    def shown(self, asked: dict) -> tuple[str, Trace]:
        """The run that the page names: one of its own, or the recorded one."""
        run_id = asked.get("run")
        if run_id == RUN_ID and self.recorded is not None:
            return RUN_ID, self.recorded
        run = self.sessions.find(run_id) if isinstance(run_id, str) else None
        if run is None:
            raise PromptError("The run on show is no longer kept on the server. Generate or analyze a text first.")
        return run.id, run.trace

    def opening(self, run: Run) -> str:
        """The message that puts a run on the page.

        The number is read before the columns: while the run goes on, a page may get more tokens than the number says,
        and skips what it has; fewer it would never notice.
        """
        seq, state, measured = run.seq, run.state, run.measured
        return wire.run_message(run.snapshot(), run.id, seq, state=state, measured=measured, **self._group())

    def _finish(self, run: Run, trace, session: str, cancel: Event) -> str:
        run.trace, run.assemble = trace, None
        run.state = "stopped" if cancel.is_set() else "done"
        run.seq += 1
        self.sessions.remember(session, run)
        return wire.done_message(run.id, run.seq, run.measured, run.state, list(trace.notes))

    def _group(self) -> dict[str, int]:
        config = getattr(getattr(self.slot.peek(), "quantized", None), "config", None)
        return {"group_size": getattr(config, "group_size", wire.DEFAULT_GROUP_SIZE)}


def _joined(engine: Any, steps: list[Step], asked: RunSettings) -> Trace:
    """The trace so far; on a copy, because the run goes on while another thread reads it."""
    return engine.assemble(list(steps), asked)


def session_of(request: gr.Request) -> str:
    return str(request.session_hash or "none")


def toast(message: str) -> gr.Error:
    """One clear line for the visitor; no traceback there or in the log."""
    return gr.Error(message, title="Cannot run this", duration=10, print_exception=False)


def dumps(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
