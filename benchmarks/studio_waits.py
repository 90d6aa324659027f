"""What a visitor of the studio waits for: the page's own handlers on one model, from loading to every study.

Messages are made as for the page and dropped; the way to a browser is in page_speed.py. One JSON object last.

    python -m benchmarks.studio_waits [--model demo] [--device auto] [--tokens 128] [--out FILE]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import torch

from app.backend import REAL_CORE, EngineSlot
from app.handlers import Studio
from app.settings import Settings
from app.studies import Studies
from mobiquant_core.machine import describe_machine

BUDGETS = (2.0, 3.0, 4.0, 6.0, 8.0)
PROMPT = "The river runs through the valley and"
TEXT = " ".join([PROMPT] * 24)
VISITOR = cast("gr.Request", SimpleNamespace(session_hash="visitor"))


def read(messages: Iterator[str]) -> tuple[list[dict[str, Any]], list[float], int]:
    """Every message, when it came (seconds after the asking), and how many bytes there were in all."""
    began = time.perf_counter()
    found, times, size = [], [], 0
    for message in messages:
        times.append(time.perf_counter() - began)
        found.append(json.loads(message))
        size += len(message)
    return found, times, size


def load(model: str, device: str) -> tuple[Studio, dict[str, Any]]:
    slot = EngineSlot(REAL_CORE, model, device)
    began = time.perf_counter()
    slot.start()
    said = ""
    while slot.status.state == "loading":
        if slot.status.text != said:
            said = slot.status.text
            print(f"[{time.perf_counter() - began:6.1f} s] {said}", flush=True)
        time.sleep(0.02)
    status = slot.status
    if status.state != "live":
        sys.exit(f"{model} was not loaded: {status.text or status.state}")
    row = {"what": "load", "seconds": time.perf_counter() - began, "path": status.path, "device": status.device}
    if torch.cuda.is_available():
        row |= {"device_gigabytes": torch.cuda.memory_allocated() / 1e9}
        row |= {"peak_device_gigabytes": torch.cuda.max_memory_allocated() / 1e9}
    return Studio(Settings(model=model, device=device), slot), row


def generated(studio: Studio, bits: float, tokens: int) -> dict[str, Any]:
    messages, times, size = read(studio.generate(PROMPT, bits, "router", "global", 1, tokens, 0.8, VISITOR))
    columns = [message for message in messages if message["kind"] == "columns"]
    steps = [seconds for message in columns for seconds in message["timing"]["decode"]]
    return {
        "what": "generate",
        "bits": bits,
        "measured_bits": messages[-1]["measured"],
        "first_message_seconds": times[0],
        "tokens": len(steps),
        # As the page sees them: between the prompt's message and the last token's.
        "tokens_per_second": len(steps) / (times[-1] - times[0]) if steps else 0.0,
        "step_milliseconds": 1e3 * statistics.median(steps) if steps else 0.0,
        "messages": len(messages),
        "bytes": size,
    }


def studied(studio: Studio, tokens: int) -> Iterator[dict[str, Any]]:
    """Every other thing that may be asked for, on one text."""
    studies = Studies(studio)
    messages, times, size = read(studio.analyze(TEXT, 3.5, "router", "global", VISITOR))
    run = messages[-1]["run"]
    yield {"what": "analyze", "seconds": times[-1], "bytes": size, "tokens": messages[-1]["columns"]["n"]}
    sides = {side: {"bits": bits, "policy": "router"} for side, bits in (("a", 2.5), ("b", 6.0))}
    asked = {
        "migrate": lambda: studio.migrate(VISITOR, _event(run=run)),
        "magnitudes": lambda: studio.magnitudes(VISITOR, _event(run=run, layer=0)),
        "compare": lambda: studies.compare(PROMPT, 1, tokens, 0.8, VISITOR, _event(**sides)),
        "agree": lambda: studies.agree(VISITOR, _event(run=run)),
    }
    for what, ask in asked.items():
        _messages, times, size = read(ask())
        yield {"what": what, "seconds": times[-1], "bytes": size}


def _event(**data: Any) -> gr.EventData:
    return cast("gr.EventData", SimpleNamespace(_data=data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    studio, row = load(arguments.model, arguments.device)
    rows = [row, *(generated(studio, bits, arguments.tokens) for bits in BUDGETS)]
    rows += studied(studio, arguments.tokens)
    for row in rows:
        print(*(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    command = f"python -m benchmarks.studio_waits --model {arguments.model} --tokens {arguments.tokens}"
    machine = describe_machine(studio.slot.peek().device)
    text = json.dumps({"benchmark": "studio_waits", "command": command, **machine, "rows": rows})
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
