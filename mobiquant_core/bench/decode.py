"""Tokens per second of a whole decode step at batch 1: random weights of a model's shape, one graph for all budgets."""

from typing import Any

import torch

from mobiquant_core.bench.random_model import LLAMA_3_8B, random_weights
from mobiquant_core.bench.timing import eager_microseconds
from mobiquant_core.fast_decode.decoder import Decoder
from mobiquant_core.fast_decode.step import Step
from mobiquant_core.fast_decode.weights import StepShape
from mobiquant_core.kernels.tuning import Tuning

ROOM = 1024
PROMPT = 128
"""Positions already in the cache when timing starts."""
BUDGETS = (2.0, 3.0, 4.0, 6.0, 8.0)


def step_microseconds(decoder: Decoder, repeats: int = 24) -> float:
    """Median time of one step, replayed back to back at growing positions."""
    replay = decoder.replay
    decoder.step.buffers.position.fill_(PROMPT)
    return eager_microseconds(replay, repeats)


def set_average(step: Step, bits: float) -> None:
    """Depths whose average is `bits`: whole layers alternate between the two nearest depths."""
    low, share = divmod(bits / 2, 1)
    layer = torch.arange(step.shape.layers)
    deeper = ((layer + 1) * share).floor() > (layer * share).floor()
    depths = (low + deeper).repeat_interleave(7)
    # The router still runs in full; its decision is replaced, so that the average is exact.
    step.buffers.control[:, 1] = depths.to(step.buffers.control)


def streamed_tokens_per_second(decoder: Decoder, count: int = 64) -> float:
    """The rate a caller sees who reads every token."""
    decoder.begin(1, PROMPT)
    tokens = list(decoder.stream(count))
    return (len(tokens) - 1) / sum(token.seconds for token in tokens[1:])


def measure(
    shape: StepShape = LLAMA_3_8B,
    *,
    dependent: bool = True,
    router: bool = True,
    tuning: dict[tuple[int, int], Tuning] | None = None,
) -> list[dict[str, Any]]:
    """One row per budget."""
    weights = random_weights(shape, ROOM, router=router)
    step = Step(weights, ROOM, dependent=dependent, tuning=tuning)
    decoder = Decoder(step)
    rows = []
    for bits in BUDGETS:
        set_average(step, bits)
        micros = step_microseconds(decoder)
        rows.append(
            {
                "bits": bits,
                "microseconds": micros,
                "tokens_per_second": 1e6 / micros,
                "streamed": streamed_tokens_per_second(decoder),
                "gigabytes": weights.stored_bytes() / 1e9,
                "router": router,
                "dependent": dependent,
            }
        )
    return rows


def measure_baseline(shape: StepShape = LLAMA_3_8B) -> dict[str, Any]:
    """The same engine with dense bf16 weights and cuBLAS."""
    weights = random_weights(shape, ROOM, dense=True)
    decoder = Decoder(Step(weights, ROOM))
    micros = step_microseconds(decoder)
    return {
        "bits": 16,
        "microseconds": micros,
        "tokens_per_second": 1e6 / micros,
        "gigabytes": weights.stored_bytes() / 1e9,
    }
