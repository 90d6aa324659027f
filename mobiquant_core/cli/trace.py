"""`trace`: a recorded run for the app and the notebooks."""

import argparse
from pathlib import Path
from typing import Any

from mobiquant_core.cli.common import Outcome, ProgressPrinter, add_budget, add_model, read_text
from mobiquant_core.loading import load_engine
from mobiquant_core.trace import average_bits
from mobiquant_core.trace_file import save_trace


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("trace", help="record a run")
    add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="generate from this and record the run")
    source.add_argument("--text", type=Path, metavar="FILE", help="record the model reading this text")
    add_budget(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN.json")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--errors", action="store_true", help="with --text: output error of every linear and token")
    parser.add_argument("--reference", action="store_true", help="with --text: full-precision loss and divergence")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    text = arguments.prompt if arguments.text is None else read_text(arguments.text)
    engine = load_engine(
        arguments.model,
        device=arguments.device,
        keep_reference=arguments.errors or arguments.reference or arguments.policy == "oracle",
        progress=ProgressPrinter(),
    )
    ids = engine.encode(text)
    asked = {"budget": arguments.bits, "policy": arguments.policy, "mode": arguments.mode}
    if arguments.text is not None:
        trace = engine.analyze(ids, **asked, errors=arguments.errors, reference=arguments.reference)
    else:
        drawn = {
            "max_new_tokens": arguments.max_new_tokens,
            "temperature": arguments.temperature,
            "seed": arguments.seed,
        }
        steps = list(engine.generate(ids, **asked, **drawn))
        trace = engine.assemble(steps, engine.run_settings("generate", **asked, **drawn))
    path = save_trace(trace, arguments.out)
    measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
    data = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "tokens": trace.tokens,
        "prompt_tokens": trace.prompt_tokens,
        "linears": len(trace.linears),
        "requested_bits": arguments.bits,
        "measured_bits": measured,
    }
    return Outcome(data, [f"{trace.tokens} tokens at {measured:.2f} bits in {path} ({data['bytes']:,} bytes)"])
