"""The products of linears that read the same input, made in one launch when the first of them is asked.

It knows fused planes and depths, not where depths come from. A routing pass owns it, and it holds nothing that was
asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.kernels import dispatch
from mobiquant_core.packing import PackedWeight

if TYPE_CHECKING:
    from mobiquant_core.linear import MobiLinear


@dataclass(frozen=True)
class Readouts:
    """What is done to the products of several linears, side by side; None where it is done to none of them."""

    bias: Float[Tensor, " rows"] | None
    shift: Float[Tensor, "depths rows"] | None
    gain: Float[Tensor, "depths rows"] | None


def readouts(linears: Sequence[MobiLinear]) -> Readouts:
    """Those of linears one after another; a linear without gets what changes nothing."""
    return Readouts(_joined(linears, "bias", 0.0), _joined(linears, "shift", 0.0), _joined(linears, "gain", 1.0))


def _joined(linears: Sequence[MobiLinear], name: str, absent: float) -> Tensor | None:
    found = [getattr(linear, name) for linear in linears]
    if all(value is None for value in found):
        return None
    some = next(value for value in found if value is not None)
    return torch.cat(
        [
            some.new_full((*some.shape[:-1], linear.out_features), absent) if value is None else value.data
            for linear, value in zip(linears, found, strict=True)
        ],
        dim=-1,
    ).float()


def planes_together(linears: Sequence[MobiLinear], x: Float[Tensor, "... in_features"]) -> PackedWeight | None:
    """The planes that one launch multiplies by x for all these linears; None where each is better off alone."""
    shared = linears[0].shared
    if shared is None or len(linears) < 2 or any(linear.shared is not shared for linear in linears):
        return None
    return shared if dispatch.whole_prompt(shared, x.reshape(-1, x.shape[-1])) else None


class SiteProduct:
    """What every linear of a site makes of x, until each has asked for its own."""

    def __init__(
        self,
        linears: Sequence[MobiLinear],
        planes: PackedWeight,
        x: Float[Tensor, "... in_features"],
        depths: UInt8[Tensor, "linears tokens"],
        readouts: Readouts,
    ) -> None:
        parts = dispatch.fused_planes(
            x.reshape(-1, x.shape[-1]), planes, depths, readouts.bias, readouts.shift, readouts.gain
        )
        self._x: Tensor | None = x
        self._left = {
            linear.index: part.view(*x.shape[:-1], linear.out_features)
            for linear, part in zip(linears, parts, strict=True)
        }

    def take(self, linear: MobiLinear, x: Tensor) -> Tensor | None:
        """The product of a linear with the very same x, once; None for any other."""
        if x is not self._x:
            return None
        taken = self._left.pop(linear.index, None)
        if not self._left:
            self._x = None
        return taken
