"""The main kernels as a compiler's input, and what it makes of them: run in a process in which Triton compiles.

What a test knows of here is data; a card is known by its compute capability alone, so that no GPU is needed.
"""

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from mobiquant_core.kernels import likeliest, step_statistics
from mobiquant_core.kernels.attention import attention_kernel
from mobiquant_core.kernels.batch_gemv import batch_gemv_kernel
from mobiquant_core.kernels.plane_gemv import plane_gemv_kernel, routed_gemv_kernel
from mobiquant_core.kernels.prompt_kernel import product_kernel
from mobiquant_core.kernels.route import prepare_kernel

ALIGNED = [["tt.divisibility", 16]]


def multiplied(capability: int, tokens: int, units: tuple[int, ...], overlap: int) -> dict[str, str]:
    """The product of 1 to 4 tokens, or of more; with `overlap` the next kernel starts before this one ends."""
    pointers = {"p_w": "*i32", "p_r": "*i32", "p_x": "*i32", "p_m": "*fp32", "p_depth": "*u8", "p_y": "*fp32"}
    numbers = dict.fromkeys(("o_plane", "NG", "rows", "tokens", "end0", "end1"), "i32")
    constants = {"p_bias": None, "p_shift": None, "p_gain": None, "SLICES": 4, "WARPS": (2, 1)}
    if tokens <= 4:
        kernel = plane_gemv_kernel
        constants |= {"TOKENS": tokens, "UNITS": units, "FLAGS": (False, 32, overlap, 1, True, True)}
    else:
        kernel = batch_gemv_kernel
        pointers |= {"p_m": "*i32", "p_plan": "*i32"}
        numbers["padded"] = "i32"
        constants |= {"TT": tokens // 4, "FLAGS": (False, bool(overlap), True)}
        del pointers["p_depth"], numbers["tokens"]
    aligned = [*pointers, "o_plane", "NG", "rows"]
    made = _compiled(kernel, pointers | numbers, constants, capability, warps=2, overlap=bool(overlap), aligned=aligned)
    return {"ttgir": made.asm["ttgir"], "ptx": made.asm["ptx"]}


def routed(capability: int, kernel: str, mode: int, router: str) -> str:
    """PTX of a kernel of the decode step: `prepare`, `product` or `attention`, with a router of that kind."""
    overlap, sketch = capability >= 90, router == "sketch"
    types = {"eps": "fp32", "p_direction": "*fp16", "p_energy": "*fp16"}
    types |= dict.fromkeys(("p_w", "p_r", "p_position", "p_count"), "*i32")
    if kernel == "prepare":
        function, warps = prepare_kernel, 1
        types |= {"p_x": "*i8"}
        constants = {"HIDDEN": 16, "GROUPS": 2, "MODE": mode, "PDL": overlap, "SKETCH": sketch}
        constants |= {} if mode == 1 else {"p_norm": None, "p_copy": None}
    elif kernel == "product":
        function, warps = routed_gemv_kernel, 2
        types |= {"p_x": "*i32"}
        constants = {"p_bias": None, "p_shift": None, "p_gain": None}
        constants |= {"UNITS": (4, 2, 1, 1), "WARPS": (2, 1, 4, 8, 2**30)}
        role = (2, 1, False) if router == "leader" else (1, 0, router == "follower")
        constants |= {"FLAGS": (False, 16, 5 * overlap, 1, True, 8, 16, mode, False, sketch, *role)}
        constants |= {"p_small": None} if router == "follower" else {}
    else:
        function, warps = attention_kernel, 4
        types |= {"p_x": "*i8", "p_k": "*bf16", "p_v": "*bf16"}
        constants = {"p_qnorm": None, "p_knorm": None, "SIZES": (64, 2, 2, 64, 16, 2**30, 2, 2)}
        constants |= {"FLAGS": (overlap, False, 16, 0.18, 1e-6, True)}
        if overlap:
            types |= {"p_later": "*i32", "p_later_range": "*i32"}
        else:
            constants |= {"p_later": None, "p_later_range": None}
    signature = {name: "*fp32" if name.startswith("p_") else "i32" for name in function.arg_names}
    signature |= {name: kind for name, kind in types.items() if name in signature}
    return _compiled(function, signature, constants, capability, warps=warps, overlap=overlap).asm["ptx"]


def statistics(capability: int) -> str:
    """PTX of the kernel that describes a decode step's residual stream."""
    signature = {"p_h": "*fp32", "p_out": "*fp32", "width": "i32"}
    return _compiled(step_statistics.residual_kernel, signature, {"BLOCK": 8192}, capability, warps=16).asm["ptx"]


def likeliest_tokens(capability: int) -> list[str]:
    """PTX of the kernels that find a vocabulary's likeliest tokens and draw the next."""
    types = {"p_logits": "*bf16", "p_token": "*i64", "p_history": "*i64", "p_position": "*i32"}
    types |= dict.fromkeys(("p_ids", "p_largest_ids"), "*i32")
    cases = (
        (likeliest.parts_kernel, {"MOST": 64, "BLOCK": 2048}, 8),
        (likeliest.merge_kernel, {"MOST": 64, "PARTS": 64}, 16),
        (likeliest.draw_kernel, {"MOST": 64}, 4),
    )
    made = []
    for kernel, constants, warps in cases:
        names = [name for name in kernel.arg_names if name not in constants]
        signature = {name: types.get(name, "*fp32" if name.startswith("p_") else "i32") for name in names}
        made.append(_compiled(kernel, signature, constants, capability, warps=warps).asm["ptx"])
    return made


def prompt_product() -> tuple[str, int]:
    """PTX of a prompt's product on Hopper, and the bytes of shared memory that it needs."""
    kernel = product_kernel
    constants = {"p_gain": None, "p_bias": None, "p_shift": None, "SLICES": 4}
    boxes = {"x_desc": 256, "sorted_desc": 256, "narrow_desc": 64, "surplus_desc": 32}
    layout = gl.NVMMASharedLayout(128, 16, 2)
    types = {name: f"tensordesc<bf16[{most}, 64],{layout!r}>" for name, most in boxes.items()}
    types |= {"p_y": "*bf16", "p_partial": "*fp32"}
    names = kernel.arg_names
    pointers = [name for name in names if name.startswith("p_") and name not in constants]
    signature = {name: "constexpr" if name in constants else "*i32" if name in pointers else "i32" for name in names}
    source = GluonASTSource(
        kernel,
        signature | types,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): ALIGNED for name in [*pointers, "rows"]},
    )
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "launch_pdl": True})
    return made.asm["ptx"], made.metadata.shared


def _compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], capability: int, *, warps: int,
    overlap: bool = False, aligned: list[str] | tuple[()] = (),
) -> CompiledKernel:  # fmt: skip
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): ALIGNED for name in aligned},
    )
    options = {"num_warps": warps, "launch_pdl": overlap}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)
