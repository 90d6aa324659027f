"""What the compiler makes of the main kernels, without a GPU: lanes stay lanes, loads are wide."""

import re
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.xdist_group("compiler")


@pytest.mark.parametrize(
    ("capability", "tokens", "units", "overlap"), [(90, 1, (4, 2, 1, 1), 3), (80, 4, (1, 1, 1, 1), 0), (90, 8, (), 1)]
)
def test_lanes_and_loads(
    compiled: Callable, capability: int, tokens: int, units: tuple[int, ...], overlap: int
) -> None:
    made = compiled("multiplied", capability, tokens, units, overlap)
    products = [line for line in made["ttgir"].splitlines() if "mma.sync" in line]
    layouts = set(re.findall(r"tensor<[^>]*(#\w+)>", "\n".join(products)))
    assert products and layouts
    for name in layouts:
        # The product is a matter of a whole warp: element i of the last axis must sit in lane i % 32.
        layout = re.search(rf"{name} = (.*)", made["ttgir"]).group(1)
        assert re.search(r"threadsPerWarp = \[(1, )*32\]", layout) and re.search(r"order = \[(1, )?0\]", layout)
    assert "ld.global.nc.L1::no_allocate.L2::128B.v4.b32" in made["ptx"]
    before, _, after = made["ptx"].partition("griddepcontrol.wait")
    assert bool(after) == bool(overlap)
    if tokens == 1:
        # One token's first weights, 4 groups and a lane's own range, are loads that no compiler moves behind the wait.
        assert before.count("ld.global.L1::no_allocate.L2::128B.v4.b32") == 4
        assert before.count("ld.global.L1::no_allocate.v2.b32") == 1
        # The next kernel starts where the depth is below 3, or behind the products.
        assert "launch_dependents" not in before and after.count("griddepcontrol.launch_dependents") == 2


@pytest.mark.parametrize(
    ("capability", "kernel", "mode", "router"),
    [
        (90, "prepare", 1, "sketch"), (80, "prepare", 2, "sketch"), (90, "product", 1, "sketch"),
        (80, "attention", 0, "sketch"), (90, "attention", 0, "sketch"), (90, "prepare", 1, "leader"),
        (90, "product", 1, "leader"), (80, "product", 0, "follower"),
    ],
)  # fmt: skip
def test_routed_kernels_compile(compiled: Callable, capability: int, kernel: str, mode: int, router: str) -> None:
    before, _, after = compiled("routed", capability, kernel, mode, router).partition("griddepcontrol.wait")
    assert bool(after) == (capability >= 90)
    if kernel == "prepare" and after:
        # Energies and the centre are constants: they come in while the kernel before still runs.
        assert "ld.global" in before and ".b16" not in "".join(re.findall(r"ld\.global\S*", after))
    if kernel == "attention":
        # Further blocks of keys and values, and a later product's words and ranges: a loop each.
        assert before.count("prefetch.global.L2") == (4 if after else 0)
        if after:
            # The blocks that are held and the router come in while the kernel before still runs.
            assert before.count("ld.global") > 100
