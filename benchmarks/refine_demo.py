"""Refines the bundled model's calibration where uniform depths fail: v_proj and o_proj of its first layer.

On two CPU cores, a few minutes. Reads training documents of the data folder, as study_data.py does.

    python -m benchmarks.refine_demo --out assets/demo_model/calibration.safetensors
"""

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.study_data import documents, tokens_of
from mobiquant_core.calibrate.refine import RefineSettings, refine_linears
from mobiquant_core.calibration import load_calibration, save_calibration
from mobiquant_core.convert import quantize_model
from mobiquant_core.windows import cut_windows

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TOKENS = {"wikipedia": 300_000, "books": 120_000, "tinystories": 50_000}
SITES = {
    "layers.0.self_attn.v_proj": "layers.0.attention_input",
    "layers.0.self_attn.o_proj": "layers.0.attention_output",
}
"""Linears to refine, each with the site that its input scale belongs to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    folder = ASSETS / "demo_model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).eval()
    teacher.requires_grad_(False)
    found = load_calibration(folder / "calibration.safetensors")
    parts = [tokens_of(tokenizer, documents(kind, False, 60_000), count) for kind, count in TOKENS.items()]
    windows = torch.cat([cut_windows(ids.tolist(), tokenizer.bos_token_id, 512)[0] for ids in parts])
    weights = {}
    for name, site in SITES.items():
        weight = teacher.get_submodule(f"model.{name}").get_parameter("weight").detach()
        scale = (found.input_scales or {}).get(site)
        weights[name] = weight if scale is None else weight * scale
    quantized = quantize_model(copy.deepcopy(teacher), found.config, found)
    start = time.monotonic()

    def tell(text: str, _: float) -> None:
        sys.stdout.write(f"[{time.monotonic() - start:6.1f}s] {text}\n")
        sys.stdout.flush()

    refine_linears(quantized, teacher, weights, windows, RefineSettings(arguments.steps, layers=arguments.layers), tell)
    found.provenance["refined"] = f"{', '.join(SITES)}: {arguments.steps} steps"
    save_calibration(found, arguments.out)


if __name__ == "__main__":
    main()
