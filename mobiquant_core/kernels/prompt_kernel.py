"""The product of a prompt on Hopper, in Gluon: some warps cut weights out of planes while others multiply.

Y^T = W X^T. One program per multiprocessor: four warps fill a ring in shared memory with tokens and with bf16 weights,
64 columns a stage, and eight multiply 128 rows by up to 288 tokens out of it. No dense weight is ever written to
memory. For compute capability 9.0 only; it knows no torch.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from mobiquant_core.kernels.prompt_cuts import COLUMNS
from mobiquant_core.kernels.prompt_fill import fill
from mobiquant_core.kernels.prompt_multiply import multiply
from mobiquant_core.kernels.prompt_plan import ROWS, SURPLUS, WIDEST
from mobiquant_core.kernels.prompt_results import PIECE

_SLOTS = gl.constexpr(2)
"""Of each ring: all that shared memory has room for."""
_REGISTERS = gl.constexpr(152)
"""Of a filling thread. With fewer, words that are on their way would be waited for to be put aside; with more, the
multiplying ones could not hold the sums of a surplus besides those of a tile."""
_ALL = gl.constexpr(gl.BlockedLayout([1], [32], [8], [0]))


@gluon.jit
def _barriers(SLOTS: gl.constexpr, COUNT: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(barriers.index(slot), count=COUNT)
    return barriers


@gluon.jit
def _ring(SLOTS: gl.constexpr, DTYPE: gl.constexpr):
    """Slots for tokens, a surplus of them and weights, of 64 columns, with barriers that say when all are used."""
    LAYOUT: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    x = gl.allocate_shared_memory(DTYPE, [SLOTS, WIDEST, COLUMNS], LAYOUT)
    more = gl.allocate_shared_memory(DTYPE, [SLOTS, SURPLUS, COLUMNS], LAYOUT)
    w = gl.allocate_shared_memory(DTYPE, [SLOTS, ROWS, COLUMNS], LAYOUT)
    return x, more, w, _barriers(SLOTS, 1)


@gluon.jit(do_not_specialize=["o_plane", "groups", "most_tiles", "tokens"])
def product_kernel(
    x_desc, sorted_desc, narrow_desc, surplus_desc, p_planes, p_ranges, p_token, p_tile, p_size, p_y, p_gain, p_bias,
    p_shift, p_partial, p_arrived, o_plane, groups, most_tiles, tokens, rows, SLICES: gl.constexpr,
):  # fmt: skip
    """Every unit of 128 rows by a tile of tokens, after `plan_kernel`."""
    o_plane = o_plane.to(gl.int64)
    # Stages take turns in two rings, so that the compiler sees that neither is written where the other is read. Both
    # stages of a slot are full at once, when tokens and weights are there.
    even, odd = _ring(_SLOTS, gl.bfloat16), _ring(_SLOTS, gl.bfloat16)
    full = _barriers(_SLOTS, 2)
    told = gl.allocate_shared_memory(gl.int32, [_SLOTS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    piece = gl.allocate_shared_memory(gl.bfloat16, [PIECE, ROWS], gl.NVMMASharedLayout(128, 16, 2))
    fence_async_shared()
    # What the launch before wrote is visible from here on.
    gl.inline_asm_elementwise(
        "griddepcontrol.wait; mov.b32 $0, $1;", "=r,r", [gl.arange(0, 256, layout=_ALL)], dtype=gl.int32, is_pure=False,
        pack=1,
    )  # fmt: skip
    boxes = (x_desc, sorted_desc, narrow_desc, surplus_desc)
    gl.warp_specialize(
        [
            (
                multiply,
                (p_token, p_tile, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, told, piece,
                 groups, tokens, rows, _SLOTS),
            ),
            (
                fill,
                (boxes, p_planes, p_ranges, p_tile, p_size, even, odd, full, told, o_plane, groups, most_tiles,
                 _SLOTS, SLICES),
            ),
        ],
        [4],
        [_REGISTERS],
    )  # fmt: skip
