"""Several tokens of mixed depths: builds variants in parallel, checks them against float64, times them against cuBLAS.

`python benchmarks/few_check.py --seconds 85 --out few.json`. Compiling and checks run in
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
from mobiquant_core.bench import timing
from mobiquant_core.kernels import few_tokens
from mobiquant_core.kernels.activation import split
from mobiquant_core.kernels.tuning import Tuning

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LIMITS = {"bf16": 5e-3, "fp16": 1e-3, "fp32": 1e-3}


def cut(*choices: tuple[int, tuple[int, int], int]) -> list[Tuning]:
    """(warps of a tile, (tiles of activations loaded ahead, steps asked for at once), registers)."""
    return [Tuning(1, split, (1, 1, 1, 1), ahead=ahead, registers=registers) for split, ahead, registers in choices]


VARIANTS: dict[tuple[str, int], list[Tuning]] = {
    ("gate_up", 16): cut((2, (0, 0), 128), (2, (0, 8), 128), (4, (0, 8), 128), (4, (1, 8), 168), (1, (0, 8), 128)),
    ("qkv", 16): cut((4, (0, 0), 128), (4, (0, 8), 128), (8, (0, 8), 128), (4, (1, 8), 168)),
    ("o", 16): cut((8, (0, 0), 128), (8, (0, 8), 128), (4, (0, 8), 128), (8, (1, 8), 168)),
    ("down", 16): cut((8, (0, 0), 128), (8, (0, 8), 128), (8, (0, 16), 128), (8, (1, 8), 168)),
    ("gate_up", 8): cut((2, (0, 8), 128), (2, (0, 8), 96), (1, (0, 8), 96), (4, (0, 8), 96)),
    ("qkv", 8): cut((4, (0, 0), 128), (4, (0, 8), 128), (4, (0, 8), 96), (2, (0, 8), 96)),
    ("o", 8): cut((8, (0, 0), 128), (8, (0, 8), 128), (8, (0, 8), 96), (4, (0, 8), 96)),
    ("down", 8): cut((8, (0, 0), 128), (8, (0, 8), 128), (8, (0, 8), 96)),
}
DEPTHS: dict[str, Callable[[int], list[int]]] = {
    "all 4": lambda tokens: [4] * tokens,
    "1-2": lambda tokens: [2, 1, 1, 2, 1, 2, 2, 2, 1, 2, 1, 2, 2, 1, 2, 2][:tokens],
    "1-4": lambda tokens: [4, 1, 3, 4, 2, 4, 1, 3, 4, 3, 1, 1, 4, 1, 2, 4][:tokens],
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
    for seed, rows in enumerate((1, 17, 1000)):
        for pattern in range(7):
            torch.manual_seed(10 * seed + pattern)
            packed = bench.random_packed((rows,), width)
            x = torch.randn(tokens, width, device="cuda").to(DTYPES[kind])
            depths = torch.randint(1, 5, (1, tokens), dtype=torch.uint8, device="cuda")
            if pattern < 4:
                depths.fill_(pattern + 1)
            out = torch.full((tokens, rows), float("nan"), device="cuda", dtype=DTYPES[kind])
            few_tokens.multiply(packed, few_tokens.prepare(x, depths), depths, out)
            truth = bench.exact(packed, x, depths)
            error = bench.relative_error(out, truth)
            floor = 2e-5 * bench.magnitude(packed, x, depths).norm() / truth.norm()
            points, worst = points + 1, max(worst, error if error == error else 99.0)
            if not error < max(LIMITS[kind], floor.item()):
                lines.append(f"WRONG rows={rows} {width=} {tokens=} {kind} {pattern=} error {error:.1e}")
    return lines[:3], (points, worst)


def warm_few(name: str, tokens: int, tuning: Tuning) -> tuple[list[str], None]:
    """Compiles one variant as `few` calls it."""
    sections, width = bench.SHAPES[name]
    packed = bench.random_packed(sections, width)
    depths = torch.ones(len(sections), tokens, dtype=torch.uint8, device="cuda")
    out = torch.empty(tokens, sum(sections), device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    few_tokens.multiply(packed, few_tokens.prepare(x, depths), depths, out, tuning=tuning)
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
            tasks += [("warm_few", *key, variant) for variant in variants]
        tasks.sort(key=lambda task: -task[2])
    if "check" in sections:
        tasks += [("few_points", w, t, k) for w, k in ((4096, "bf16"), (200, "fp32"), (1000, "fp16"))
                  for t in (3, 5, 8, 13, 16)]  # fmt: skip
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


def few() -> None:
    """8 and 16 tokens: every variant at every mix of depths, microseconds and (relative error)."""
    for (name, tokens), variants in VARIANTS.items():
        if left() < 8:
            return
        case, bf16 = bench.Case(name, tokens), bench.bf16_microseconds(name, tokens)
        prepared = timing.graph_microseconds([lambda c=case: few_tokens.prepare(c.x, c.depths)] * 20)
        plain = timing.graph_microseconds([lambda c=case: split(c.x)] * 20)
        print(f"{name} M={tokens} bf16 {bf16:.1f} us, sorted {prepared:.1f} (only split {plain:.1f}) | "
              + " | ".join(DEPTHS), flush=True)  # fmt: skip
        for variant in variants:
            if left() < 5:
                return
            label = f"s{variant.split} a{variant.ahead[0]}+{variant.ahead[1]} r{variant.registers}"
            line = f"  {label:14}"
            for kind, draw in DEPTHS.items():
                case.depths.copy_(torch.tensor([draw(tokens)] * len(case.sections), dtype=torch.uint8))
                row = case.measure(variant, 4.15e12, False)
                row["error"] = case.error(variant)
                mark = " " if row["microseconds"] < bf16 else "!"
                line += f" | {row['microseconds']:6.1f}{mark}({row['error']:.0e})"
                ROWS.append({"section": "few", "shape": name, "tokens": tokens, "kind": kind, "bf16": bf16,
                             "sorted": prepared, "tuning": asdict(variant), **row})  # fmt: skip
            print(line, flush=True)
        del case
        torch.cuda.empty_cache()


def main() -> None:
    global LIMIT
    parser = argparse.ArgumentParser()
    parser.add_argument("--sections", nargs="+", default=["check", "few"], choices=["check", "few"])
    parser.add_argument("--seconds", type=float, default=85)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    LIMIT = args.seconds
    torch.manual_seed(0)
    work(args.sections)
    say("workers done")
    if "few" in args.sections:
        few()
        say("few done")
    if args.out:
        args.out.write_text(json.dumps({**timing.header(" ".join(sys.argv)), "rows": ROWS}, indent=1))


if __name__ == "__main__":
    main()
