"""What the routers cost a decoded token on a CPU: seconds inside them over seconds of the step, in one run.

python -m benchmarks.router_cost [--bits 3] [--tokens 60] [--threads 2]
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

from mobiquant_core.loading import load_engine
from mobiquant_core.router import MlpRouter

PROMPT = "Once upon a time, there was a little fox who lived near the river."


class Clocked:
    """Adds up the seconds of a router's calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._plain = MlpRouter.forward

    def __call__(self, router: MlpRouter, x: Tensor) -> Tensor:
        begun = time.perf_counter()
        scores = self._plain(router, x)
        self.seconds += time.perf_counter() - begun
        return scores


def measure(bits: float, tokens: int) -> dict[str, Any]:
    engine, clock = load_engine("demo", device="cpu", keep_reference=False), Clocked()
    MlpRouter.forward = lambda self, x: clock(self, x)
    shares: list[float] = []
    whole: list[float] = []
    for step in engine.generate(engine.encode(PROMPT), budget=bits, seed=1, max_new_tokens=tokens):
        shares.append(clock.seconds / step.seconds)
        whole.append(step.seconds)
        clock.seconds = 0.0
    # The first step is the prompt.
    return {"share_of_step": statistics.median(shares[1:]), "step_milliseconds": 1000 * statistics.median(whole[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {"benchmark": "router_cost"} | vars(arguments) | measure(arguments.bits, arguments.tokens)
    about = {"device": f"CPU, {arguments.threads} threads", "torch": torch.__version__}
    sys.stdout.write(json.dumps(found | about | {"date": datetime.date.today().isoformat()}) + "\n")


if __name__ == "__main__":
    main()
