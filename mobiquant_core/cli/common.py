"""What commands share: the outcome of a command, progress on standard error, reading a text file.

It knows arguments and text, no models.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobiquant_core.errors import PromptError
from mobiquant_core.policies import POLICIES

TEXT_LIMIT = 64 * 2**20


@dataclass
class Outcome:
    """The JSON object of a command, and what a person reads instead."""

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)


class ProgressPrinter:
    """Writes a changing stage to standard error, at most a few lines a second."""

    def __init__(self) -> None:
        self._last_stage = ""
        self._last_time = 0.0

    def __call__(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if stage != self._last_stage and (now - self._last_time > 0.2 or share in (0.0, 1.0)):
            sys.stderr.write(f"[{share:4.0%}] {stage}\n")
            sys.stderr.flush()
            self._last_stage, self._last_time = stage, now


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that every command has."""
    parser.add_argument("model", metavar="MODEL", help="demo (the bundled model), a local folder, or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of standard output")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """A single budget and how it is spent."""
    parser.add_argument("--bits", type=float, required=True, help="average bits per weight, for example 3.5")
    parser.add_argument("--policy", choices=POLICIES, default="router", help="who spends them (default: router)")
    parser.add_argument("--mode", choices=("global", "per_linear"), default="global", help="one budget, or one each")


def read_text(path: Path) -> str:
    """The text of a file; PromptError where there is none."""
    try:
        if path.stat().st_size > TEXT_LIMIT:
            raise PromptError(f"{path} has {path.stat().st_size:,} bytes; at most {TEXT_LIMIT:,} are read. Cut it.")
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is no UTF-8 text. Convert it, or choose another file.") from error
    except OSError as error:
        raise PromptError(f"{path} could not be read: {error.strerror or error}.") from error
    if not text.strip():
        raise PromptError(f"{path} is empty. Give a text.")
    return text


def finite(value: Any) -> Any:
    """The same JSON tree with NaN and infinities as null: strict readers refuse them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
