"""Which depth every token gets at every linear, during one forward pass of the model.

All state of a call lives in a context variable, so threads and requests with different budgets share one model.
It does not know how scores are made (policies) or how thresholds are found (budget).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mobiquant_core.site_product import Readouts, SiteProduct, planes_together, readouts
from mobiquant_core.token_scores import TokenScorer, leading_depths, non_increasing

if TYPE_CHECKING:
    from mobiquant_core.linear import MobiLinear

_MANY = 17
"""Tokens from which a dense weight for all of them is quicker than planes for each."""

Depths = int | Tensor
"""One depth for all tokens of the call, or uint8 [tokens]."""
DepthRows = Sequence[int] | Tensor
"""The same of consecutive linears: one for each, or uint8 [linears, tokens]."""


@dataclass(frozen=True, eq=False)
class RuntimeSite:
    """Linears of one layer that read the same input, and the router that scores that input for all of them."""

    layer: int
    name: str
    linears: tuple[MobiLinear, ...]
    router: nn.Module | None
    leader: RuntimeSite | None = None
    """The site before whose router decides about these linears too, where they have none of their own."""

    @cached_property
    def first(self) -> int:
        """Index of its first linear; the others follow without a gap."""
        return self.linears[0].index

    @cached_property
    def readouts(self) -> Readouts:
        """Those of its linears side by side, for products of all of them; planes are made of linears that are done."""
        return readouts(self.linears)

    @cached_property
    def decided(self) -> slice:
        """Where the linears that its router decides about stand among all: its own, and those of sites it leads."""
        count = len(self.linears) if self.router is None else self.router.heads
        return slice(self.first, self.first + int(count))  # type: ignore[arg-type]


@runtime_checkable
class InputPolicy(Protocol):
    """Scores that depend on the activations."""

    @property
    def name(self) -> str: ...
    @property
    def reads_input(self) -> bool: ...
    @property
    def leads(self) -> bool:
        """Whether the scores of a leader's input hold for the sites behind it as well."""
        ...

    def scores(
        self, site: RuntimeSite, x: Float[Tensor, "tokens in_features"]
    ) -> Float[Tensor, "tokens heads extra"]: ...


@runtime_checkable
class TokenPolicy(InputPolicy, Protocol):
    """An input policy with a quicker way for a single token."""

    def token_scorer(self, site: RuntimeSite) -> TokenScorer | None: ...


@runtime_checkable
class PositionPolicy(Protocol):
    """Scores that depend on the position alone, for all linears at once."""

    @property
    def name(self) -> str: ...
    @property
    def reads_input(self) -> bool: ...

    def position_scores(self, positions: Tensor) -> Float[Tensor, "tokens linears extra"]: ...


def reader(policy: InputPolicy, site: RuntimeSite) -> RuntimeSite:
    """The site whose input decides about `site`: itself, or the one that leads it."""
    return site if site.leader is None or not policy.leads else site.leader


@dataclass(frozen=True, eq=False)
class RoutingPlan:
    """A policy and the threshold of every linear: all that a budget amounts to. Made by QuantizedModel.plan."""

    policy: InputPolicy | PositionPolicy
    thresholds: Float[Tensor, " linears"]
    requested_bits: float
    mode: str

    @cached_property
    def threshold_list(self) -> list[float]:
        return self.thresholds.tolist()

    @cached_property
    def token_scorer(self) -> Callable[[RuntimeSite], TokenScorer | None]:
        """The policy's quick way for a single token at a site, where it has one."""
        return self.policy.token_scorer if isinstance(self.policy, TokenPolicy) else lambda _: None


class Recorder:
    """Collects the scores and depths of one forward pass."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Tensor, DepthRows]] = {}
        self._token_parts: dict[int, tuple[np.ndarray, list[int]]] = {}

    def add(self, first: int, scores: Float[Tensor, "tokens linears extra"], depths: DepthRows) -> None:
        """Scores and depths of consecutive linears, starting at index `first`."""
        self._parts[first] = (scores, depths)

    def add_token(self, first: int, scores: Float[np.ndarray, " scores"], depths: list[int]) -> None:
        """The same of one token from a `TokenScorer`."""
        self._token_parts[first] = (scores, depths)

    def scores(self) -> Float[Tensor, "tokens linears extra"]:
        """All linears in canonical order."""
        for first, (row, depths) in self._token_parts.items():
            self._parts[first] = (torch.from_numpy(non_increasing([row], row.size // len(depths)))[None], depths)
        parts = [self._parts[first][0] for first in sorted(self._parts)]
        return torch.cat([part.to(parts[0].device) for part in parts], dim=1).float()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(depths uint8 [linears, tokens], scores float32 [linears, tokens, extra])."""
        if not self._parts and self._token_parts:
            return self._token_arrays()
        scores = self.scores().transpose(0, 1).cpu().numpy()
        # One copy from a device for each site, not for each linear.
        rows = [row for first in sorted(self._parts) for row in _on_host(self._parts[first][1])]
        depths = np.stack([np.broadcast_to(row, scores.shape[1]) for row in rows]).astype(np.uint8)
        return depths, scores

    def _token_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The same where every site went the quick way: all sites at once."""
        parts = [self._token_parts[first] for first in sorted(self._token_parts)]
        depths = np.array([depth for _, of_site in parts for depth in of_site], np.uint8)
        scores = non_increasing([row for row, _ in parts], parts[0][0].size // len(parts[0][1]))
        return depths[:, None], scores[:, None]


class RoutingPass:
    """One forward of the model under a plan: `with RoutingPass(sites, plan, position): model(...)`.

    `sites` has one entry per linear index. Linears that share an input are scored once, and where a router leads
    other sites, those take the depths it found at the same token.
    """

    def __init__(
        self, sites: Sequence[RuntimeSite], plan: RoutingPlan, position: int = 0, recorder: Recorder | None = None
    ) -> None:
        self.plan = plan
        self._sites = sites
        self._position = position
        self._recorder = recorder
        self._site: RuntimeSite | None = None
        self._x: Tensor | None = None
        self._depths: DepthRows = ()
        self._fixed: DepthRows | None = None
        self._product: SiteProduct | None = None
        self._thresholds: dict[torch.device, Tensor] = {}
        self._token: Token | None = None

    def __enter__(self) -> RoutingPass:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)
        # The pass may outlive the forward inside a recorder's owner; the activations must not.
        self._x = self._site = self._product = None

    def depths(self, linear: MobiLinear, x: Float[Tensor, "... in_features"]) -> Depths:
        """The depth of each of x's tokens at `linear`."""
        rows, place = self._routed(linear, x)
        chosen = rows[place]
        return chosen if isinstance(chosen, int) else chosen.to(x.device)

    def product(
        self, linear: MobiLinear, x: Float[Tensor, "... in_features"]
    ) -> Float[Tensor, "... out_features"] | None:
        """Its product where one launch makes those of all linears that read x; None where it makes its own."""
        taken = None if self._product is None else self._product.take(linear, x)
        site = self._sites[linear.index]
        if taken is not None or linear is not site.linears[0]:
            return taken
        planes = planes_together(site.linears, x)
        if planes is None:
            return None
        rows, place = self._routed(linear, x)
        depths = _table(rows[place : place + len(site.linears)], x)
        self._product = SiteProduct(site.linears, planes, x, depths, site.readouts)
        return self._product.take(linear, x)

    def _routed(self, linear: MobiLinear, x: Float[Tensor, "... in_features"]) -> tuple[DepthRows, int]:
        """Depths of x's tokens at consecutive linears, and which of them is `linear`."""
        if not self.plan.policy.reads_input:
            if self._fixed is None:
                self._fixed = self._route_positions(x)
            return self._fixed, linear.index
        own = self._sites[linear.index]
        site = reader(self.plan.policy, own)  # type: ignore[arg-type]
        if site is not self._site or (site is own and x is not self._x):
            self._route_site(site, x)
        return self._depths, linear.index - site.first

    def _route_site(self, site: RuntimeSite, x: Float[Tensor, "... in_features"]) -> None:
        # The quick way knows no gradients.
        single = x.numel() == x.shape[-1] and not x.requires_grad
        scorer = self.plan.token_scorer(site) if single else None
        if scorer is None:
            self._route_tokens(site, x)
        else:
            self._route_token(site, scorer(x))
        self._site, self._x = site, x

    def _route_tokens(self, site: RuntimeSite, x: Float[Tensor, "... in_features"]) -> None:
        scores = self.plan.policy.scores(site, x.reshape(-1, x.shape[-1]))  # type: ignore[union-attr]
        self._depths = self._above_thresholds(scores, site.first)
        if self._recorder is not None:
            self._recorder.add(site.first, scores, self._depths)

    def _route_token(self, site: RuntimeSite, scores: Float[np.ndarray, " scores"]) -> None:
        depths = leading_depths(scores.tolist(), self.plan.threshold_list[site.decided])
        self._depths = depths
        if self._recorder is not None:
            self._recorder.add_token(site.first, scores, depths)

    def _route_positions(self, x: Float[Tensor, "... in_features"]) -> DepthRows:
        length = x.shape[-2] if x.dim() > 1 else 1
        positions = torch.arange(self._position, self._position + length, device=x.device)
        positions = positions.repeat(x.numel() // x.shape[-1] // length)
        scores = self.plan.policy.position_scores(positions)  # type: ignore[union-attr]
        depths = self._above_thresholds(scores, 0)
        if self._recorder is not None:
            self._recorder.add(0, scores, depths)
        return depths

    def _above_thresholds(self, scores: Float[Tensor, "tokens heads extra"], first: int) -> DepthRows:
        """Depths of consecutive linears: 1 + the number of scores strictly above the threshold."""
        tokens, heads, extra = scores.shape
        limits = self.plan.threshold_list[first : first + heads]
        if tokens == 1 and scores.device.type == "cpu":
            # Decoding on a CPU: a Python comparison is cheaper than three tensor operations.
            return [
                1 + sum(value > limit for value in row) for row, limit in zip(scores[0].tolist(), limits, strict=True)
            ]
        if tokens >= _MANY and all(math.isinf(limit) for limit in limits):
            # At both ends of the budgets every token has the depth that the host knows: nothing has to be sorted.
            return [1 if limit > 0 else 1 + extra for limit in limits]
        limits = self._thresholds_on(scores.device)[first : first + heads]
        return depths_above(scores, limits).t().contiguous()

    def _thresholds_on(self, device: torch.device) -> Float[Tensor, " linears"]:
        if device not in self._thresholds:
            self._thresholds[device] = self.plan.thresholds.to(device)
        return self._thresholds[device]


def depths_above(
    scores: Float[Tensor, "tokens linears extra"], limits: Float[Tensor, " linears"]
) -> UInt8[Tensor, "tokens linears"]:
    """1 + the number of scores strictly above the linear's threshold."""
    return (scores > limits[:, None]).sum(-1, dtype=torch.uint8) + 1


def _table(rows: DepthRows, x: Float[Tensor, "... in_features"]) -> UInt8[Tensor, "linears tokens"]:
    """A depth for every token of x at every linear."""
    if isinstance(rows, Tensor):
        return rows.to(x.device)
    table = torch.empty(len(rows), x.numel() // x.shape[-1], dtype=torch.uint8, device=x.device)
    for row, depth in zip(table, rows, strict=True):
        row.fill_(depth)
    return table


class FixedDepth:
    """A pass that runs every linear at one depth, or each linear at its own (one entry per linear index)."""

    def __init__(self, depth: int | Sequence[int] | Tensor) -> None:
        self._depth = depth if isinstance(depth, int) else [int(value) for value in depth]
        self._token: Token | None = None

    def __enter__(self) -> FixedDepth:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)

    def depths(self, linear: MobiLinear, x: Float[Tensor, "... in_features"]) -> Depths:
        return self._depth if isinstance(self._depth, int) else self._depth[linear.index]


class _AllSlices:
    """What holds where no pass is active."""

    def depths(self, linear: MobiLinear, x: Float[Tensor, "... in_features"]) -> Depths:
        return linear.config.depths


_ALL_SLICES = _AllSlices()
_current: ContextVar[RoutingPass | FixedDepth | _AllSlices] = ContextVar("mobiquant_routing", default=_ALL_SLICES)


def current_pass() -> RoutingPass | FixedDepth | _AllSlices:
    """The pass of this thread or task; outside of any, one that uses all slices."""
    return _current.get()


def product(linear: MobiLinear, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"] | None:
    """What the pass of this thread made for a linear together with others that read x; None where it makes its own."""
    found = _current.get()
    return found.product(linear, x) if isinstance(found, RoutingPass) else None


@contextmanager
def full_depth() -> Iterator[None]:
    """All slices for everything inside, whatever pass is around it."""
    token = _current.set(_ALL_SLICES)
    try:
        yield
    finally:
        _current.reset(token)


def _on_host(depths: DepthRows) -> Sequence[int] | np.ndarray:
    return depths.cpu().numpy() if isinstance(depths, Tensor) else depths
