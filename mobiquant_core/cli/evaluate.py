"""`evaluate`: perplexity of a text per policy and budget."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobiquant_core.cli.common import Outcome, ProgressPrinter, add_model, read_text
from mobiquant_core.evaluate import perplexity
from mobiquant_core.loading import load_engine
from mobiquant_core.policies import POLICIES


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("evaluate", help="perplexity per policy and budget, beside full precision")
    add_model(parser)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    parser.add_argument("--bits", type=float, nargs="+", required=True)
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=["router"])
    parser.add_argument("--mode", choices=("global", "per_linear"), default="global")
    parser.add_argument("--max-tokens", type=int, default=None)
    parser.add_argument("--window", type=int, default=512)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    text = read_text(arguments.text)
    progress = ProgressPrinter()
    engine = load_engine(arguments.model, device=arguments.device, progress=progress)
    found = perplexity(
        engine,
        engine.encode_plain(text),
        policies=arguments.policy,
        budgets=arguments.bits,
        window=arguments.window,
        max_tokens=arguments.max_tokens,
        mode=arguments.mode,
        progress=progress,
    )
    lines = [
        f"{found.reference}: perplexity {found.reference_perplexity:.3f} on {found.tokens:,} tokens",
        f"{'policy':<10}{'bits':>6}{'measured':>10}{'perplexity':>12}{'ratio':>9}",
    ]
    lines += [
        f"{row.policy:<10}{row.bits:>6g}{row.measured_bits:>10.3f}{row.perplexity:>12.3f}{row.ratio:>9.4f}"
        for row in found.rows
    ]
    return Outcome(asdict(found), lines)
