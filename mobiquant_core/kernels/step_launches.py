"""The launches of a decode step beside its products: sizes and flags of route.py, attention.py and step_parts.py."""

import math
from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float, Float16
from torch import Tensor

from mobiquant_core.kernels.activation import SplitActivations
from mobiquant_core.kernels.attention import attention_kernel
from mobiquant_core.kernels.route import AS_IT_IS, EXTRA, GATE, HEADS, NORM, prepare_kernel
from mobiquant_core.kernels.step_parts import dense_input_kernel, embed_kernel
from mobiquant_core.packing import PackedWeight

MODE_AS_IT_IS, MODE_NORM, MODE_GATE = (int(mode.value) for mode in (AS_IT_IS, NORM, GATE))
PADDED_HEADS, PADDED_EXTRA = int(HEADS.value), int(EXTRA.value)
SPLITS = 16
"""Programs that share the positions of a key-value head."""
MOST_PARTS = 64
_POSITIONS = 128
"""Positions of a block of attention, where 128 dims are stored in 16 bits: larger heads take smaller blocks."""
_HELD = 1
"""Blocks that a program reads before the newest token's numbers are there; each takes 64 KiB of its SM."""
_EACH = 1
"""Blocks that a program takes before a second one helps."""
_LINE_BYTES = 128
_BLOCK = 1024


@dataclass(frozen=True)
class AttentionSizes:
    """What attention needs to know of a model."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int
    norm_eps: float

    @property
    def share(self) -> int:
        """Query heads of a key-value head."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """`share`, padded to a power of two."""
        return triton.next_power_of_2(self.share)

    @property
    def fills_groups(self) -> bool:
        """Whether a key-value head's outputs are whole groups, a power of two of them: then it prepares them."""
        width = self.share * self.head_dim
        return width % 128 == 0 and width & (width - 1) == 0

    @property
    def sums(self) -> int:
        """Numbers that the programs leave for the last of them."""
        return self.kv_heads * SPLITS * self.rows * (self.head_dim + 2)


def groups_per_part(width: int) -> int:
    """Groups that one program prepares: few, but never more than 32 parts."""
    groups, each = -(-width // 128), 2
    while -(-groups // each) > 32:
        each *= 2
    return each


def part_count(width: int) -> int:
    return triton.cdiv(triton.cdiv(width, 128), groups_per_part(width))


def prepare(
    source: Float[Tensor, "1 values"],
    norm: Float[Tensor, " width"] | None,
    direction: Float16[Tensor, "hidden width"] | None,
    out: SplitActivations,
    parts: Float[Tensor, " numbers"],
    width: int,
    hidden: int,
    mode: int,
    dependent: bool,
    sketch: bool = False,
    copy: Float[Tensor, " width"] | None = None,
) -> None:
    """Activation bytes and router parts of a site's input; into `copy` what a norm reads."""
    each = groups_per_part(width)
    prepare_kernel[(part_count(width),)](
        source, norm, direction, out.bytes, out.scales, parts, copy, width, out.scales.shape[1], HIDDEN=hidden,
        GROUPS=each, MODE=mode, PDL=dependent, SKETCH=sketch, num_warps=max(1, each // 2), launch_pdl=dependent,
    )  # fmt: skip


def dense_input(
    source: Float[Tensor, "1 values"],
    norm: Float[Tensor, " width"] | None,
    out: Float[Tensor, "1 width"],
    eps: float,
    mode: int,
    dependent: bool,
    copy: Float[Tensor, " width"] | None = None,
) -> None:
    """A site's input in 16 bits; into `copy` what a norm reads."""
    width = out.shape[1]
    dense_input_kernel[(-(-width // _BLOCK),)](
        source, norm, out, copy, width, eps, MODE=mode, BLOCK=_BLOCK, PDL=dependent, num_warps=4, launch_pdl=dependent
    )


def attend(
    sizes: AttentionSizes,
    qkv: Float[Tensor, "1 rows"],
    cache: tuple[Float[Tensor, "kv_heads room head_dim"], Float[Tensor, "kv_heads room head_dim"]],
    rotary: Float[Tensor, "room head_dim"],
    norms: tuple[Tensor | None, Tensor | None],
    position: Tensor,
    scratch: tuple[Tensor, Tensor],
    out: Float[Tensor, "1 width"],
    prepared: tuple[Tensor | None, SplitActivations, Tensor, int, bool],
    *,
    dependent: bool,
    exact: bool,
    later: tuple[PackedWeight, int] | None = None,
) -> None:
    """out = attention of the newest token.

    `prepared`: (a closed form's energies, bytes, parts, half a part or 0 for raw output, whether there is a closed
    form). `later`: a weight whose first plane is brought into the L2 cache meanwhile, up to so many bytes, on cards
    with launches that overlap.
    """
    energy, split, parts, hidden, sketch = prepared
    # What is kept in 32 bits has nothing to be rounded to.
    exact = exact or cache[0].dtype == torch.float32
    block = max(16, min(_POSITIONS, _POSITIONS * 256 // (sizes.head_dim * cache[0].element_size())))
    planes, ranges, lines = None, None, 0
    if later is not None:
        planes, ranges = later[0].planes, later[0].ranges
        lines = min(later[1], planes[0].numel() * 4) // _LINE_BYTES
    attention_kernel[(sizes.kv_heads, SPLITS)](
        qkv, *cache, rotary, *norms, position, *scratch, out, energy, split.bytes, split.scales, parts,
        planes, ranges, sizes.heads, sizes.kv_heads, cache[0].shape[1], lines,
        SIZES=(sizes.head_dim, sizes.share, sizes.rows, block, SPLITS, sizes.window, _HELD, _EACH),
        FLAGS=(dependent, exact, hidden, math.log2(math.e) * sizes.head_dim**-0.5, sizes.norm_eps, sketch),
        num_warps=8, launch_pdl=dependent,
    )  # fmt: skip


def embed(table: Float[Tensor, "vocabulary width"], token: Tensor, out: Float[Tensor, "1 width"]) -> None:
    """out = table[token], the token read on the device."""
    embed_kernel[(-(-out.shape[1] // _BLOCK),)](table, token, out, out.shape[1], BLOCK=_BLOCK, PDL=False, num_warps=4)
