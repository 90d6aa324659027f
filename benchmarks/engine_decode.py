"""Decode rate of Engine.generate on a GPU, with everything the app records: the captured step beside the modules.

Both paths run in turn at every budget, in one process. Prints a card for people and one JSON object last.

    python -m benchmarks.engine_decode [--model demo] [--tokens 128] [--rounds 3] [--out FILE]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mobiquant_core.bench.timing import WARM_UPS, eager_microseconds, header
from mobiquant_core.decode import Sampling
from mobiquant_core.engine import Engine
from mobiquant_core.loading import load_engine

BUDGETS = (2.0, 4.0, 8.0)
PROMPT = "The river runs through the valley and"
PATHS = ("captured", "modules")
REPLAYS = 30


def choose(engine: Engine, path: str) -> None:
    engine.lender.problem = "" if path == "captured" else "switched off for the benchmark"


def run(
    engine: Engine, ids: list[int], path: str, budget: float, tokens: int, policy: str
) -> tuple[list[float], float]:
    """(seconds of each decoded token, average bits) of runs that together decode `tokens` tokens."""
    choose(engine, path)
    seconds: list[float] = []
    bits, seed = 0.0, 0
    while len(seconds) < tokens:
        steps = list(
            engine.generate(ids, budget=budget, policy=policy, max_new_tokens=tokens - len(seconds), seed=seed)
        )
        assert all(step.captured == (path == "captured") for step in steps[1:]), "the other path decoded"
        seconds += [step.seconds for step in steps[1:]]
        bits, seed = steps[-1].measured_bits, seed + 1
    return seconds, bits


def device_milliseconds(engine: Engine, policy: str, position: int) -> float:
    """Median time of one replay under the thresholds of the last run: what is left is the host's share."""
    choose(engine, "captured")
    with engine.lender.lend(engine.quantized.policy(policy), position + WARM_UPS + REPLAYS) as session:
        assert session is not None
        session.begin(0, position, (), (), Sampling(0.0, 0, torch.zeros(0)))
        return eager_microseconds(session.replay, REPLAYS) / 1e3


def measure(engine: Engine, tokens: int, rounds: int, policy: str) -> dict[str, Any]:
    ids = engine.encode(PROMPT)
    started = time.perf_counter()
    run(engine, ids, "captured", 4.0, 2, policy)
    first = time.perf_counter() - started
    for budget in BUDGETS:
        for path in PATHS:
            run(engine, ids, path, budget, 16, policy)
    rows = []
    for budget in BUDGETS:
        found: dict[str, list[float]] = {path: [] for path in PATHS}
        for _ in range(rounds):
            for path in PATHS:
                seconds, bits = run(engine, ids, path, budget, tokens, policy)
                found[path].append(len(seconds) / sum(seconds))
                if path == "captured":
                    spent, device = bits, device_milliseconds(engine, policy, len(ids) + tokens // 2)
        rates = {path: statistics.median(values) for path, values in found.items()}
        rows.append(
            {"bits": budget, "measured_bits": spent, "device_milliseconds": device}
            | {f"{path}_tokens_per_second": rate for path, rate in rates.items()}
            | {"speedup": rates["captured"] / rates["modules"]}
        )
    return {"first_run_seconds": first, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--policy", default="router")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("engine_decode measures a GPU and found no CUDA device; benchmarks/cpu_decode.py measures a CPU.")
    engine = load_engine(arguments.model, device="cuda", keep_reference=False)
    reason = engine.lender.why_not(engine.quantized.policy(arguments.policy))
    if reason:
        sys.exit(f"engine_decode compares with the captured step, which cannot serve this run: {reason}.")
    found = measure(engine, arguments.tokens, arguments.rounds, arguments.policy)
    for row in found["rows"]:
        print(
            f"{row['bits']:4g} bits  captured {row['captured_tokens_per_second']:7.1f}  modules "
            f"{row['modules_tokens_per_second']:7.1f} tokens/s  {row['speedup']:5.1f}x  "
            f"device {row['device_milliseconds']:.3f} ms"
        )
    command = "python -m benchmarks.engine_decode " + " ".join(sys.argv[1:])
    about = {"benchmark": "engine_decode", "model": arguments.model, "policy": arguments.policy}
    text = json.dumps(about | found | header(command.strip()))
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
