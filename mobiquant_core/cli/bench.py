"""`bench`: speed and memory of the kernels beside bf16 and torch's int4, on a GPU."""

import argparse
from typing import Any

import torch

from mobiquant_core.cli.common import Outcome
from mobiquant_core.errors import KernelError

SUBJECTS = ("kernel", "decode", "prefill", "quantize")


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("bench", help="speed and memory beside bf16 and torch's int4 (needs a GPU)")
    parser.add_argument("subject", choices=SUBJECTS, help="what to measure")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    if not torch.cuda.is_available():
        raise KernelError(
            "`bench` measures GPU kernels and found no CUDA device. Run it on a machine with one; "
            "`generate --json` reports tokens per second on a CPU."
        )
    # Kernels and their compiler are loaded only where they can run.
    from mobiquant_core.bench.run import measure
    from mobiquant_core.bench.timing import header

    rows = measure(arguments.subject)
    data = {**header(f"python -m mobiquant_core bench {arguments.subject}"), "rows": rows}
    return Outcome(data, [f"{data['device']}, torch {data['torch']}, {data['date']}", *_table(rows)])


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows under one header, columns as wide as their longest entry."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
