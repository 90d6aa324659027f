"""`info`: architecture, slices and the memory ledger."""

import argparse
from dataclasses import asdict
from typing import Any

from mobiquant_core.cli.common import Outcome, ProgressPrinter, add_model
from mobiquant_core.loading import load_engine

_SIXTEEN_BIT_BYTES = 2


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("info", help="architecture, slices, memory ledger")
    add_model(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    engine = load_engine(arguments.model, device=arguments.device, keep_reference=False, progress=ProgressPrinter())
    quantized, settings = engine.quantized, engine.quantized.model.config
    calibration = quantized.calibration
    ledger = quantized.memory_ledger()
    bits = quantized.config.bits_by_depth
    stored = sum(row.bytes_stored for row in ledger)
    read = [sum(row.bytes_read[depth] for row in ledger) for depth in range(len(bits))]
    sixteen = _SIXTEEN_BIT_BYTES * sum(row.weights for row in ledger if row.part in _MODEL_PARTS)
    data = {
        "model": arguments.model,
        "architecture": settings.model_type,
        "layers": settings.num_hidden_layers,
        "hidden_size": settings.hidden_size,
        "vocabulary": settings.vocab_size,
        "context": engine.context_length,
        "slice_bits": list(quantized.config.slice_bits),
        "group_size": quantized.config.group_size,
        "router": calibration.router_kind if calibration else "none",
        "ledger": [asdict(row) for row in ledger],
        "bits_by_depth": list(bits),
        "bytes_stored": stored,
        "bytes_read_per_token": read,
        "bytes_at_16_bits": sixteen,
    }
    header = f"{'part':<24}{'weights':>14}{'stored':>14}" + "".join(f"{f'read at {b}':>14}" for b in bits)
    lines = [
        f"{arguments.model}: {settings.model_type}, {settings.num_hidden_layers} layers of {settings.hidden_size}, "
        f"slices {list(quantized.config.slice_bits)} in groups of {quantized.config.group_size}",
        header,
    ]
    for row in ledger:
        reads = "".join(f"{count:>14,}" for count in row.bytes_read)
        lines.append(f"{row.part:<24}{row.weights:>14,}{row.bytes_stored:>14,}{reads}")
    lines.append(f"{'all':<24}{'':>14}{stored:>14,}" + "".join(f"{count:>14,}" for count in read))
    lines.append(f"the same model at 16 bits: {sixteen:,} bytes")
    return Outcome(data, lines)


_MODEL_PARTS = ("slices", "embeddings", "output head", "norms and other")
"""Parts that a 16-bit model has too; the others are what elasticity costs."""
