"""The command line: `python -m mobiquant_core COMMAND MODEL ...`.

Exit status 0 for success, 2 for bad usage or input (one clear line), 1 for a fault of ours.
"""

import argparse
import json
import os
import sys
import traceback

from mobiquant_core.cli import bench, common, evaluate, generate, info, migrate, quantize, trace
from mobiquant_core.errors import MobiQuantError
from mobiquant_core.hf import silence

COMMANDS = (quantize, generate, evaluate, trace, migrate, info, bench)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mobiquant", description="Elastic-bit quantization: one set of weights, any bit budget from 2 to 8."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    silence()
    try:
        outcome = parsed.run(parsed)
    except MobiQuantError as error:
        return _fail(parsed, str(error), 2)
    except KeyboardInterrupt:
        return _fail(parsed, "Stopped.", 2)
    except Exception as error:  # the outermost edge: a person gets one line, a developer the rest on request
        if os.environ.get("MOBIQUANT_DEBUG"):
            traceback.print_exc()
        reason = (str(error).splitlines() or [""])[0]
        return _fail(parsed, f"Internal fault: {type(error).__name__}: {reason}. Set MOBIQUANT_DEBUG=1 for details.", 1)
    return _write(parsed, outcome)


def _write(parsed: argparse.Namespace, outcome: common.Outcome) -> int:
    lines = list(outcome.lines)
    if parsed.json:
        lines = [json.dumps(common.finite(outcome.data), ensure_ascii=True, allow_nan=False)]
    text = "".join(line + "\n" for line in lines)
    try:
        sys.stdout.write(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`| head`); nothing more can be said to it.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the interpreter's own last flush
    return 0


def _fail(parsed: argparse.Namespace, message: str, status: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"mobiquant {parsed.command}: {line}\n")
    if parsed.json:
        sys.stdout.write(json.dumps({"error": line}) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
