"""Several tokens of mixed depths: builds variants in parallel, checks them against float64, times them against cuBLAS.

`python benchmarks/few_check.py --sections check few prefill --seconds 85 --out few.json`. Compiling and checks run in
worker processes, timing afterwards in this one. Nothing starts when the time is up.
"""

import argparse
import json
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from mobiquant_core.bench import kernel as bench
from mobiquant_core.bench import prefill, timing
from mobiquant_core.kernels import few_tokens, grouped_gemm, many_tokens
from mobiquant_core.kernels.activation import SplitActivations, split
from mobiquant_core.kernels.tuning import Tuning
from mobiquant_core.kernels.unpack import unpack_depths
from mobiquant_core.packing import PackedWeight

ONES = (1, 1, 1, 1)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LIMITS = {"bf16": 5e-3, "fp16": 1e-3, "fp32": 1e-3}


def cut(*choices: tuple[int, int, int | None]) -> list[Tuning]:
    return [Tuning(tiles, warps, ONES, registers=registers) for tiles, warps, registers in choices]


VARIANTS: dict[tuple[str, int], list[Tuning]] = {
    ("gate_up", 16): cut((1, 1, 128), (1, 2, 128), (2, 1, 128), (2, 2, 128), (1, 1, 144)),
    ("gate_up", 8): cut((1, 1, 128), (1, 2, 128), (2, 1, 112)),
    ("o", 16): cut((1, 8, 128), (1, 4, 128), (2, 8, 128), (2, 4, 128)),
    ("o", 8): cut((1, 8, 128), (2, 8, 128)),
    ("qkv", 16): cut((1, 4, 128), (1, 8, 128), (2, 4, 128)),
    ("qkv", 8): cut((1, 4, 128), (1, 8, 128)),
    ("down", 16): cut((1, 8, 128), (1, 4, 128), (2, 8, 128), (2, 4, 128)),
    ("down", 8): cut((1, 8, 128), (2, 8, 128)),
    ("gate_up", 4): [Tuning(2, 1, (4, 4, 2, 2)), Tuning(1, 1, (4, 2, 1, 1))],
    ("o", 4): [Tuning(1, 8, (4, 2, 1, 1))],
}
DEPTHS: dict[str, Callable[[int], list[int]]] = {
    "all 2": lambda tokens: [2] * tokens,
    "all 4": lambda tokens: [4] * tokens,
    "1-2": lambda tokens: [2, 1, 1, 2, 1, 2, 2, 2, 1, 2, 1, 2, 2, 1, 2, 2][:tokens],
    "1-4": lambda tokens: [4, 1, 3, 4, 2, 4, 1, 3, 4, 3, 1, 1, 4, 1, 2, 4][:tokens],
    "most tiles": lambda tokens: [1, 2, 3] + [4] * (tokens - 3),
}
ROWS: list[dict[str, Any]] = []
STARTED = time.perf_counter()
LIMIT = 1e9


def left() -> float:
    return LIMIT - (time.perf_counter() - STARTED)


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:5.1f}] {text}", flush=True)


# ---- tasks of worker processes: each returns lines to print, and (points, worst error) ----


def few_points(width: int, tokens: int, kind: str) -> tuple[list[str], tuple[int, float]]:
    """All row counts and depth patterns of one compiled variant, outputs filled with NaN before."""
    lines, worst, points = [], 0.0, 0
    for seed, rows in enumerate((1, 16, 17, 129, 1000)):
        for pattern in range(7):
            torch.manual_seed(10 * seed + pattern)
            packed = bench.random_packed((rows,), width)
            x = torch.randn(tokens, width, device="cuda").to(DTYPES[kind])
            depths = torch.randint(1, 5, (1, tokens), dtype=torch.uint8, device="cuda")
            if pattern < 4:
                depths.fill_(pattern + 1)
            out = torch.full((tokens, rows), float("nan"), device="cuda", dtype=DTYPES[kind])
            few_tokens.multiply(packed, split(x), depths, out)
            truth = bench.exact(packed, x, depths)
            error = bench.relative_error(out, truth)
            floor = 2e-5 * bench.magnitude(packed, x, depths).norm() / truth.norm()
            points, worst = points + 1, max(worst, error if error == error else 99.0)
            if not error < max(LIMITS[kind], floor.item()):
                lines.append(f"WRONG rows={rows} {width=} {tokens=} {kind} {pattern=} error {error:.1e}")
    return lines[:3], (points, worst)


def road_points(road: str, rows: int, width: int, tokens: int, kind: str) -> tuple[list[str], tuple[int, float]]:
    """One road for prompts on awkward sizes, all depths and mixed ones, with bias, shift and gain."""
    lines, worst = [], 0.0
    for pattern in range(6):
        torch.manual_seed(pattern)
        packed = bench.random_packed((rows,), width)
        x = torch.randn(tokens, width, device="cuda").to(DTYPES[kind])
        depths = torch.randint(1, 5, (tokens,), dtype=torch.uint8, device="cuda")
        if pattern < 4:
            depths.fill_(pattern + 1)
        bias, shift, gain = (torch.randn(*size, device="cuda") for size in ((rows,), (4, rows), (4, rows)))
        y = ROADS[road](packed, x, depths, bias, shift, gain)
        picked = depths.long() - 1
        truth = bench.exact(packed, x, depths[None]) * gain[picked] + bias + shift[picked]
        error = bench.relative_error(y, truth)
        worst = max(worst, error if error == error else 99.0)
        if not error < 8e-3:
            lines.append(f"WRONG road {road} rows={rows} {width=} {tokens=} {kind} {pattern=} error {error:.1e}")
    return lines[:3], (6, worst)


def warm_few(name: str, tokens: int, tuning: Tuning | None) -> tuple[list[str], None]:
    """Compiles one variant as `few` calls it."""
    sections, width = bench.SHAPES[name]
    packed = bench.random_packed(sections, width)
    depths = torch.ones(len(sections), tokens, dtype=torch.uint8, device="cuda")
    out = torch.empty(tokens, sum(sections), device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    few_tokens.multiply(packed, unpaired(x) if tuning is None else split(x), depths, out, tuning=tuning)
    torch.cuda.synchronize()
    return [], None


def warm_road(road: str, name: str) -> tuple[list[str], None]:
    sections, width = bench.SHAPES[name]
    packed = bench.random_packed(sections[:1], width)
    x = torch.randn(prefill.TOKENS, width, device="cuda", dtype=torch.bfloat16)
    ROADS[road](packed, x, prefill.draw_depths((0.25,) * 4, prefill.TOKENS))
    torch.cuda.synchronize()
    return [], None


def run_task(task: tuple[Any, ...]) -> tuple[str, list[str], Any]:
    name, *arguments = task
    try:
        lines, found = globals()[name](*arguments)
        torch.cuda.empty_cache()
        return name, lines, found
    except Exception as error:
        return name, [f"FAILED {task}: {error!r:.300}", traceback.format_exc()[-700:]], None


def work(sections: list[str]) -> None:
    """Everything that needs no quiet device, in parallel; the slowest to compile first."""
    tasks: list[tuple[Any, ...]] = []
    if "few" in sections:
        for key, variants in VARIANTS.items():
            tasks += [("warm_few", *key, variant) for variant in (*variants, None)]
        tasks.sort(key=lambda task: -task[2])
    if "prefill" in sections:
        tasks += [("warm_road", road, name) for road in ROADS for name in ("gate_up",)]
    if "check" in sections:
        tasks += [("few_points", w, t, k) for w, k in ((4096, "bf16"), (200, "fp32"), (1000, "fp16"))
                  for t in (2, 5, 13, 16)]  # fmt: skip
        if "prefill" in sections:
            sizes = ((200, 1000, 129, "fp16"), (512, 1024, 600, "bf16"))
            tasks += [("road_points", road, *size) for road in ROADS for size in sizes]
    if not tasks:
        return
    worst: dict[str, tuple[int, float]] = {}
    pool = multiprocessing.get_context("spawn").Pool(min(15, len(tasks)))
    answers = pool.imap_unordered(run_task, tasks)
    for done in range(len(tasks)):
        try:
            name, lines, found = answers.next(timeout=max(1.0, left()))
        except multiprocessing.TimeoutError:
            say(f"out of time after {done} of {len(tasks)} tasks")
            break
        for line in lines:
            say(line)
        if found:
            points, error = worst.get(name, (0, 0.0))
            worst[name] = (points + found[0], max(error, found[1]))
    pool.terminate()
    for name, (points, error) in worst.items():
        ROWS.append({"section": "check", "kind": name, "points": points, "worst": error})
        say(f"check {name}: {points} points, worst {error:.1e}")


# ---- timing, alone on the device ----


def unpaired(x: torch.Tensor) -> SplitActivations:
    """The form of one token, which takes several tokens through the older kernel."""
    return split(x, SplitActivations.empty(*x.shape, x.device))


def few() -> None:
    """4, 8 and 16 tokens: every variant at every mix of depths, microseconds and (relative error)."""
    for (name, tokens), variants in VARIANTS.items():
        if left() < 8:
            return
        case, bf16 = bench.Case(name, tokens), bench.bf16_microseconds(name, tokens)
        print(f"{name} M={tokens} bf16 {bf16:.1f} us | " + " | ".join(DEPTHS), flush=True)
        for variant in (None, *variants):
            if left() < 5:
                return
            case.split = unpaired(case.x) if variant is None else split(case.x)
            label = "before" if variant is None else f"t{variant.tiles} s{variant.split} r{variant.registers}"
            line = f"  {label:12}"
            for kind, draw in DEPTHS.items():
                case.depths.copy_(torch.tensor([draw(tokens)] * len(case.sections), dtype=torch.uint8))
                row = case.measure(variant, 4.15e12, False)
                row["error"] = case.error(variant)
                mark = " " if row["microseconds"] < bf16 else "!"
                line += f" | {row['microseconds']:6.1f}{mark}({row['error']:.0e})"
                ROWS.append({"section": "few", "shape": name, "tokens": tokens, "kind": kind, "bf16": bf16,
                             "tuning": variant and asdict(variant), **row})  # fmt: skip
            print(line, flush=True)
        del case
        torch.cuda.empty_cache()


Extra = torch.Tensor | None
Block = tuple[int, int, int, int]


def by_dense(block: Block) -> Callable[..., torch.Tensor]:
    """Dense weights written first, then a product that gathers tokens and scatters results."""

    def road(packed: PackedWeight, x: torch.Tensor, depths: torch.Tensor, bias: Extra = None, shift: Extra = None,
             gain: Extra = None) -> torch.Tensor:  # fmt: skip
        order = many_tokens.order_by_depth(depths, packed.slices)
        dense = unpack_depths(packed, order.counts, x.dtype, gain=gain)
        if dense.shape[-1] != x.shape[1]:
            x = torch.nn.functional.pad(x, (0, dense.shape[-1] - x.shape[1]))
        return grouped_gemm.multiply_dense(x, dense, order.tokens, order.ends, bias, shift, block)

    return road


def by_planes(block: Block, registers: int | None = None) -> Callable[..., torch.Tensor]:
    """No dense weight at all."""

    def road(packed: PackedWeight, x: torch.Tensor, depths: torch.Tensor, bias: Extra = None, shift: Extra = None,
             gain: Extra = None) -> torch.Tensor:  # fmt: skip
        order = many_tokens.order_by_depth(depths, packed.slices)
        inputs = grouped_gemm.sorted_inputs(x, order.tokens, packed.groups)
        return grouped_gemm.multiply_planes(
            packed, inputs, order.tokens, order.ends, bias, shift, gain, block=block, registers=registers
        )

    return road


ROADS: dict[str, Callable[..., torch.Tensor]] = {
    "grouped_mm": many_tokens.multiply,
    "dense 128x256": by_dense((128, 256, 8, 3)),
    "dense 128x128": by_dense((128, 128, 8, 4)),
    "planes 256x128": by_planes((256, 128, 8, 2)),
    "planes 128x256": by_planes((128, 256, 8, 2)),
    "planes 128x128": by_planes((128, 128, 8, 3)),
    "planes twice": by_planes((128, 128, 8, 2), 128),
}
"""Ways to multiply a prompt (tokens x rows of a tile); all take (packed, x, depths, bias, shift, gain)."""


def prompts() -> None:
    """2,048 tokens: every road on the four linears, microseconds and share of cuBLAS's speed."""
    for name in ("gate_up", "down", "o"):
        sections, width = bench.SHAPES[name]
        packed = bench.random_packed(sections[:1], width)
        x = torch.randn(prefill.TOKENS, width, device="cuda", dtype=torch.bfloat16)
        dense = torch.randn(sections[0], width, device="cuda", dtype=torch.bfloat16) * 0.02
        bf16 = timing.graph_microseconds([lambda x=x, w=dense: torch.nn.functional.linear(x, w)] * 3)
        print(f"{name} {sections[0]}x{width} bf16 {bf16:.0f} us | " + " | ".join(prefill.MIXES), flush=True)
        for road, multiply in ROADS.items():
            line = f"  {road:14}"
            for mix, shares in prefill.MIXES.items():
                if left() < 3:
                    return
                torch.manual_seed(1)
                depths = prefill.draw_depths(shares, prefill.TOKENS)
                y = multiply(packed, x, depths)
                some = torch.randperm(prefill.TOKENS, device="cuda")[:64]
                error = bench.relative_error(y[some], bench.exact(packed, x[some], depths[some][None]))
                whole = timing.graph_microseconds([lambda m=multiply, d=depths, p=packed: m(p, x, d)] * 3)
                line += f" | {whole:5.0f} {bf16 / whole:.2f} ({error:.0e})"
                ROWS.append({"section": "prefill", "shape": name, "road": road, "mix": mix, "bf16": bf16,
                             "microseconds": whole, "error": error})  # fmt: skip
            print(line, flush=True)


TIMED = {"few": few, "prefill": prompts}


def main() -> None:
    global LIMIT
    parser = argparse.ArgumentParser()
    parser.add_argument("--sections", nargs="+", default=["check", *TIMED])
    parser.add_argument("--seconds", type=float, default=85)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    LIMIT = args.seconds
    torch.manual_seed(0)
    work(args.sections)
    say("workers done")
    for name in args.sections:
        if name in TIMED and left() > 3:
            try:
                TIMED[name]()
                say(f"{name} done")
            except Exception:
                traceback.print_exc()
            torch.cuda.empty_cache()
        if args.out:
            args.out.write_text(json.dumps({**timing.header(" ".join(sys.argv)), "rows": ROWS}, indent=1))


if __name__ == "__main__":
    main()
