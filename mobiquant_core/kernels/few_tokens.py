"""One to sixteen tokens times planes: the host side of plane_gemv.py and batch_gemv.py."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.errors import KernelError
from mobiquant_core.kernels.activation import SplitActivations, split
from mobiquant_core.kernels.batch_gemv import batch_gemv_kernel
from mobiquant_core.kernels.plane_gemv import plane_gemv_kernel, routed_gemv_kernel
from mobiquant_core.kernels.sorted_tokens import SortedActivations, sort, tiles_for
from mobiquant_core.kernels.tuning import Tuning, tuning_for
from mobiquant_core.packing import PackedWeight

MOST_TOKENS = 16
MOST_UNSORTED = 4
"""Up to so many tokens are one tile in any order."""
_NO_TILE = 2**30


@dataclass(frozen=True)
class RouterParts:
    """Where a product finds its token's depth: route.py names the tensors."""

    parts: Float[Tensor, " numbers"]
    small: Float[Tensor, " parameters"] | None
    control: Float[Tensor, "linears 4"]
    record: Float[Tensor, "linears 4"]
    count: int
    hidden: int
    mode: int
    norm_eps: float
    sketch: bool = False
    """Whether the router is a closed form instead of a perceptron."""
    followers: int = 0
    """Linears after the product's own whose depths it decides and records as well."""
    follows: bool = False
    """Whether the depth is there already, recorded by an earlier product."""


def prepare(
    x: Float[Tensor, "tokens in_features"], depths: UInt8[Tensor, "sections tokens"]
) -> SplitActivations | SortedActivations:
    """Tokens in the form that `multiply` takes so many of; from five on it holds good for these depths only."""
    if x.shape[0] > MOST_TOKENS:
        raise KernelError(f"{MOST_TOKENS} tokens are the most, not {x.shape[0]}. Use many_tokens.multiply.")
    return split(x) if x.shape[0] <= MOST_UNSORTED else sort(x, depths)


def multiply(
    packed: PackedWeight,
    x: SplitActivations | SortedActivations,
    depths: UInt8[Tensor, "sections tokens"],
    out: Float[Tensor, "tokens out"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
    *,
    add: bool = False,
    dependent: bool = False,
    tuning: Tuning | None = None,
    asm: bool = True,
) -> Float[Tensor, "tokens out"]:
    """out = (out if add) + gain[depth - 1] * (W_depth x) + bias + shift[depth - 1], for x as `prepare` gives it.

    `dependent` overlaps it with the kernel before, on cards from compute capability 9.0.
    """
    tokens, groups, rows = x.tokens, packed.groups, packed.out_features
    if len(packed.sections) > 3:
        raise KernelError(f"3 fused weights are the most, not {len(packed.sections)}. Fuse fewer.")
    tuning = tuning_for(rows, groups, tokens, out.device) if tuning is None else tuning
    together, ends = _tiles_together(packed, tuning)
    grid = (packed.planes.shape[1] // together,)
    shared = {"num_warps": together * tuning.split, "launch_pdl": dependent, "maxnreg": tuning.registers}
    if isinstance(x, SortedActivations):
        batch_gemv_kernel[grid](
            packed.planes, packed.ranges, x.bytes.view(torch.int32), x.terms, x.plan, out, bias, shift, gain,
            packed.planes.stride(0), groups, x.bytes.shape[1], rows, *ends,
            TT=tiles_for(tokens), SLICES=packed.slices, WARPS=(together, tuning.split),
            FLAGS=(add, dependent, asm), **shared,
        )  # fmt: skip
        return out
    plane_gemv_kernel[grid](
        packed.planes, packed.ranges, x.bytes.view(torch.int32), x.scales, depths, out, bias, shift, gain,
        packed.planes.stride(0), groups, rows, tokens, *ends,
        TOKENS=1 if tokens == 1 else MOST_UNSORTED, SLICES=packed.slices, UNITS=tuning.units,
        WARPS=(together, tuning.split),
        FLAGS=(add, groups & -groups, tuning.late if dependent else 0, tuning.pieces, asm, tuning.held), **shared,
    )  # fmt: skip
    return out


def multiply_routed(
    packed: PackedWeight,
    x: SplitActivations,
    router: RouterParts,
    out: Float[Tensor, "1 out"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
    *,
    add: bool = False,
    dependent: bool = False,
    tuning: Tuning | None = None,
    asm: bool = True,
) -> Float[Tensor, "1 out"]:
    """`multiply` for one token whose depth is decided here, from the router's parts."""
    groups, rows = packed.groups, packed.out_features
    tuning = tuning_for(rows, groups, 1, out.device, in_step=True) if tuning is None else tuning
    together, ends = _tiles_together(packed, tuning)
    routed_gemv_kernel[(packed.planes.shape[1] // together,)](
        packed.planes, packed.ranges, x.bytes.view(torch.int32), x.scales, out, bias, shift, gain, router.parts,
        router.small, router.control, router.record, packed.planes.stride(0), packed.in_features, rows,
        router.norm_eps,
        UNITS=tuning.units, WARPS=(together, tuning.split, packed.slices, *ends),
        FLAGS=(add, groups & -groups, tuning.late if dependent else 0, tuning.pieces, asm, router.count, router.hidden,
               router.mode, tuning.held, router.sketch, len(packed.sections), router.followers, router.follows),
        num_warps=together * tuning.split, launch_pdl=dependent, maxnreg=tuning.registers,
    )  # fmt: skip
    return out


def _tiles_together(packed: PackedWeight, tuning: Tuning) -> tuple[int, tuple[int, int]]:
    """(tiles of one program, first tiles of the second and third section): a program's tiles share a section."""
    ends = packed.section_tiles
    together = tuning.tiles if all(end % tuning.tiles == 0 for end in ends) else 1
    inner = (*ends[:-1], _NO_TILE, _NO_TILE)
    return together, (inner[0], inner[1])
