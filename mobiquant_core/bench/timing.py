"""Medians of CUDA-graph replays over rotated copies, and the card's own ceilings. It knows no kernels."""

import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch

from mobiquant_core.machine import describe_machine

ROTATED_BYTES = 544e6
"""What the copies of a weight must add up to, so that none of it is still in the L2 cache when its turn comes."""


_CALLS_AT_ONCE, _REPLAYS_AT_ONCE = 6, 20
"""Of a steady timing: calls in a graph, and replays between two looks at the clock."""


def copies_for(bytes_read: float) -> int:
    return max(2, -(-int(ROTATED_BYTES) // int(bytes_read)))


def graph_microseconds(calls: Sequence[Callable[[], object]], repeats: int = 15) -> float:
    """Median time of one call, over replays of a graph that makes every call once."""
    graph = _captured(calls)
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def steady_microseconds(call: Callable[[], object], seconds: float = 0.3) -> float:
    """Mean time of one call in a row of calls without a gap, once the card's clocks have settled.

    For calls that take so much power that its limit sets the clocks, as a prompt's products do: a short burst would
    time the start of a graph and a card that is not yet warm.
    """
    graph = _captured([call] * _CALLS_AT_ONCE)

    def replay(most: float) -> int:
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < most:
            for _ in range(_REPLAYS_AT_ONCE):
                graph.replay()
            calls += _REPLAYS_AT_ONCE * _CALLS_AT_ONCE
            # No more than this many are waiting, else the clock here says nothing about the card.
            end.record()
            end.synchronize()
        return calls

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    replay(seconds / 3)
    start.record()
    calls = replay(seconds)
    return start.elapsed_time(end) * 1e3 / calls


def _captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
        calls[-1]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return graph


WARM_UPS = 2


def eager_microseconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Median time of one call with events around it, after WARM_UPS others: for work that hides its launches."""
    for _ in range(WARM_UPS):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy, read and written bytes both counted."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (eager_microseconds(lambda: target.copy_(source)) * 1e-6)


def header(command: str) -> dict[str, str]:
    """What every stored result says about where it came from."""
    found = {"command": command, **describe_machine(torch.device("cuda")), "triton": version("triton")}
    return {**found, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
