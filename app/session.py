"""What the server keeps per visitor: the wish to stop, and the last runs, within a byte limit.

Runs are plain records on the CPU; no model and no tensor is ever held here. Keyed by Gradio's session hash.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np

from mobiquant_core.trace import Trace


def new_run_id() -> str:
    """Unguessable, because a run id is all that `resync` asks for."""
    return secrets.token_urlsafe(12)


def trace_bytes(trace: Trace) -> int:
    arrays = (getattr(trace.columns, entry.name) for entry in fields(trace.columns))
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) + 64 * trace.tokens


@dataclass
class Run:
    """A run under way or finished; `seq` is the number of the last message about it."""

    id: str
    trace: Trace
    state: str
    measured: float
    seq: int = 0
    assemble: Callable[[], Trace] | None = None
    """While running: builds the trace of what there is so far."""

    def snapshot(self) -> Trace:
        assemble = self.assemble  # read once: the run may end on another thread meanwhile
        return assemble() if assemble else self.trace


@dataclass
class Visitor:
    runs: "OrderedDict[str, Run]" = field(default_factory=OrderedDict)
    cancel: threading.Event | None = None


class Sessions:
    """All visitors of this process; thread-safe, bounded in visitors and in bytes per visitor."""

    def __init__(self, capacity: int, bytes_each: int) -> None:
        self._capacity = capacity
        self._bytes_each = bytes_each
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.Lock()

    def _of(self, session: str) -> Visitor:
        visitor = self._visitors.setdefault(session, Visitor())
        self._visitors.move_to_end(session)
        while len(self._visitors) > self._capacity:
            _, dropped = self._visitors.popitem(last=False)
            if dropped.cancel:
                dropped.cancel.set()
        return visitor

    def begin(self, session: str) -> threading.Event:
        """A fresh stop wish for a new run; the visitor's earlier run, if any, is told to stop."""
        with self._lock:
            visitor = self._of(session)
            if visitor.cancel:
                visitor.cancel.set()
            visitor.cancel = threading.Event()
            return visitor.cancel

    def stop(self, session: str) -> None:
        """Harmless when nothing runs."""
        with self._lock:
            visitor = self._visitors.get(session)
            if visitor and visitor.cancel:
                visitor.cancel.set()

    def remember(self, session: str, run: Run) -> None:
        """Keeps a run; the oldest ones leave when the visitor's bytes are used up."""
        with self._lock:
            runs = self._of(session).runs
            runs[run.id] = run
            runs.move_to_end(run.id)
            while len(runs) > 1 and sum(trace_bytes(kept.trace) for kept in runs.values()) > self._bytes_each:
                runs.popitem(last=False)

    def find(self, run_id: str) -> Run | None:
        with self._lock:
            for visitor in self._visitors.values():
                if run_id in visitor.runs:
                    return visitor.runs[run_id]
        return None

    def drop(self, session: str) -> None:
        """The tab was closed: stop its run, forget its data."""
        with self._lock:
            visitor = self._visitors.pop(session, None)
        if visitor and visitor.cancel:
            visitor.cancel.set()

    def __len__(self) -> int:
        with self._lock:
            return len(self._visitors)
