"""`quantize`: slices, calibration and router of a model, written as a checkpoint."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from mobiquant_core.calibrate import calibrate
from mobiquant_core.checkpoint import save_checkpoint
from mobiquant_core.cli.common import Outcome, ProgressPrinter, add_model, read_text
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import quantize_model
from mobiquant_core.errors import UnsupportedModelError
from mobiquant_core.hf import load_model, load_tokenizer
from mobiquant_core.loading import (
    CALIBRATION_WINDOWS,
    bundled_text,
    calibration_windows,
    find_folder,
    program_windows,
    resolve_device,
)
from mobiquant_core.router import ROUTER_KINDS

FULL_WINDOWS = 4096
"""A full calibration trains on its text: as many windows of it as there are, within reason."""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("quantize", help="slice a model, calibrate it, write a checkpoint")
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--text", type=Path, metavar="FILE", help="calibration text (default: the bundled one)")
    parser.add_argument("--router", choices=ROUTER_KINDS, help="default: sketch for fast, mlp for full")
    parser.add_argument("--calibrate", choices=("none", "fast", "full"), default="fast")
    parser.add_argument("--slices", type=int, nargs="+", default=[2, 2, 2, 2], help="slice widths, base first")
    parser.add_argument("--group-size", type=int, default=128)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    started = time.perf_counter()
    progress = ProgressPrinter()
    config = MobiQuantConfig(tuple(arguments.slices), arguments.group_size)
    text = None if arguments.text is None else read_text(arguments.text)
    if arguments.router is None:
        arguments.router = "mlp" if arguments.calibrate == "full" else "sketch"
    if arguments.calibrate == "none" and arguments.router != "none":
        arguments.router = "none"
        progress("Without calibration there is no router; only uniform and random can spend a budget", 0.0)
    folder = find_folder(arguments.model)
    if folder.quantized:
        raise UnsupportedModelError(f"{folder.path} is quantized already. Give the 16-bit model it was made from.")
    device = resolve_device(arguments.device)
    progress("Reading weights", 0.0)
    tokenizer = load_tokenizer(folder.path)
    model = load_model(folder, torch.float32 if device.type == "cpu" else torch.bfloat16, device)
    calibration = None
    if arguments.calibrate != "none":
        count = FULL_WINDOWS if arguments.calibrate == "full" else CALIBRATION_WINDOWS
        vocabulary = model.config.vocab_size
        windows = calibration_windows(tokenizer, text or bundled_text(), vocabulary, count).to(device)
        other = program_windows(tokenizer, vocabulary) if arguments.calibrate == "full" else None
        calibration = calibrate(
            model,
            windows,
            config=config,
            router=arguments.router,
            effort=arguments.calibrate,
            progress=progress,
            # Beside the checkpoint-to-be: a killed run finds its finished blocks there.
            resume_dir=arguments.out.with_name(arguments.out.name + ".unfinished"),
            other_windows=other,
        )
    quantized = quantize_model(model, config, calibration, progress)
    progress("Writing the checkpoint", 0.99)
    files = save_checkpoint(quantized, tokenizer, arguments.out)
    data = {
        "out": str(arguments.out),
        "bytes": files,
        "total_bytes": sum(files.values()),
        "seconds": time.perf_counter() - started,
        "slice_bits": list(config.slice_bits),
        "group_size": config.group_size,
        "router": arguments.router,
        "calibrate": arguments.calibrate,
        "linears": len(quantized.linears),
    }
    line = (
        f"{len(quantized.linears)} linears in {arguments.out}: {data['total_bytes']:,} bytes, {data['seconds']:.1f} s"
    )
    return Outcome(data, [line])
