"""Lends the one captured step of a model to one run at a time; a run that gets none decodes through the modules.

It decides which runs the step can serve, how many positions its cache holds and when it is made anew. It imports no
Triton before a model has planes to be read by it.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from mobiquant_core.convert import QuantizedModel
from mobiquant_core.policies import Policy

if TYPE_CHECKING:
    from mobiquant_core.fast_decode.session import Session

CHEAP_CACHE_BYTES = 2**28
"""A cache up to this size is made for more positions than a run asked for, so that later runs fit as well."""
_ROOM_STEP = 256


def build_session(quantized: QuantizedModel, room: int) -> "Session":
    """A session for sequences of up to `room` positions, in the model's own number type."""
    from mobiquant_core.fast_decode.from_model import step_weights
    from mobiquant_core.fast_decode.session import Session
    from mobiquant_core.fast_decode.step import Step

    weights = step_weights(quantized, room)
    table = weights.embedding
    step = Step(weights, room, dtype=table.dtype, asm=table.is_cuda, record_residuals=True)
    return Session(step, quantized.config.depths - 1)


class Lender:
    """Holds at most one session of a model, for as long as it is large enough."""

    def __init__(
        self,
        quantized: QuantizedModel,
        context_length: int,
        build: Callable[[QuantizedModel, int], "Session"] = build_session,
    ) -> None:
        self.problem = ""
        """Why runs get no session any more; set it to make them all decode through the modules."""
        self._quantized, self._context, self._build = quantized, context_length, build
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._most_room: float = float("inf")
        """What memory allowed."""

    @contextlib.contextmanager
    def lend(self, policy: Policy, positions: int) -> Iterator["Session | None"]:
        """A session with room for `positions` and no other user; None where the run decodes through the modules."""
        if self.why_not(policy) or not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            yield self._session_for(positions)
        finally:
            if self._session is not None and self._session.broken:
                self._give_up("the fast step failed while it ran")
            self._lock.release()

    def why_not(self, policy: Policy) -> str:
        """Why runs under this policy decode through the modules; empty where the step serves them."""
        if self.problem:
            return self.problem
        if policy.reads_input and policy.name != "router":
            return f"the policy {policy.name} reads what the step does not keep"
        if any(linear.packed is None for linear in self._quantized.linears):
            return "its products run without kernels"
        if policy.reads_input and any(site.router is None and site.leader is None for site in self._quantized.sites):
            return "a site has no router"
        from mobiquant_core.fast_decode import from_model

        return from_model.why_not(self._quantized)

    def room_for(self, positions: int) -> int:
        """Positions of the cache made for a run that needs `positions`."""
        from mobiquant_core.fast_decode.from_model import step_shape

        shape = step_shape(self._quantized)
        number = self._quantized.model.get_input_embeddings().get_parameter("weight").element_size()
        cheap = CHEAP_CACHE_BYTES // (2 * shape.layers * shape.kv_heads * shape.head_dim * number)
        needed = -(-positions // _ROOM_STEP) * _ROOM_STEP
        return int(max(needed, min(cheap, self._context, self._most_room)))

    def _session_for(self, positions: int) -> "Session | None":
        if self._session is None or self._session.room < positions:
            # The smaller one goes first: there are never two caches.
            self._session = None
            room = self.room_for(positions)
            if room <= self._most_room:
                self._session = self._made(room)
        return self._session

    def _made(self, room: int) -> "Session | None":
        try:
            return self._build(self._quantized, room)
        except torch.OutOfMemoryError:
            self._most_room = room // 2
            _tell(f"the device has no memory for a cache of {room:,} positions")
        except Exception as error:  # a compiler can fail in any way, and the modules can do the work
            self._give_up((str(error).splitlines() or [""])[0] or type(error).__name__)
        return None

    def _give_up(self, reason: str) -> None:
        self._session, self.problem = None, reason
        _tell(reason)


def _tell(reason: str) -> None:
    warnings.warn(f"Generation decodes through the model's slower modules: {reason}.", stacklevel=2)
