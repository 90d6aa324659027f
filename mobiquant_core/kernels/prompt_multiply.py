"""The multiplying warps of the prompt product: from the rings to results (Gluon)."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from mobiquant_core.kernels.prompt_plan import ENTRY, KINDS, ROWS, SURPLUS, TILE_ROWS, WIDEST
from mobiquant_core.kernels.prompt_results import store, tokens_of, with_other_half
from mobiquant_core.kernels.prompt_units import advance, before, of_a_word, parts_of

_THREADS = gl.constexpr(gl.BlockedLayout([1], [32], [8], [0]))


@gluon.jit
def _stage(ring, slot, acc, more, WIDTH: gl.constexpr, SURPLUSES: gl.constexpr):
    """64 columns of a tile and of its surplus; what was under way before is done then."""
    acc = warpgroup_mma(ring[2].index(slot), ring[0].index(slot).slice(0, WIDTH).permute((1, 0)), acc, is_async=True)
    if SURPLUSES:
        more = warpgroup_mma(ring[2].index(slot), ring[1].index(slot).permute((1, 0)), more, is_async=True)
        return warpgroup_mma_wait(2, deps=(acc, more))
    else:
        return warpgroup_mma_wait(1, deps=(acc,)), more


@gluon.jit
def _multiply_unit(
    p_token, p_tile, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, piece, groups, tokens, rows,
    tile, row, half, slot, phase, SLOTS: gl.constexpr, KIND: gl.constexpr,
):  # fmt: skip
    """A unit of one kind."""
    WIDTH: gl.constexpr = WIDEST if KIND == 0 else 2 * WIDEST >> KIND
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, WIDTH, 16])
    MORE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, SURPLUS, 16])
    acc = gl.zeros([ROWS, WIDTH], gl.float32, layout=ACC)
    more = gl.zeros([ROWS, SURPLUS], gl.float32, layout=MORE)
    parts = parts_of(groups) if KIND > 1 else 1
    for i in range(gl.where(half == parts - 1, groups - half * (groups // 2), groups // 2)):
        mbarrier.wait(full.index(slot), phase)
        # A stage is free when the products of the one after it have begun and its own are done.
        acc, more = _stage(even, slot, acc, more, WIDTH, KIND == 0)
        # Triton takes a name for unchanged that only takes over another's value: no variable for the last slot.
        mbarrier.arrive(odd[3].index(before(slot, SLOTS)), pred=i > 0)
        acc, more = _stage(odd, slot, acc, more, WIDTH, KIND == 0)
        mbarrier.arrive(even[3].index(slot))
        slot, phase = advance(slot, phase, SLOTS)
    # Asked for while the last products are under way: during the others, sums leave no registers for it.
    p_own = p_tile + tile * ENTRY
    depth, place, valid = gl.load(p_own + 1), gl.load(p_own + 2), gl.load(p_own + 3)
    numbers = tokens_of(p_token + place, valid, WIDTH)
    # Results of a section stand behind those of the sections before it.
    first_row = gl.load(p_own + 5) * TILE_ROWS
    own_rows = gl.minimum(gl.load(p_own + 6) * TILE_ROWS, rows) - first_row
    p_own_y = p_y + first_row.to(gl.int64) * tokens
    o_depth = (depth - 1) * rows + first_row
    if KIND == 0:
        acc, more = warpgroup_mma_wait(0, deps=(acc, more))
    else:
        acc = warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(odd[3].index(before(slot, SLOTS)))
    last = True
    if KIND > 1:  # noqa: SIM102  (the compiler asks about constants and about values apart)
        if parts > 1:
            acc, last = with_other_half(acc, p_partial, p_arrived, gl.load(p_own + 7) + row, half, WIDTH, ACC)
    if last:
        store(
            acc, piece, numbers, valid, row * ROWS, own_rows, p_own_y, p_gain, p_bias, p_shift, first_row, o_depth,
            WIDTH, ACC,
        )  # fmt: skip
        if KIND == 0:
            others = tokens_of(p_token + place + WIDEST, valid - WIDEST, SURPLUS)
            store(
                more, piece, others, valid - WIDEST, row * ROWS, own_rows, p_own_y, p_gain, p_bias, p_shift,
                first_row, o_depth, SURPLUS, MORE,
            )  # fmt: skip
    return slot, phase


@gluon.jit
def _told(told, full, slot, phase):
    """The unit whose first group comes next, or -1."""
    mbarrier.wait(full.index(slot), phase)
    return gl.max(told.index(slot).load(_THREADS), axis=0)


@gluon.jit
def multiply(
    p_token, p_tile, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, told, piece, groups,
    tokens, rows, SLOTS: gl.constexpr,
):  # fmt: skip
    """Every unit of this program."""
    slot, phase = groups * 0, groups * 0
    word = _told(told, full, slot, phase)
    while word >= 0:
        tile, row, half = of_a_word(word)
        kind = gl.load(p_tile + tile * ENTRY)
        for own in gl.static_range(KINDS):
            if kind == own:
                slot, phase = _multiply_unit(
                    p_token, p_tile, p_y, p_gain, p_bias, p_shift, p_partial, p_arrived, even, odd, full, piece,
                    groups, tokens, rows, tile, row, half, slot, phase, SLOTS, own,
                )  # fmt: skip
        word = _told(told, full, slot, phase)
