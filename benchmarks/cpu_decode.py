"""Decode rate on a CPU: the unquantized model and every budget through the same loop, alternating in one run.

The quantized runs record everything the app shows. Prints a card for people and one JSON object last.

    python -m benchmarks.cpu_decode [--model demo] [--tokens 48] [--rounds 3]
"""

import argparse
import json
import statistics
import time

import torch

from mobiquant_core.decode import DecodeState, Sampling, decode_one_token, prefill, sample
from mobiquant_core.engine import Engine
from mobiquant_core.loading import load_engine
from mobiquant_core.machine import describe_machine

BUDGETS = (2.5, 4.0, 6.0, 8.0)
PROMPT = "The river runs through the valley and"


def unquantized_rate(engine: Engine, ids: list[int], tokens: int) -> float:
    """Tokens per second of the full-precision model: the same steps and sampling, nothing recorded."""
    model = engine.reference_model()
    sampling = Sampling(0.8, 50, torch.rand(tokens, generator=torch.Generator().manual_seed(0)))
    state = DecodeState()
    logits = prefill(model, state, ids)[-1]
    started = time.perf_counter()
    for index in range(tokens):
        token = sample(logits, sampling, index)
        logits = decode_one_token(model, state, token)[-1]
    return tokens / (time.perf_counter() - started)


def quantized_rate(engine: Engine, ids: list[int], tokens: int, budget: float, policy: str) -> float:
    """Tokens per second of Engine.generate with its recording."""
    seconds: list[float] = []
    seed = 0
    while len(seconds) < tokens:
        steps = engine.generate(ids, budget=budget, policy=policy, max_new_tokens=tokens - len(seconds), seed=seed)
        seconds += [step.seconds for step in steps if step.phase == "decode"]
        seed += 1
    return len(seconds) / sum(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--policy", default="router")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    engine = load_engine(arguments.model, device="cpu")
    ids = engine.encode(PROMPT)
    for budget in BUDGETS:
        quantized_rate(engine, ids, 8, budget, arguments.policy)
    rates: dict[str, list[float]] = {"unquantized": []} | {f"{budget:g}": [] for budget in BUDGETS}
    for _ in range(arguments.rounds):
        rates["unquantized"].append(unquantized_rate(engine, ids, arguments.tokens))
        for budget in BUDGETS:
            rates[f"{budget:g}"].append(quantized_rate(engine, ids, arguments.tokens, budget, arguments.policy))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    base = middle["unquantized"]
    for name, rate in middle.items():
        print(f"{name:<12}{rate:8.1f} tokens/s{rate / base:8.2f} of unquantized")
    rows = [{"bits": budget, "tokens_per_second": middle[f"{budget:g}"], "ratio": middle[f"{budget:g}"] / base}
            for budget in BUDGETS]  # fmt: skip
    print(json.dumps({
        "benchmark": "cpu_decode", "model": arguments.model, "policy": arguments.policy,
        "unquantized_tokens_per_second": base, "rows": rows, **describe_machine(engine.device),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
