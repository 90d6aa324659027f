"""A prompt times planes on Hopper: tokens sorted by depth in one launch, multiplied straight from planes in another.

No dense weight is written and the host reads nothing back. The second kernel (prompt_kernel.py) is Gluon, for compute
capability 9.0 and bf16 only; everywhere else many_tokens.py takes another road. It knows neither layers nor routers.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from mobiquant_core.kernels import many_tokens
from mobiquant_core.kernels.lanes import begin_dependent
from mobiquant_core.kernels.route import add2
from mobiquant_core.packing import PackedWeight

MOST_TOKENS = 65535
"""Four counts of tokens share a 64-bit number."""
_ROWS, _WIDEST, _COLUMNS = 128, 256, 64
"""What one program multiplies at once: prompt_kernel.py has the same numbers."""
_SORTED_AT_ONCE, _BLOCK, _COPIED = 8, 2048, 2048
_WORKS: dict[torch.device, bool] = {}


@dataclass(frozen=True)
class SortedTokens:
    """Tokens in the order of their depth.

    Behind them `x` has room for a tile, whose contents do not matter: where tiles reach past the end of a tensor they
    come in slowly. It holds nothing where all tokens have the same depth and fill their tiles.
    """

    x: Float[Tensor, "padded_tokens in_features"]
    tokens: Int32[Tensor, " tokens"]
    counts: Int32[Tensor, " depths_and_one"]
    """Whether `x` holds the tokens, then how many have each depth."""
    arrived: Int32[Tensor, " units"]
    """Halves of each narrow unit that are done, at first none."""


@triton.jit
def _in_field(b_depth):
    """A one in the field of a depth: four counts of 16 bits in one number."""
    return tl.where(b_depth > 0, tl.full(b_depth.shape, 1, tl.int64) << (16 * (tl.maximum(b_depth, 1) - 1)), 0)


@triton.jit
def _field(counts, depth):
    return ((counts >> (16 * (depth - 1))) & 0xFFFF).to(tl.int32)


@triton.jit
def sort_kernel(
    p_x, p_depth, p_out, p_token, p_count, p_arrived, o_x, tokens, width, units,
    TOKENS: tl.constexpr, SLICES: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A few tokens: their places in the stable order by depth, and a copy there unless all are whole tiles of one
    depth. The first program writes how many tokens have each depth, and that no half of any unit has arrived."""
    begin_dependent(PDL)
    program = tl.program_id(0)
    i_own = tl.arange(0, TOKENS)
    i_token = program * TOKENS + i_own
    m_token = i_token < tokens
    b_all, b_before = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    for first in range(0, tokens, BLOCK):
        i_other = first + tl.arange(0, BLOCK)
        b_one = _in_field(tl.load(p_depth + i_other, mask=i_other < tokens, other=0).to(tl.int64))
        b_all += b_one
        b_before += tl.where(i_other < program * TOKENS, b_one, 0)
    found = tl.reduce((b_all, b_before), 0, add2)
    b_depth = tl.load(p_depth + i_token, mask=m_token, other=1).to(tl.int64)
    b_beside = tl.load(p_depth + program * TOKENS + i_own, mask=m_token, other=0).to(tl.int64)
    b_same = (b_beside[None, :] == b_depth[:, None]) & (i_own[None, :] < i_own[:, None])
    b_place = _field(found[1], b_depth) + tl.sum(b_same.to(tl.int32), 1)
    most = 0
    for k in tl.static_range(1, SLICES + 1):
        count = _field(found[0], k)
        most = tl.maximum(most, count)
        b_place += tl.where(b_depth > k, count, 0)
        if program == 0:
            tl.store(p_count + k, count)
    tl.store(p_token + b_place, i_token, mask=m_token)
    copied = (most < tokens) | (tokens % TILE != 0)
    if program == 0:
        tl.store(p_count, copied.to(tl.int32))
        for first in range(0, units, BLOCK):
            i_unit = first + tl.arange(0, BLOCK)
            tl.store(p_arrived + i_unit, 0, mask=i_unit < units)
    if copied:
        o_from, o_to = i_token.to(tl.int64) * o_x, b_place.to(tl.int64) * width
        for first in range(0, width, COLUMNS):
            i_column = first + tl.arange(0, COLUMNS)
            m = m_token[:, None] & (i_column < width)[None, :]
            b_x = tl.load(p_x + o_from[:, None] + i_column[None, :], mask=m)
            tl.store(p_out + o_to[:, None] + i_column[None, :], b_x, mask=m)


def takes(x: Float[Tensor, "tokens in_features"]) -> bool:
    """Whether `multiply` is written for these tokens on their card."""
    if x.dtype != torch.bfloat16 or not x.is_cuda or torch.cuda.get_device_capability(x.device) != (9, 0):
        return False
    # Shared memory is filled in pieces of 16 bytes of a row.
    aligned = x.stride(1) == 1 and not (x.stride(0) % 8 or x.shape[1] % 8 or x.data_ptr() % 16)
    return aligned and x.stride(0) >= x.shape[1] and x.shape[0] <= MOST_TOKENS and _kernel() is not None


@cache
def _kernel() -> Any:
    """The product, or None where this Triton has no Gluon for Hopper."""
    try:
        from mobiquant_core.kernels.prompt_kernel import product_kernel
    except (ImportError, AttributeError):
        return None
    return product_kernel


def works(device: torch.device) -> bool:
    """Whether the product compiles here and agrees with many_tokens.py, tried once; until then not while a graph is
    captured, which does not allow the wait that a trial takes."""
    if device not in _WORKS:
        if torch.cuda.is_current_stream_capturing():
            return False
        _WORKS[device] = _agrees(device)
    return _WORKS[device]


def _agrees(device: torch.device) -> bool:
    """Tries a small weight of several blocks of rows, groups and widths of tiles, at mixed depths and at one."""
    generator = torch.Generator(device).manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (4, 9, 6, 128), generator=generator, device=device, dtype=torch.int32)
    # Steps of 2^-6 and edges of -2^-5.
    ranges = torch.full((9, 6, 16), 0x2400 - 0x58000000, dtype=torch.int32, device=device)
    packed = PackedWeight(words, ranges, 768, (144,))
    x = torch.randn(512, 768, generator=generator, device=device).bfloat16()
    mixed = (torch.arange(512, device=device) - 300).clamp(0) % 4 + 1
    try:
        agrees = True
        for depths in (mixed.to(torch.uint8), torch.full((512,), 2, dtype=torch.uint8, device=device)):
            expected = many_tokens.multiply(packed, x, depths)
            agrees &= torch.allclose(multiply(packed, x, depths), expected, rtol=0.02, atol=0.02)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Gluon is young: whatever its compiler raises on another version, prompts take the other road.
        agrees = False
    if not agrees:
        warnings.warn("Prompts take dense weights: the product straight from planes does not work here.", stacklevel=2)
    return agrees


def sort(
    x: Float[Tensor, "tokens in_features"], depths: UInt8[Tensor, " tokens"], packed: PackedWeight, section: int = 0
) -> SortedTokens:
    """What the product reads besides x, made in one launch."""
    tokens, device = x.shape[0], x.device
    units = packed.slices * -(-packed.sections[section] // _ROWS)
    overlaps = x.is_cuda and torch.cuda.get_device_capability(device) >= (9, 0)
    sizes = (tokens, packed.slices + 1, units)
    found = SortedTokens(
        torch.empty(tokens + _WIDEST, x.shape[1], dtype=x.dtype, device=device),
        *(torch.empty(size, dtype=torch.int32, device=device) for size in sizes),
    )
    sort_kernel[(triton.cdiv(tokens, _SORTED_AT_ONCE),)](
        x, depths.contiguous(), found.x, found.tokens, found.counts, found.arrived, x.stride(0), tokens, x.shape[1],
        units, TOKENS=_SORTED_AT_ONCE, SLICES=packed.slices, BLOCK=_BLOCK, COLUMNS=_COPIED, TILE=_WIDEST,
        PDL=overlaps, num_warps=8,
    )  # fmt: skip
    return found


def multiply(
    packed: PackedWeight,
    x: Float[Tensor, "tokens in_features"],
    depths: UInt8[Tensor, " tokens"],
    bias: Float[Tensor, " out"] | None = None,
    shift: Float[Tensor, "depths out"] | None = None,
    gain: Float[Tensor, "depths out"] | None = None,
    *,
    section: int = 0,
) -> Float[Tensor, "tokens out"]:
    """Every token times one section at its own depth, in bf16."""
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    found = sort(x, depths, packed, section)
    out = x.new_empty(x.shape[0], packed.sections[section])
    ends = (0, *packed.section_tiles)
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    boxes = [TensorDescriptor.from_tensor(tensor, [_WIDEST, _COLUMNS], layout) for tensor in (x, found.x)]
    bias, shift, gain = (None if t is None else t.float().contiguous() for t in (bias, shift, gain))
    # Sums of both halves of every narrow tile, of which a depth has one.
    partial = torch.empty(found.arrived.numel() * _ROWS * _WIDEST, dtype=torch.float32, device=x.device)
    _kernel()[(_programs(x.device),)](
        *boxes, packed.planes, packed.ranges, found.tokens, found.counts, out, gain, bias, shift, partial,
        found.arrived, packed.planes.stride(0), packed.groups, ends[section], ends[section + 1] - ends[section],
        out.shape[1], SLICES=packed.slices, num_warps=8, launch_pdl=True,
    )  # fmt: skip
    return out


@cache
def _programs(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
