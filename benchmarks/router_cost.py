"""What the routers cost a decoded token on a CPU: seconds inside them over seconds of the step, in one run.

`share_of_step` is the scoring alone; `share_with_depths` is all that a step does for them: also from scores to
depths, dispatch and recording.

python -m benchmarks.router_cost [--bits 3] [--tokens 60] [--threads 2]
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from mobiquant_core import routing
from mobiquant_core.loading import load_engine
from mobiquant_core.token_scores import TokenScorer

PROMPT = "Once upon a time, there was a little fox who lived near the river."


class Clock:
    """Adds up the seconds of some functions' calls."""

    def __init__(self, *owned: tuple[Any, str]) -> None:
        self.seconds = 0.0
        for owner, name in owned:
            setattr(owner, name, self._clocked(getattr(owner, name)))

    def _clocked(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            result = plain(*arguments)
            self.seconds += time.perf_counter() - begun
            return result

        return timed

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def measure(bits: float, tokens: int) -> dict[str, Any]:
    engine = load_engine("demo", device="cpu", keep_reference=False)
    # What a step puts off to its end for all sites is part of the scoring.
    scoring = Clock((TokenScorer, "__call__"), (routing, "non_increasing"))
    depths = Clock((routing.RoutingPass, "_route_site"), (routing.Recorder, "_token_arrays"))
    shares: list[tuple[float, float]] = []
    whole: list[float] = []
    for step in engine.generate(engine.encode(PROMPT), budget=bits, seed=1, max_new_tokens=tokens):
        shares.append((scoring.take() / step.seconds, depths.take() / step.seconds))
        whole.append(step.seconds)
    # The first step is the prompt.
    alone, with_depths = (statistics.median(column) for column in zip(*shares[1:], strict=True))
    milliseconds = 1000 * statistics.median(whole[1:])
    return {"share_of_step": alone, "share_with_depths": with_depths, "step_milliseconds": milliseconds}


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
