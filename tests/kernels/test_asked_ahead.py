"""Which cache lines attention's programs ask for ahead of a later product: each once, none beyond."""

import pytest
import torch
import triton
import triton.language as tl

from mobiquant_core.kernels import attention

_HEADS, _SPLITS = 2, 4


@triton.jit
def _count(p, o, m, asm: tl.constexpr):
    tl.atomic_add(p + o, 1, mask=m != 0)


@triton.jit
def _programs(p_w, p_r, lines, splits, heads: tl.constexpr, most: tl.constexpr):
    i_head, i_split = tl.program_id(0), tl.program_id(1)
    attention.ask_for_plane(p_w, p_r, lines, i_head, i_split, splits, heads, most, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a hint leaves nothing to see; the interpreter can count")
@pytest.mark.parametrize("splits", [1, 3, 4])
@pytest.mark.parametrize("groups", [0, 2, 31, 400])
def test_every_line_once(splits: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "prefetch_l2", _count)
    words, ranges = (torch.zeros(401, size, dtype=torch.int32) for size in (128, 16))
    _programs[(_HEADS, _SPLITS)](words, ranges, groups * 4, splits, heads=_HEADS, most=_SPLITS)
    for found, size in ((words, 128), (ranges, 16)):
        lines = torch.zeros(401 * size, dtype=torch.int32)
        lines[: groups * size : 32] = 1
        assert torch.equal(found.flatten(), lines)
