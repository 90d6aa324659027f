"""Streams tokens from a captured decode step: the device runs one token ahead of the host.

Budgets are numbers in device memory, so a change of budget is a small copy. It knows token ids, not text.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mobiquant_core.decode import CANDIDATES, Sampling
from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.step import Step


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
    """A step with its graph, and the sequence its buffers hold."""

    def __init__(self, step: Step) -> None:
        self.step = step
        linears, on_gpu = step.buffers.record.shape[0], step.buffers.record.is_cuda
        self._tokens = torch.zeros(2, dtype=torch.int64, pin_memory=on_gpu)
        self._records = torch.zeros(2, linears, 4, pin_memory=on_gpu)

    def begin(
        self,
        token: int,
        position: int = 0,
        keys: Sequence[Float[Tensor, "kv_heads positions head_dim"]] = (),
        values: Sequence[Float[Tensor, "kv_heads positions head_dim"]] = (),
    ) -> None:
        """Start from `token` at `position`, after the keys and values of the positions right before it.

        A cache with a sliding window hands over no more than the window reaches.
        """
        buffers = self.step.buffers
        if position >= self.step.room:
            raise KernelError(
                f"The decoder has room for {self.step.room:,} positions; the prompt has {position:,}. "
                "Shorten it, or make the decoder with more room."
            )
        for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
            held = slice(position - key.shape[-2], position)
            buffers.keys[layer, :, held] = key
            buffers.values[layer, :, held] = value
        buffers.token.fill_(token)
        buffers.position.fill_(position)

    def set_budget(self, thresholds: Float[Tensor, " linears"], depths: Tensor | None = None) -> None:
        """Thresholds for the router's scores; `depths` (0: the router decides) fixes linears for other policies."""
        control = torch.zeros(self.step.buffers.control.shape)
        control[:, 0] = thresholds
        if depths is not None:
            control[:, 1] = depths
        # From pageable memory the driver takes its own copy of so few bytes before it returns: nothing waits.
        self.step.buffers.control.copy_(control, non_blocking=True)

    def set_sampling(self, sampling: Sampling, position: int) -> None:
        """How tokens are drawn; the first of its numbers decides what follows the token at `position`."""
        if not sampling.on_device:
            raise KernelError(
                f"A device draws from at most {CANDIDATES} tokens, not from top_k={sampling.top_k}. Lower it."
            )
        buffers = self.step.buffers
        buffers.settings.copy_(torch.tensor([sampling.temperature, float(sampling.top_k)]))
        uniforms = sampling.uniforms[: self.step.room - position]
        buffers.uniforms[position : position + len(uniforms)] = uniforms.to(buffers.uniforms.device)

    def stream(self, count: int, *, cancel: threading.Event | None = None) -> Iterator[DecodedToken]:
        """Up to `count` tokens; a cancel ends it after the token under way."""
        replay = self.replay
        position = int(self.step.buffers.position)
        count = min(count, self.step.room - position)
        events: list[torch.cuda.Event] = []
        started = time.perf_counter()
        for index in range(count + 1):
            if index < count and not (cancel is not None and cancel.is_set()):
                replay()
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

    @cached_property
    def replay(self) -> Callable[[], None]:
        """The captured step; the sequence in the buffers is left as it was."""
        return replayable(self.step.run, (self.step.buffers.token, self.step.buffers.position))


def replayable(run: Callable[[], None], kept: Sequence[Tensor]) -> Callable[[], None]:
    """`run` as one launch: captured on a GPU, itself elsewhere. `kept` keep their values over the capture."""
    if not kept[0].is_cuda:
        return run
    before = [tensor.clone() for tensor in kept]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Compiling must be over before the capture; the position written here is written again later.
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating meanwhile: a model that is being loaded, say.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    for tensor, value in zip(kept, before, strict=True):
        tensor.copy_(value)
    return graph.replay
