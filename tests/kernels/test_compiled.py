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
    constants |= {"TOKENS": tokens, "UNITS": tuple(units), "FLAGS": (False, 32, overlap, 1, True)}
else:
    kernel = batch_gemv_kernel
    pointers |= {"p_m": "*i32", "p_plan": "*i32"}
    numbers["padded"] = "i32"
    constants |= {"TT": tokens // 4, "FLAGS": (False, overlap, 1, 8, True)}
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


@pytest.mark.parametrize(
    ("capability", "tokens", "units", "overlap"), [(90, 1, (4, 2, 1, 1), 1), (80, 4, (1, 1, 1, 1), 0), (90, 8, (), 1)]
)
def test_lanes_and_loads(capability: int, tokens: int, units: tuple[int, ...], overlap: int, tmp_path: Path) -> None:
    setting = json.dumps([capability, tokens, units, overlap])
    environment = {"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, setting], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    products = [line for line in made["ttgir"].splitlines() if "mma.sync" in line]
    layouts = set(re.findall(r"tensor<[^>]*(#\w+)>", "\n".join(products)))
    assert products and layouts
    for name in layouts:
        # The product is a matter of a whole warp: element i of the last axis must sit in lane i % 32.
        layout = re.search(rf"{name} = (.*)", made["ttgir"]).group(1)
        assert re.search(r"threadsPerWarp = \[(1, )*32\]", layout) and re.search(r"order = \[(1, )?0\]", layout)
    assert "ld.global.nc.L1::no_allocate.L2::128B.v4.b32" in made["ptx"]
    assert ("griddepcontrol.wait" in made["ptx"]) == bool(overlap)
