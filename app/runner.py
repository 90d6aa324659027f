"""Runs an engine loop on its own thread and hands its steps over in batches, at most so many per second.

The engine never waits for a browser, and a browser never gets more updates than an eye can see.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from mobiquant_core.errors import Cancelled
from mobiquant_core.trace import Step

_END = object()


def batches(
    loop: Callable[[threading.Event], Iterable[Step]],
    cancel: threading.Event,
    *,
    interval: float,
    seconds: float,
) -> Iterator[list[Step]]:
    """Yields non-empty lists of steps; sets `cancel` at the deadline, on an error and when the reader goes away."""
    steps: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            for step in loop(cancel):
                steps.put(step)
            steps.put(_END)
        except Cancelled:
            steps.put(_END)
        except BaseException as error:
            steps.put(error)

    threading.Thread(target=work, name="engine-run", daemon=True).start()
    deadline = time.monotonic() + seconds
    ended = False
    try:
        yield from _drain(steps, interval, deadline, cancel)
        ended = True
    finally:
        if not ended:
            cancel.set()


def _drain(steps: queue.SimpleQueue, interval: float, deadline: float, cancel: threading.Event) -> Iterator[list[Step]]:
    while True:
        batch, ended, error = _collect(steps, interval)
        if batch:
            yield batch
        if error is not None:
            raise error
        if ended:
            return
        if time.monotonic() > deadline:
            cancel.set()


def _collect(steps: queue.SimpleQueue, interval: float) -> tuple[list[Step], bool, BaseException | None]:
    """Everything that arrives within one interval after the first item; the prompt's step is never kept waiting."""
    batch: list[Step] = []
    until: float | None = None
    while True:
        try:
            wait = interval if until is None else max(until - time.monotonic(), 0.0)
            item = steps.get(timeout=wait) if wait else steps.get_nowait()
        except queue.Empty:
            return batch, False, None
        if item is _END:
            return batch, True, None
        if isinstance(item, BaseException):
            return batch, False, item
        batch.append(item)
        if item.phase == "prefill":
            return batch, False, None
        until = until or time.monotonic() + interval
