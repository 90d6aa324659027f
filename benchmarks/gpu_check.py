"""Builds every kernel, checks it against float64 and times variants, in one call on a machine with a GPU.

`python benchmarks/gpu_check.py --sections check tune products --seconds 120 --out results.json`. Checks and compiling
run in worker processes, timing afterwards in this one. Nothing starts when the time is up.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from mobiquant_core.bench import decode, prefill, quantize, timing, whole_prompt
from mobiquant_core.bench import kernel as bench
from mobiquant_core.bench.random_model import LLAMA_3_8B, random_weights
from mobiquant_core.fast_decode.decoder import Decoder
from mobiquant_core.fast_decode.step import Step
from mobiquant_core.kernels import few_tokens, gpu, many_tokens, prompt_product
from mobiquant_core.kernels.activation import split
from mobiquant_core.kernels.step_launches import MODE_AS_IT_IS, MODE_GATE, MODE_NORM
from mobiquant_core.kernels.tuning import Tuning
from mobiquant_core.packing import PackedWeight

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LIMITS = {"bf16": 5e-3, "fp16": 1e-3, "fp32": 1e-3}
CANCELLATION = 2e-5
"""Bound of the error relative to |W| |x|: activations are kept to one part in 65,000 of a group's largest."""
U421, U422, U442 = (4, 2, 1, 1), (4, 2, 2, 2), (4, 4, 2, 2)
VARIANTS: dict[tuple[int, int], list[Tuning]] = {
    (6144, 32): [Tuning(1, 4, u, p, held=True, late=late, registers=r) for u, p, late, r in (
        (U422, 0, 5, 168), (U422, 0, 2, 128), (U422, 1, 5, 128))],
    (4096, 32): [Tuning(1, 8, u, p, held=True, late=late, registers=r) for u, p, late, r in (
        (U421, 1, 5, 96), (U421, 1, 5, 128), (U422, 1, 3, 128))],
    (28672, 32): [Tuning(2, 1, u, p, held=True, late=late, registers=r) for u, p, late, r in (
        (U421, 1, 5, 112), (U422, 0, 3, 128), (U442, 0, 3, 128), (U442, 0, 2, 128), (U422, 1, 5, 128))],
    (4096, 112): [Tuning(1, 8, u, p, held=True, late=late, registers=r) for u, p, late, r in (
        (U422, 1, 5, 128), (U422, 0, 5, 128), (U422, 0, 3, 128))],
}  # fmt: skip
"""The first of each is the step's own."""
ROWS: list[dict[str, Any]] = []
CHOSEN: dict[tuple[int, int], Tuning] = {}
"""What `tune` found, for `decode` after it."""
STARTED = time.perf_counter()
LIMIT = 1e9


def left() -> float:
    return LIMIT - (time.perf_counter() - STARTED)


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:6.1f}] {text}", flush=True)


def note(section: str, line: str, **row: Any) -> None:
    ROWS.append({"section": section, **row})
    print(line, flush=True)


# ---- tasks of worker processes: each returns lines to print, and (points, worst errors) ----


def few_points(width: int, tokens: int, kind: str) -> tuple[list[str], dict[str, Any]]:
    """All row counts and depth patterns of one compiled variant, outputs filled with NaN before."""
    lines, worst, points = [], 0.0, 0
    for seed, (rows, pattern) in enumerate(itertools.product((1, 16, 17, 129, 1000), range(6))):
        torch.manual_seed(seed)
        packed = bench.random_packed((rows,), width)
        x = torch.randn(tokens, width, device="cuda").to(DTYPES[kind])
        depths = torch.randint(1, 5, (1, tokens), dtype=torch.uint8, device="cuda")
        if pattern < 4:
            depths.fill_(pattern + 1)
        if tokens <= few_tokens.MOST_TOKENS:
            out = torch.full((tokens, rows), float("nan"), device="cuda", dtype=DTYPES[kind])
            few_tokens.multiply(packed, few_tokens.prepare(x, depths), depths, out)
        elif rows >= gpu.LEAST_ROWS and prompt_product.takes(x):
            out = torch.cat(prompt_product.multiply(packed, x, depths), dim=1)
        else:
            out = many_tokens.multiply(packed, x, depths[0])
        truth = bench.exact(packed, x, depths)
        error = bench.relative_error(out, truth)
        # Where the terms of an output cancel, no arithmetic in these types is exact relative to what is left.
        floor = CANCELLATION * bench.magnitude(packed, x, depths).norm() / truth.norm()
        points += 1
        worst = max(worst, error) if error == error else 99.0
        if not error < max(LIMITS[kind], floor.item()):
            lines.append(f"WRONG rows={rows} {width=} {tokens=} {kind} {pattern=} error {error:.1e}")
    return lines[:3], {"kind": kind, "points": points, "worst": worst}


def huge() -> tuple[list[str], dict[str, Any]]:
    """Words and outputs beyond 2^31."""
    packed = bench.random_packed((140_000,), 16384)
    x = torch.randn(2, 16384, device="cuda", dtype=torch.float16)
    depths = torch.tensor([[2, 4]], dtype=torch.uint8, device="cuda")
    out = torch.full((2, 140_000), float("nan"), device="cuda", dtype=torch.float16)
    few_tokens.multiply(packed, split(x), depths, out)
    last = PackedWeight(packed.planes[:, -4:].contiguous(), packed.ranges[-4:].contiguous(), 16384, (64,))
    truth = bench.exact(last, x, depths)
    few = bench.relative_error(out[:, -64:], truth)
    many = bench.relative_error(many_tokens.multiply(packed, x, depths[0])[:, -64:], truth)
    worst = max(few, many, 99.0 * bool(out.isnan().any()))
    return [f"huge: few {few:.1e} many {many:.1e}"], {"kind": "huge", "points": 2, "worst": worst}


def chain(name: str, dependent: bool) -> tuple[list[str], dict[str, Any]]:
    """A tiny model through the captured step and through its own modules."""
    from mobiquant_core.routing import FixedDepth
    from tests.kernels import test_step as small

    quantized = small.quantized_with_routers(getattr(small, name), "cuda")
    step = Step(small.weights_of(quantized, 64), 64, dtype=torch.float32, dependent=dependent)
    decoder, lines, ids = Decoder(step), [], [5]
    decoder.set_budget(torch.full((7,), 0.3), torch.full((7,), 3))
    decoder.begin(5)
    tokens = list(decoder.stream(24))
    for _ in range(24):
        with FixedDepth(3), torch.no_grad():
            ids.append(int(quantized.model(torch.tensor([ids], device="cuda")).logits[0, -1].argmax()))
    same = [token.token for token in tokens] == ids[1:]
    decoder.set_budget(torch.full((7,), 0.3))
    decoder.begin(5)
    first = next(iter(decoder.stream(1)))
    with FixedDepth(first.depths), torch.no_grad():
        inputs = small.site_inputs(quantized, [5])
    read = [(site.router, x) for site, x in zip(quantized.sites, inputs, strict=True) if site.router is not None]
    scores = torch.cat([router(x[:, -1])[0] for router, x in read]).cpu()
    off = (torch.from_numpy(first.scores) - scores).abs().max().item()
    if not same or not off < 2e-2:
        lines.append(f"WRONG chain {name} {dependent=} same={same} scores off {off:.1e}")
    return lines, {"kind": "chain", "points": len(ids), "worst": off}


def warm_step(key: tuple[int, int], variant: Tuning) -> tuple[list[str], None]:
    """Compiles one variant of a product of the decode step, as the step calls it."""
    step = Step(random_weights(LAYER, 256), 256, tuning={key: variant})
    b, layer = step.buffers, step.weights.layers[0]
    site, width, mode, out, parts, add = {
        (6144, 32): (layer.attention_input, 4096, MODE_NORM, b.qkv, 0, False),
        (4096, 32): (layer.attention_output, 4096, MODE_AS_IT_IS, b.hidden, 8, True),
        (28672, 32): (layer.mlp_input, 4096, MODE_NORM, b.gate_up, 0, False),
        (4096, 112): (layer.mlp_output, 14336, MODE_GATE, b.hidden, 0, True),
    }[key]
    for step.dependent in (True, False) if variant is VARIANTS[key][0] or variant == VARIANTS[key][0] else (True,):
        step._product(site, width, mode, out, parts, add=add)
    torch.cuda.synchronize()
    return [], None


def warm_rest(router: bool, dependent: bool) -> tuple[list[str], None]:
    """Compiles what a step launches beside its products."""
    Step(random_weights(LAYER, 256, router=router), 256, dependent=dependent).run(False)
    torch.cuda.synchronize()
    return [], None


def warm_product(name: str, tuning: Tuning, dependent: bool) -> tuple[list[str], None]:
    sections, width = bench.SHAPES[name]
    packed = bench.random_packed(sections, width)
    depths = torch.ones(len(sections), 1, dtype=torch.uint8, device="cuda")
    out = torch.empty(1, sum(sections), device="cuda", dtype=torch.bfloat16)
    few_tokens.multiply(packed, split(torch.randn(1, width, device="cuda", dtype=torch.bfloat16)), depths, out,
                        tuning=tuning, dependent=dependent)  # fmt: skip
    torch.cuda.synchronize()
    return [], None


LAYER = type(LLAMA_3_8B)(**{**LLAMA_3_8B.__dict__, "layers": 1, "vocabulary": 256})


def run_task(task: tuple[Any, ...]) -> tuple[str, list[str], dict[str, Any] | None]:
    name, *arguments = task
    try:
        lines, found = globals()[name](*arguments)
        torch.cuda.empty_cache()
        return name, lines, found
    except Exception as error:
        return name, [f"FAILED {task}: {error!r:.200}", traceback.format_exc()[-600:]], None


def work(sections: list[str]) -> None:
    """Everything that needs no quiet device, in parallel."""
    tasks: list[tuple[Any, ...]] = []
    if "build" in sections:
        tasks += [("warm_rest", True, True), ("warm_rest", True, False), ("warm_rest", False, True)]
        tasks += [("warm_step", key, v) for key, variants in VARIANTS.items() for v in variants]
    if "check" in sections:
        names = ("llama_with_fused_output", "qwen3", "llama")
        tasks += [("chain", name, d) for name in names for d in (True, False)]
        tasks += [("huge",)]
        kinds = itertools.cycle(("bf16", "fp32", "fp16"))
        tasks += [("few_points", w, t, next(kinds)) for w in (4096, 200, 1000) for t in (1, 3, 7, 16)]
        tasks += [("few_points", w, t, k) for w in (200, 4096) for t in (17, 129) for k in ("bf16", "fp16")]
    if "build" in sections:
        shapes = {(sum(s), -(-w // 128)): n for n, (s, w) in bench.SHAPES.items()}
        tasks += [("warm_product", shapes[key], v, pdl) for key, vs in VARIANTS.items() for v in vs
                  for pdl in (False, True)]  # fmt: skip
    worst: dict[str, list[float]] = {}
    if not tasks:
        return
    pool = multiprocessing.get_context("spawn").Pool(min(14, len(tasks)))
    answers = pool.imap_unordered(run_task, tasks)
    for done in range(len(tasks)):
        try:
            _, lines, found = answers.next(timeout=max(1.0, left()))
        except multiprocessing.TimeoutError:
            say(f"out of time after {done} of {len(tasks)} tasks")
            break
        for line in lines:
            say(line)
        if found:
            entry = worst.setdefault(found["kind"], [0, 0.0])
            entry[0] += found["points"]
            entry[1] = max(entry[1], found["worst"])
    pool.terminate()
    for kind, (points, error) in worst.items():
        note("check", f"check {kind}: {points} points, worst {error:.1e}", kind=kind, points=points, worst=error)


# ---- timing, alone on the device ----


def tune() -> None:
    """The 8B-shaped step with each product's variants in turn; the best by time at 2, 4 and 8 bits stays."""
    weights = random_weights(LLAMA_3_8B, decode.ROOM)
    chosen = {key: variants[0] for key, variants in VARIANTS.items()}

    def times(tuning: dict[tuple[int, int], Tuning], dependent: bool = True) -> list[float]:
        step = Step(weights, decode.ROOM, tuning=tuning, dependent=dependent)
        decoder, found = Decoder(step), []
        for bits in (2, 4, 8):
            decode.set_average(step, bits)
            found.append(decode.step_microseconds(decoder, 12))
        return found

    def show(label: str, found: list[float], **row: Any) -> None:
        note("tune", f"{label}: " + " ".join(f"{t:.0f}" for t in found), label=label, microseconds=found, **row)

    show("step, no overlap", times(chosen, False))
    best = times(chosen)
    show("step, overlap", best)
    for key, variants in VARIANTS.items():
        for variant in variants[1:]:
            if left() < 16:
                break
            found = times({**chosen, key: variant})
            show(f"  {key} t{variant.tiles} s{variant.split} u{variant.units} p{variant.pieces}", found)
            if sum(a / b for a, b in zip(found, best, strict=True)) < 2.995:
                best, chosen = found, {**chosen, key: variant}
    show("best", best, tuning={str(k): v.__dict__ for k, v in chosen.items()})
    say(f"best {chosen}")
    CHOSEN.update(chosen)


def products() -> None:
    """Batch 1, isolated: every variant at every depth."""
    bandwidth = timing.copy_bandwidth()
    note("bandwidth", f"copy {bandwidth / 1e12:.3f} TB/s", bytes_per_second=bandwidth)
    for name in bench.SHAPES:
        case = bench.Case(name)
        key = (case.weights[0].out_features, case.weights[0].groups)
        bf16, int4 = bench.bf16_microseconds(name, 1), bench.int4_microseconds(name, 1)
        note("baseline", f"{name} bf16 {bf16:.2f} int4 {int4:.2f}", shape=name, bf16=bf16, int4=int4)
        for variant in VARIANTS[key]:
            for pdl in (False, True):
                if left() < 6:
                    return
                cut = f"t{variant.tiles} s{variant.split} u{variant.units} p{variant.pieces} r{variant.registers}"
                line = f"  {cut} late{variant.late} pdl{pdl:d}:"
                for depth in (1, 2, 3, 4):
                    case.depths.fill_(depth)
                    row = case.measure(variant, bandwidth, pdl)
                    row["error"] = case.error(variant, pdl)
                    line += (
                        f" {row['microseconds']:.2f} ({row['share_of_limit']:.0%}, x{bf16 / row['microseconds']:.2f})"
                    )
                    ROWS.append({"section": "product", "shape": name, "depth": depth, **variant.__dict__, "pdl": pdl,
                                 "bf16": bf16, **row})  # fmt: skip
                print(line, flush=True)
        del case


def batches() -> None:
    """2 to 16 tokens of mixed depths against cuBLAS."""
    for name, tokens in itertools.product(bench.SHAPES, (2, 4, 8, 16)):
        if left() < 6:
            return
        case, bf16, line = bench.Case(name, tokens), bench.bf16_microseconds(name, tokens), []
        for kind, deepest in (("all 2", 0), ("1-2", 2), ("1-4", 4)):
            case.depths.random_(1, deepest + 1) if deepest else case.depths.fill_(2)
            case.depths[:, 0] = deepest or 2
            row = case.measure(None, 4.26e12, False)
            row["error"] = case.error(None)
            line.append(f"{kind}: {row['microseconds']:.1f} err {row['error']:.0e}")
            ROWS.append({"section": "batch", "shape": name, "tokens": tokens, "kind": kind, "bf16": bf16, **row})
        print(f"{name} M={tokens} bf16 {bf16:.1f} | " + " | ".join(line), flush=True)


def full_decode() -> None:
    """The whole step at every budget, without router, and the bf16 baseline."""
    for run in (lambda: decode.measure(tuning=CHOSEN), lambda: [decode.measure_baseline()],
                lambda: decode.measure(router=False, tuning=CHOSEN)):  # fmt: skip
        for row in run():
            note("decode", "decode " + " ".join(f"{k}={v:.5g}" for k, v in row.items()), **row)


def long_prompts() -> None:
    for section, measure in (
        ("prefill", prefill.measure), ("whole_prompt", whole_prompt.measure), ("crossover", prefill.measure_crossover),
    ):  # fmt: skip
        for row in measure():
            line = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
            note(section, line, **row)


def slicing() -> None:
    row = quantize.measure()
    note("quantize", "quantize " + " ".join(f"{k}={v:.4g}" for k, v in row.items()), **row)


TIMED = {
    "quantize": slicing,
    "tune": tune,
    "products": products,
    "decode": full_decode,
    "prefill": long_prompts,
    "batches": batches,
}


def main() -> None:
    global LIMIT
    parser = argparse.ArgumentParser()
    parser.add_argument("--sections", nargs="+", default=["build", "check", *TIMED])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    LIMIT = args.seconds
    torch.manual_seed(0)
    work(args.sections)
    say("workers done")
    if args.out:
        args.out.write_text(json.dumps({**timing.header(" ".join(sys.argv)), "rows": ROWS}, indent=1))
    for name in args.sections:
        if name not in TIMED or left() < 3:
            continue
        try:
            TIMED[name]()
            say(f"{name} done")
        except Exception as error:
            traceback.print_exc()
            print(f"{name} FAILED {error!r:.300}", flush=True)
        torch.cuda.empty_cache()
        if args.out:
            args.out.write_text(json.dumps({**timing.header(" ".join(sys.argv)), "rows": ROWS}, indent=1))


if __name__ == "__main__":
    main()
