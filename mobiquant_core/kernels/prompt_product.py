"""A prompt times planes on Hopper: a plan of its tokens in one launch, the product straight from planes in another.

Fused weights are multiplied in the same launch, every token at a depth of its own in each section. No dense weight is
written and the host reads nothing back. The second kernel (prompt_kernel.py) is Gluon, for compute
capability 9.0 and bf16 only; everywhere else many_tokens.py takes another road. It knows neither layers nor routers.
"""

import warnings
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.kernels import reference
from mobiquant_core.kernels.prompt_plan import (
    MOST_SECTIONS,
    MOST_TOKENS,
    NARROWEST,
    ROWS,
    SURPLUS,
    WIDEST,
    WIDEST_NARROW,
    most_tiles,
    plan,
)
from mobiquant_core.kernels.quick_launch import quick_launch
from mobiquant_core.packing import PackedWeight, section, unpack

_WORKS: dict[torch.device, bool] = {}


def takes(x: Float[Tensor, "tokens in_features"], sections: int = 1) -> bool:
    """Whether `multiply` is written for these tokens on their card, and for so many sections."""
    if sections > MOST_SECTIONS.value:
        return False
    if x.dtype != torch.bfloat16 or not x.is_cuda or not _is_hopper(x.device):
        return False
    # Shared memory is filled in pieces of 16 bytes of a row.
    aligned = x.stride(1) == 1 and not (x.stride(0) % 8 or x.shape[1] % 8 or x.data_ptr() % 16)
    return aligned and x.stride(0) >= x.shape[1] and x.shape[0] <= MOST_TOKENS and _kernel() is not None


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


@cache
def _kernel() -> Any:
    """The product, or None where this Triton has no Gluon for Hopper."""
    try:
        from mobiquant_core.kernels.prompt_kernel import product_kernel
    except (ImportError, AttributeError):
        return None
    return product_kernel


def works(device: torch.device) -> bool:
    """Whether the product compiles here and agrees with the definition, tried once; until then not while a graph is
    captured, which does not allow the wait that a trial takes."""
    if device not in _WORKS:
        if torch.cuda.is_current_stream_capturing():
            return False
        _WORKS[device] = _agrees(device)
    return _WORKS[device]


def _agrees(device: torch.device) -> bool:
    """Tries small weights of several blocks of rows and groups, alone and fused, at mixed depths that make tiles of
    every kind and at one depth."""
    generator = torch.Generator(device).manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (4, 12, 6, 128), generator=generator, device=device, dtype=torch.int32)
    # Steps of 2^-6 and edges of -2^-5.
    ranges = torch.full((12, 6, 16), 0x2400 - 0x58000000, dtype=torch.int32, device=device)
    fused = PackedWeight(words, ranges, 768, (144, 48))
    # 256 tokens and a surplus, 60, 100, and 256 with 72 left.
    mixed = torch.tensor([1] * 280 + [2] * 60 + [3] * 100 + [4] * 328, dtype=torch.uint8, device=device)
    mixed = mixed[torch.randperm(mixed.numel(), generator=generator, device=device)]
    same = torch.full_like(mixed, 2)
    alone, both = section(fused, 0), torch.stack((mixed, same))
    x = torch.randn(mixed.numel(), 768, generator=generator, device=device).bfloat16()
    # As of most models: a variant that is compiled here is compiled for them.
    shift, bits = torch.randn(4, 192, generator=generator, device=device), MobiQuantConfig().bits_by_depth
    try:
        agrees = True
        for packed, depths in ((alone, mixed[None]), (alone, same[None]), (fused, both), (fused, both.flip(0))):
            own = shift[:, : packed.out_features]
            parts = zip(multiply(packed, x, depths, shift=own), own.split(packed.sections, 1), strict=True)
            for index, (found, part) in enumerate(parts):
                codes = unpack(section(packed, index))
                expected = reference.mixed_linear(x, *codes, depths[index], None, part, bits_by_depth=bits)
                agrees &= torch.allclose(found, expected, rtol=0.02, atol=0.02)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Gluon is young: whatever its compiler raises on another version, prompts take the other road.
        agrees = False
    if not agrees:
        warnings.warn("Prompts take dense weights: the product straight from planes does not work here.", stacklevel=2)
    return agrees


def multiply(
    packed: PackedWeight,
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, "sections tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
) -> list[Float[Tensor, "tokens rows"]]:
    """Every token times every section at its own depth there, in bf16."""
    parts = x.new_empty(x.shape[0] * packed.out_features).split([x.shape[0] * rows for rows in packed.sections])
    made = plan(x, depths, packed.slices, packed.sections)
    boxes = (
        _box(tokens, most.value)
        for tokens, most in ((x, WIDEST), (made.x, WIDEST), (made.x, NARROWEST), (made.x, SURPLUS))
    )
    bias, shift, gain = (None if t is None else t.float().contiguous() for t in (bias, shift, gain))
    # Sums of both halves of every narrow tile, of which a depth has one in each section.
    sums = x.new_empty(made.arrived.numel() * 2 * ROWS.value * WIDEST_NARROW.value, dtype=torch.float32)
    arguments = (
        *boxes, packed.planes, packed.ranges, made.tokens, made.tiles, made.sizes, parts[0], gain, bias, shift, sums,
        made.arrived, packed.planes.stride(0), packed.groups, most_tiles(x.shape[0], packed.slices), x.shape[0],
        packed.out_features, packed.slices,
    )  # fmt: skip
    quick_launch(_kernel(), (_programs(x.device), 1, 1), arguments, num_warps=8, launch_pdl=True)
    return [part.view(x.shape[0], -1) for part in parts]


def _box(tokens: Float[Tensor, "tokens in_features"], most: int) -> Any:
    """What the card needs to bring so many tokens of a stage into shared memory by itself."""
    descriptor, columns, layout = _box_kind()
    return descriptor(tokens, list(tokens.shape), list(tokens.stride()), [most, columns], layout)


@cache
def _box_kind() -> tuple[Any, int, Any]:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from mobiquant_core.kernels.prompt_cuts import COLUMNS

    return TensorDescriptor, COLUMNS.value, gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@cache
def _programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
