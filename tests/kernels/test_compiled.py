"""What the compiler makes of the main kernels, without a GPU: lanes stay lanes, loads are wide."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

_COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mobiquant_core.kernels.batch_gemv import batch_gemv_kernel
from mobiquant_core.kernels.plane_gemv import plane_gemv_kernel

capability, tokens, units, overlap = json.loads(sys.argv[1])
pointers = {"p_w": "*i32", "p_r": "*i32", "p_x": "*i32", "p_m": "*fp32", "p_depth": "*u8", "p_y": "*fp32"}
numbers = dict.fromkeys(("o_plane", "NG", "rows", "tokens", "end0", "end1"), "i32")
constants = {"p_bias": None, "p_shift": None, "p_gain": None, "SLICES": 4, "WARPS": (2, 1)}
if tokens <= 4:
    kernel = plane_gemv_kernel
    constants |= {"TOKENS": tokens, "UNITS": tuple(units), "FLAGS": (False, 32, overlap, 1, True, True)}
else:
    kernel = batch_gemv_kernel
    pointers |= {"p_m": "*i32", "p_plan": "*i32"}
    numbers["padded"] = "i32"
    constants |= {"TT": tokens // 4, "FLAGS": (False, bool(overlap), True)}
    del pointers["p_depth"], numbers["tokens"]
names = kernel.arg_names
aligned = [*pointers, "o_plane", "NG", "rows"]
source = ASTSource(
    kernel,
    {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")},
    constexprs={(names.index(name),): value for name, value in constants.items()},
    attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
)
made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 2, "launch_pdl": bool(overlap)})
print(json.dumps({"ttgir": made.asm["ttgir"], "ptx": made.asm["ptx"]}))
"""


_COMPILE_ROUTED = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mobiquant_core.kernels.attention import attention_kernel
from mobiquant_core.kernels.plane_gemv import routed_gemv_kernel
from mobiquant_core.kernels.route import prepare_kernel

capability, kernel, mode, router, heads = json.loads(sys.argv[1])
sketch = router == "sketch"
half = {"p_direction": "*fp16", "p_energy": "*fp16"}
integers = {"p_w": "*i32", "p_r": "*i32", "p_position": "*i32", "p_count": "*i32"}
if kernel == "prepare":
    kernel, warps = prepare_kernel, 1
    integers |= {"p_x": "*i8"}
    constants = {"HIDDEN": 16, "GROUPS": 2, "MODE": mode, "PDL": capability >= 90, "SKETCH": sketch}
    constants |= {} if mode == 1 else {"p_norm": None}
elif kernel == "product":
    kernel, warps = routed_gemv_kernel, 2
    integers |= {"p_x": "*i32"}
    constants = {"p_bias": None, "p_shift": None, "p_gain": None, "UNITS": (4, 2, 1, 1), "WARPS": (2, 1, 4, 8, 2**30)}
    role = (2, 1, False) if router == "leader" else (1, 0, router == "follower")
    constants |= {"FLAGS": (False, 16, 5 * (capability >= 90), 1, True, 8, 16, mode, False, sketch, *role)}
    constants |= {"p_small": None} if router == "follower" else {}
else:
    kernel, warps = attention_kernel, 4
    integers |= {"p_x": "*i8"}
    half |= {"p_k": "*bf16", "p_v": "*bf16"}
    constants = {"p_qnorm": None, "p_knorm": None, "SIZES": (64, heads, heads, 64, 16, 2**30, 2, 2)}
    constants |= {"FLAGS": (capability >= 90, False, 16, 0.18, 1e-6, True)}
    if capability >= 90:
        integers |= {"p_later": "*i32", "p_later_range": "*i32"}
    else:
        constants |= {"p_later": None, "p_later_range": None}
signature = {name: "*fp32" if name.startswith("p_") else "i32" for name in kernel.arg_names}
signature |= {name: kind for name, kind in (half | integers | {"eps": "fp32"}).items() if name in signature}
source = ASTSource(
    kernel,
    signature | dict.fromkeys(constants, "constexpr"),
    constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
)
options = {"num_warps": warps, "launch_pdl": capability >= 90}
print(json.dumps({"ptx": compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]}))
"""


def compiled(program: str, setting: list, home: Path) -> dict[str, str]:
    environment = {"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0", "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(setting)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("capability", "tokens", "units", "overlap"), [(90, 1, (4, 2, 1, 1), 3), (80, 4, (1, 1, 1, 1), 0), (90, 8, (), 1)]
)
def test_lanes_and_loads(capability: int, tokens: int, units: tuple[int, ...], overlap: int, tmp_path: Path) -> None:
    made = compiled(_COMPILE, [capability, tokens, units, overlap], tmp_path)
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
def test_routed_kernels_compile(capability: int, kernel: str, mode: int, router: str, tmp_path: Path) -> None:
    made = compiled(_COMPILE_ROUTED, [capability, kernel, mode, router, 2], tmp_path)
    before, _, after = made["ptx"].partition("griddepcontrol.wait")
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
