"""Seconds and peak memory of block-wise calibration on a model of Llama-3-8B's shape. It fits nothing anyone uses."""

import itertools
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mobiquant_core.calibrate.blockwise import BlockwiseSettings, fit_blocks
from mobiquant_core.calibrate.full import FullSettings, prepare_student
from mobiquant_core.config import MobiQuantConfig

if TYPE_CHECKING:
    from benchmarks.calibration_study import Study

BLOCKWISE_LARGE = BlockwiseSettings(base_steps=16, steps=64, windows_per_depth=2)


def large_shape(study: "Study") -> None:
    """Seconds and peak memory per block of an 8B-shaped model, random weights and tokens."""
    arguments = study.arguments
    hidden, inner, heads, shared = (256, 512, 4, 2) if arguments.smoke else (4096, 14336, 32, 8)
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": inner}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": shared}
    config = LlamaConfig(vocab_size=4096, num_hidden_layers=arguments.blocks, **sizes)
    with torch.device(study.device):
        model = LlamaForCausalLM(config).bfloat16().eval()
    count, tokens = (8, 64) if arguments.smoke else (128, 2048)
    windows = torch.randint(0, 4096, (count, tokens), device=study.device)
    settings = FullSettings(BlockwiseSettings(base_steps=2, steps=4) if arguments.smoke else BLOCKWISE_LARGE)
    student = prepare_student(model, MobiQuantConfig(), windows, replace(settings, measure_windows=2))
    marks = [time.monotonic()]

    def mark(text: str, share: float) -> None:
        study.synchronize()
        marks.append(time.monotonic())

    fit_blocks(student, windows, settings.blockwise, mark)
    study.synchronize()
    marks.append(time.monotonic())
    seconds = [after - before for before, after in itertools.pairwise(marks[1:])]
    peak = torch.cuda.max_memory_allocated() / 2**30 if study.device.type == "cuda" else 0.0
    figures = {"seconds_per_block": seconds, "peak_gib": peak, "minutes_for_32": 32 * max(seconds) / 60}
    study.results["llama3-8b shape"] = figures | {"windows": [count, tokens], "settings": asdict(settings.blockwise)}
    study.note(f"8B shape: {figures}")
    study.save()
