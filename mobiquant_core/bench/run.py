"""One list of rows per subject: what `bench` prints and stores."""

from typing import Any

import torch

from mobiquant_core.bench import decode, kernel, prefill, quantize, whole_prompt
from mobiquant_core.bench.timing import copy_bandwidth

_BATCHES = (2, 4, 8, 16)


def measure(subject: str) -> list[dict[str, Any]]:
    """Rows of `kernel`, `decode`, `prefill` or `quantize`."""
    if subject == "kernel":
        return kernel_rows()
    if subject == "decode":
        return [*decode.measure(), *decode.measure(router=False), decode.measure_baseline()]
    if subject == "prefill":
        return [*prefill.measure(), *whole_prompt.measure()]
    return [quantize.measure()]


def kernel_rows() -> list[dict[str, Any]]:
    """Every shape at one token and every depth, then at small batches of mixed depths."""
    bandwidth = copy_bandwidth()
    rows = []
    for name in kernel.SHAPES:
        bf16, int4 = kernel.bf16_microseconds(name, 1), kernel.int4_microseconds(name, 1)
        case = kernel.Case(name)
        for depth in (1, 2, 3, 4):
            case.depths.fill_(depth)
            found = case.measure(None, bandwidth, dependent=False)
            rows.append(_row(name, 1, f"{2 * depth} bits", case, found, bf16, int4))
        del case
        for tokens in _BATCHES:
            bf16, int4 = kernel.bf16_microseconds(name, tokens), kernel.int4_microseconds(name, tokens)
            case = kernel.Case(name, tokens)
            case.depths.random_(1, 5)
            found = case.measure(None, bandwidth, dependent=False)
            rows.append(_row(name, tokens, "2 to 8 bits mixed", case, found, bf16, int4))
            del case
        torch.cuda.empty_cache()
    return rows


def _row(
    name: str, tokens: int, depths: str, case: kernel.Case, found: dict[str, Any], bf16: float, int4: float
) -> dict[str, Any]:
    sections, columns = kernel.SHAPES[name]
    return {
        "shape": f"{name} {sum(sections)}x{columns}",
        "tokens": tokens,
        "depths": depths,
        **found,
        "error": case.error(None),
        "bf16_microseconds": round(bf16, 3),
        "int4_microseconds": round(int4, 3),
        "times_bf16": round(bf16 / found["microseconds"], 3),
        "times_int4": round(int4 / found["microseconds"], 3),
    }
