"""The recorded run that the page shows before any model is there.

Reads `assets/traces/*.json`; a missing or damaged file means an empty page, never a failed start.
"""

import logging
from pathlib import Path

from app import wire
from mobiquant_core.errors import MobiQuantError
from mobiquant_core.trace import Trace, average_bits
from mobiquant_core.trace_file import load_trace

logger = logging.getLogger(__name__)
RUN_ID = "recorded"


def first_trace(folder: Path) -> Trace | None:
    """The first readable run file in alphabetical order."""
    for path in sorted(folder.glob("*.json")):
        try:
            return load_trace(path)
        except (MobiQuantError, OSError) as error:
            logger.warning("the recorded run %s was left out: %s", path.name, error)
    return None


def opening(trace: Trace | None) -> str:
    """The message that draws the first picture; empty where there is no run file."""
    if trace is None:
        return ""
    measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
    return wire.run_message(trace, RUN_ID, 0, state="recorded", measured=measured)
