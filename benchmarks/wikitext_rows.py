"""Perplexity rows of the shipped calibration on WikiText-2 raw test, through the engine that the app runs.

Takes every n-th window of the test, so that two CPU cores finish; one JSON object per finished row is kept, and the
rows replace those of the same text in the stored study.

    python -m benchmarks.wikitext_rows --text wikitext2-test.raw.txt --every 6 --study assets/results.json
"""

import argparse
import datetime
import json
import math
import platform
import sys
from pathlib import Path

import torch

from mobiquant_core.atomic import write_file
from mobiquant_core.budget import BudgetController
from mobiquant_core.engine import Engine
from mobiquant_core.evaluate import _losses
from mobiquant_core.loading import load_engine
from mobiquant_core.routing import FixedDepth, Recorder
from mobiquant_core.trace import average_bits
from mobiquant_core.windows import cut_windows

WINDOW, BATCH = 512, 4
ROWS = (
    *(("fixed depth", float(bits)) for bits in (2, 4, 6, 8)),
    *(("router", bits) for bits in (3.0, 2.5, 4.0, 3.5, 5.0, 6.0, 2.25)),
    *(("random", bits) for bits in (3.0, 2.5, 3.5)),
    *(("layer", bits) for bits in (2.5, 3.0, 3.5, 4.0, 6.0)),
    *(("uniform", bits) for bits in (3.0, 2.5, 3.5, 5.0)),
    *(("norm", bits) for bits in (2.5, 3.0, 3.5)),
)


def measure(engine: Engine, windows: list[torch.Tensor], policy: str, bits: float) -> tuple[float, float]:
    """(mean loss in nats, measured bits) of one policy at one budget, with the slow correction between batches."""
    quantized = engine.quantized
    if policy == "fixed depth":
        depth = quantized.config.bits_by_depth.index(bits) + 1
        return torch.cat([_losses(quantized.model, part, FixedDepth(depth)) for part in windows]).mean().item(), bits
    controller = BudgetController(bits, quantized.config)
    losses, spent = [], 0.0
    for part in windows:
        recorder = Recorder()
        plan = quantized.plan(controller.effective, policy)
        losses.append(_losses(quantized.model, part, quantized.routing_pass(plan, 0, recorder)))
        used = average_bits(recorder.arrays()[0], quantized.linear_infos, quantized.config.bits_by_depth)
        controller.observe(used, part.numel())
        spent += used * len(part)
    return torch.cat(losses).mean().item(), spent / sum(len(part) for part in windows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--study", type=Path, required=True)
    arguments = parser.parse_args()
    engine = load_engine("demo")
    ids = engine.encode_plain(arguments.text.read_text(encoding="utf-8"))
    chosen = cut_windows(ids, engine.tokenizer.bos_token_id, WINDOW)[0][:: arguments.every]
    windows, tokens = list(chosen.split(BATCH)), chosen.shape[0] * (WINDOW - 1)
    assert engine.reference is not None, "the bundled model keeps its 16-bit weights"
    reference = torch.cat([_losses(engine.reference, part) for part in windows]).mean().item()
    base = {"bits": 16.0, "measured_bits": 16.0, "perplexity": math.exp(reference), "ratio": 1.0, "tokens": tokens}
    rows: list[dict] = [{"policy": "full precision", **base}]
    for policy, bits in ROWS:
        loss, measured = measure(engine, windows, policy, bits)
        row = {"policy": policy, "bits": bits, "measured_bits": measured, "perplexity": math.exp(loss)}
        rows.append(row | {"ratio": math.exp(loss - reference), "tokens": tokens})
        sys.stdout.write(f"{policy} {bits:g}: {rows[-1]['ratio']:.4f} at {measured:.3f} bits\n")
        sys.stdout.flush()
        store(arguments.study, rows, arguments.every)


def store(path: Path, rows: list[dict], every: int) -> None:
    """Puts the rows and how they came about into the study, whole or not at all."""
    study = json.loads(path.read_text(encoding="utf-8"))
    order = {policy: place for place, policy in enumerate(("full precision", *dict.fromkeys(name for name, _ in ROWS)))}
    study["elastic"]["rounding"]["wikitext2"] = sorted(rows, key=lambda row: (order[row["policy"]], row["bits"]))
    study["wikitext2_run"] = {
        "command": f"python -m benchmarks.wikitext_rows --every {every} --text TEXT --study assets/results.json",
        "device": f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "tokens": rows[0]["tokens"],
    }
    write_file(path, (json.dumps(study, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
