"""Streams tokens from a captured decode step: the device runs one token ahead of the host.

Budgets are numbers in device memory, so a change of budget is a small copy. It knows token ids, not text.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.step import Step
from mobiquant_core.kernels.step_launches import float_settings


@dataclass(frozen=True)
class DecodedToken:
    """A new token, and what the pass that made it decided at every linear."""

    token: int
    position: int
    """Position of the token that was processed."""
    scores: np.ndarray
    """float32 [linears, 3]."""
    depths: np.ndarray
    """uint8 [linears]."""
    seconds: float


class Decoder:
    """A step with its graphs, and the sequence its buffers hold."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        linears = step.buffers.record.shape[0]
        self._tokens = torch.zeros(2, dtype=torch.int64, pin_memory=True)
        self._records = torch.zeros(2, linears, 4, pin_memory=True)

    def begin(
        self,
        token: int,
        position: int = 0,
        keys: Sequence[Float[Tensor, "kv_heads positions head_dim"]] = (),
        values: Sequence[Float[Tensor, "kv_heads positions head_dim"]] = (),
    ) -> None:
        """Start from `token` at `position`, after the keys and values of all positions before it."""
        buffers = self.step.buffers
        if position >= self.step.room:
            raise KernelError(
                f"The decoder has room for {self.step.room:,} positions; the prompt has {position:,}. "
                "Shorten it, or make the decoder with more room."
            )
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            buffers.keys[layer, :, :position] = key
            buffers.values[layer, :, :position] = value
        buffers.token.fill_(token)
        buffers.position.fill_(position)

    def set_budget(self, thresholds: Float[Tensor, " linears"], depths: Tensor | None = None) -> None:
        """Thresholds for the router's scores; `depths` (0: the router decides) fixes linears for other policies."""
        control = torch.zeros_like(self.step.buffers.control)
        control[:, 0] = thresholds.to(control.device)
        if depths is not None:
            control[:, 1] = depths.to(control)
        self.step.buffers.control.copy_(control)

    def set_sampling(self, temperature: float, top_k: int, seed: int) -> None:
        buffers = self.step.buffers
        buffers.settings.copy_(float_settings(temperature, top_k))
        buffers.seed.fill_(seed % 2**31)

    def stream(
        self, count: int, *, draw: bool = False, cancel: threading.Event | None = None
    ) -> Iterator[DecodedToken]:
        """Up to `count` tokens; a cancel ends it after the token under way."""
        graph = self._graph(draw)
        position = int(self.step.buffers.position)
        count = min(count, self.step.room - position)
        events: list[torch.cuda.Event] = []
        started = time.perf_counter()
        for index in range(count + 1):
            if index < count and not (cancel is not None and cancel.is_set()):
                graph.replay()
                slot = index % 2
                self._tokens[slot : slot + 1].copy_(self.step.buffers.token, non_blocking=True)
                self._records[slot].copy_(self.step.buffers.record, non_blocking=True)
                events.append(torch.cuda.Event())
                events[-1].record()
            if index == 0:
                continue
            if index > len(events):
                return
            # The next step is already running while this one is read.
            events[index - 1].synchronize()
            now = time.perf_counter()
            yield self._read(index - 1, position, now - started)
            started = now
            if cancel is not None and cancel.is_set():
                return

    def _read(self, index: int, first: int, seconds: float) -> DecodedToken:
        record = self._records[index % 2].numpy()
        return DecodedToken(
            token=int(self._tokens[index % 2]),
            position=first + index,
            scores=record[:, :3].copy(),
            depths=record[:, 3].astype(np.uint8),
            seconds=seconds,
        )

    def _graph(self, draw: bool) -> torch.cuda.CUDAGraph:
        """The captured step; the sequence in the buffers is left as it was."""
        if draw not in self._graphs:
            buffers = self.step.buffers
            kept = [tensor.clone() for tensor in (buffers.token, buffers.position)]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # Compiling must be over before the capture; the position written here is written again later.
                self.step.run(draw)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                self.step.run(draw)
            buffers.token.copy_(kept[0])
            buffers.position.copy_(kept[1])
            self._graphs[draw] = graph
        return self._graphs[draw]
