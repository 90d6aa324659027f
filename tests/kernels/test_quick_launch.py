"""Launches that know their variant: it is looked up again where it could be another one, and only there."""

from types import SimpleNamespace

import pytest
import torch

from mobiquant_core.kernels import quick_launch as module
from mobiquant_core.kernels.quick_launch import quick_launch


class _Kernel:
    """Like Triton's: looks variants up, which launch with a grid and all arguments."""

    def __init__(self) -> None:
        self.params = [SimpleNamespace(do_not_specialize=loose) for loose in (False, True, False)]
        self.looked_up, self.launched = 0, []

    def __getitem__(self, grid: tuple[int, int, int]):
        def look_up(*arguments: object, num_warps: int):
            assert num_warps == 4
            self.looked_up += 1
            self.launched.append((grid, arguments))
            return {grid: lambda *others: self.launched.append((grid, others))}

        return look_up


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VARIANTS", {})


def test_every_call_launches_with_its_own_arguments() -> None:
    kernel, x, y = _Kernel(), torch.zeros(8), torch.ones(8)
    for arguments in ((x, 5, 2), (y, 6, 2), (x, 7, 2)):
        quick_launch(kernel, (3, 1, 1), arguments, num_warps=4)
    assert kernel.launched == [((3, 1, 1), (x, 5, 2)), ((3, 1, 1), (y, 6, 2)), ((3, 1, 1), (x, 7, 2))]
    assert kernel.looked_up == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x, 5, 3),  # a number that the kernel is compiled for
        lambda x: (x, 2**31, 2),  # one that needs 64 bits
        lambda x: (x[1:], 5, 2),  # an address that is no multiple of 16 bytes
        lambda x: (x.half(), 5, 2),
        lambda x: (None, 5, 2),
    ],
)
def test_what_a_variant_depends_on_is_looked_up(other) -> None:
    kernel, x = _Kernel(), torch.zeros(8)
    quick_launch(kernel, (1, 1, 1), (x, 5, 2), num_warps=4)
    quick_launch(kernel, (1, 1, 1), other(x), num_warps=4)
    assert kernel.looked_up == 2
