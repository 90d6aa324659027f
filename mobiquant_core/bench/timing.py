"""Medians of CUDA-graph replays over rotated copies, and the card's own ceilings. It knows no kernels."""

import datetime
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch

from mobiquant_core.machine import describe_machine

ROTATED_BYTES = 544e6
"""What the copies of a weight must add up to, so that none of it is still in the L2 cache when its turn comes."""


def copies_for(bytes_read: float) -> int:
    return max(2, -(-int(ROTATED_BYTES) // int(bytes_read)))


def graph_microseconds(calls: Sequence[Callable[[], object]], repeats: int = 15) -> float:
    """Median time of one call, over replays of a graph that makes every call once."""
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
    del graph
    return statistics.median(times)


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
