"""`migrate`: do the outlier tokens change with precision?"""

import argparse
import json
from pathlib import Path
from typing import Any

from mobiquant_core.atomic import write_file
from mobiquant_core.cli.common import Outcome, ProgressPrinter, add_model, finite, read_text
from mobiquant_core.loading import load_engine
from mobiquant_core.migration import ERROR_KINDS, MigrationReport, SetComparison, measure


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("migrate", help="outlier token sets at every precision")
    add_model(parser)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    parser.add_argument("--top", type=float, default=10.0, metavar="PERCENT", help="size of the sets (default: 10)")
    parser.add_argument("--error", choices=ERROR_KINDS, default="relative")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--keep-first", action="store_true", help="let the first token into the sets")
    parser.add_argument("--out", type=Path, metavar="F", help="also write the JSON object to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    text = read_text(arguments.text)
    engine = load_engine(arguments.model, device=arguments.device, progress=ProgressPrinter())
    bos = engine.tokenizer.bos_token_id
    head = [] if bos is None else [bos]
    length = min(arguments.max_tokens, engine.context_length)
    ids = (head + engine.encode_plain(text))[: max(length, 0)]
    report = measure(engine, ids, top_percent=arguments.top, error=arguments.error, skip_first=not arguments.keep_first)
    data = report_data(report)
    if arguments.out is not None:
        write_file(arguments.out, json.dumps(finite(data), allow_nan=False).encode("ascii"))
    return Outcome(data, _lines(report))


def report_data(report: MigrationReport) -> dict[str, Any]:
    """The report's matrices as JSON, per linear and at model level."""
    linears = [
        {
            "layer": info.layer,
            "projection": info.projection,
            "overlap": report.per_linear.overlap[index].tolist(),
            "jaccard": report.per_linear.jaccard[index].tolist(),
            "spearman": report.per_linear.spearman[index].tolist(),
        }
        for index, info in enumerate(report.linears)
    ]
    return {
        "tokens": len(report.token_ids),
        "bits": list(report.bits_by_depth),
        "error": report.error,
        "top_percent": report.top_percent,
        "set_size": report.set_size,
        "first_skipped": report.first_skipped,
        "chance_overlap": report.chance,
        "chance_jaccard": report.chance_jaccard,
        "model": _matrices(report.model_level),
        "linears": linears,
    }


def _matrices(sets: SetComparison) -> dict[str, Any]:
    return {"overlap": sets.overlap.tolist(), "jaccard": sets.jaccard.tolist(), "spearman": sets.spearman.tolist()}


def _lines(report: MigrationReport) -> list[str]:
    bits = report.bits_by_depth
    mean = report.per_linear.overlap.mean(0)
    lines = [
        f"{report.set_size} outlier tokens of {len(report.token_ids)}, by {report.error} error; "
        f"overlap by chance {report.chance:.2f}",
        f"{'bits':<10}{'linears (mean)':>16}{'model':>8}",
    ]
    for first in range(len(bits)):
        for second in range(first + 1, len(bits)):
            overlap = report.model_level.overlap[first, second]
            lines.append(f"{bits[first]} and {bits[second]:<5}{mean[first, second]:>15.2f}{overlap:>9.2f}")
    return lines
