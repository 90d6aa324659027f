"""The calibration study: fits variants, rivals and bars on one machine and writes every figure as JSON.

python -m benchmarks.study_data --tokenizer assets/demo_model --out .carry/study
python -m benchmarks.calibration_study --data .carry/study --out OUT --variants ranges rounding --seconds 45
python -m benchmarks.calibration_study --shape llama3-8b --blocks 2 --out OUT
"""

import argparse
import datetime
import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.study_evaluation import BATCH, PolicyBook, policy_rows, print_rows, task_rows
from benchmarks.study_rivals import bit_specific, plain_baselines
from benchmarks.study_shape import large_shape
from mobiquant_core.calibrate.artefact import student_calibration
from mobiquant_core.calibrate.blockwise import BlockwiseSettings, block_state, fit_blocks
from mobiquant_core.calibrate.end_to_end import EndToEnd, EndToEndSettings
from mobiquant_core.calibrate.full import TWO_STAGES, TWO_STAGES_REACH, FullSettings, prepare_student
from mobiquant_core.calibrate.local_gains import measure_layer_scores
from mobiquant_core.calibrate.mlp import attach_routers, router_share
from mobiquant_core.calibrate.student import Student
from mobiquant_core.calibrate.student_policies import depth_losses, reference_loss
from mobiquant_core.calibrate.thresholds import measure_thresholds
from mobiquant_core.calibration import Calibration, save_calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import quantize_model, working_copy
from mobiquant_core.tasks import TASKS, make_requests, read_items

COMMAND_LINE = ("steps", "seconds", "windows_per_step")
"""Settings that the command line gives to every fit alike."""
VARIANTS: dict[str, dict] = {
    "frozen": {},
    "no-scales": {"input_scales": False},
    "rounding": {"rounding_rate": 1e-2},
    "rounding-fast": {"rounding_rate": 2e-2},
    "reach": {"rounding_rate": 1e-2, "reach": 0.2, "fixed_every": 4},
    "two-stage": {key: value for key, value in asdict(TWO_STAGES).items() if key not in COMMAND_LINE}
    | {"reach": TWO_STAGES_REACH},
    "base-only": {"rounding_rate": 1e-2, "fixed_every": 1, "fixed_first": 1.0},
    "two-bits": {"rounding_rate": 1e-2, "slice_bits": (2,)},
}
POLICY_BUDGETS = {
    "router": (2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0),
    "layer": (2.5, 3.0, 3.5, 4.0, 6.0),
    "uniform": (2.5, 3.0, 3.5, 5.0),
    "random": (2.5, 3.0, 3.5),
    "norm": (2.5, 3.0, 3.5),
}
QUICK_BUDGETS = {"router": (2.5, 3.0, 3.5, 4.0, 6.0), "layer": (2.5, 3.0, 4.0)}
DOMAIN_BUDGETS = {"router": (2.5, 3.0, 4.0), "layer": (2.5, 3.0, 4.0), "random": (2.5, 3.0)}
DOMAINS = ("wikipedia", "books", "tinystories", "dialogue", "code", "headers")
RIVAL_WINDOWS = 8
"""Calibration windows on which the thresholds of `norm` and `oracle` are measured."""


class Study:
    """What one run of the script shares: model, text, settings, results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.start = time.monotonic()
        self.results: dict = {"torch": torch.__version__, "device": self.device_name(), "arguments": vars(arguments)}
        self.steps = arguments.steps
        self.students: list[Student] = []

    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"

    def load(self) -> None:
        arguments = self.arguments
        loaded = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        moved = torch.nn.Module.to(loaded, self.device).eval().requires_grad_(False)
        self.model = cast(PreTrainedModel, moved)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.model)
        with np.load(arguments.data / "tokens.npz") as file:
            text = {name: file[name] for name in file.files}
        parts = [self.windows(ids, arguments.window) for name, ids in text.items() if name.startswith("calibration")]
        mixed = torch.cat(parts)
        order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
        self.calibration = mixed[order].to(self.device)
        self.other = self.windows(text["other-code"], arguments.window)
        self.tests = {
            name.removeprefix("test-"): self.windows(ids, arguments.test_window)[: arguments.limit].to(self.device)
            for name, ids in text.items()
            if name.startswith("test")
        }
        self.note(f"loaded, {len(self.calibration)} calibration windows, {len(self.tests['wikitext2'])} test windows")

    @staticmethod
    def windows(ids: np.ndarray, tokens: int) -> Tensor:
        """BOS and tokens - 1 consecutive tokens each."""
        count = len(ids) // (tokens - 1)
        cut = torch.from_numpy(ids[: count * (tokens - 1)].astype(np.int64)).view(count, tokens - 1)
        return torch.nn.functional.pad(cut, (1, 0), value=0)

    def note(self, text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - self.start:6.1f}s] {text}\n")
        sys.stdout.flush()

    def save(self) -> None:
        (self.out / "study.json").write_text(json.dumps(self.results, indent=1, default=str))

    def attempt(self, part: Callable[..., None], *given: object) -> None:
        """One part of the study; a fault in it is written down and the others still run."""
        try:
            part(*given)
        except Exception:
            trace = traceback.format_exc()
            self.note(f"{part.__name__} failed\n{trace}")
            self.results.setdefault("failures", []).append(trace)
            for student in self.students:
                student.restore()
        self.students.clear()

    def settings(self, overrides: dict, steps: int | None) -> FullSettings:
        arguments = self.arguments
        chosen = dict(overrides)
        rounding = chosen.pop("rounding_rate", 0.0)
        scales, reach = chosen.pop("input_scales", True), chosen.pop("reach", 0.0)
        tiny = {"base_steps": 2, "steps": 4, "windows_per_depth": 1}
        base_steps = arguments.base_steps or arguments.block_steps // 3
        quick = tiny if arguments.smoke else {"base_steps": base_steps, "steps": arguments.block_steps}
        blockwise = replace(BlockwiseSettings(rounding_rate=rounding), **quick)
        end_to_end = EndToEndSettings(
            windows_per_step=arguments.windows_per_step,
            rounding_rate=rounding,
            steps=steps or arguments.steps or 1,
            seconds=None if steps or arguments.steps else arguments.seconds,
        )
        defaults = asdict(end_to_end)
        # The command line gives floats; counts stay whole numbers.
        known = {
            key: int(value) if isinstance(defaults[key], int) else value
            for key, value in chosen.items()
            if key in defaults
        }
        measured = 8 if arguments.smoke else 16
        return FullSettings(blockwise, replace(end_to_end, **known), scales, reach, measure_windows=measured)

    def fit(self, name: str, config: MobiQuantConfig, overrides: dict, steps: int | None = None) -> Student:
        """One fitted student, timed stage by stage."""
        begin = time.monotonic()
        settings = self.settings(overrides, steps)
        student = prepare_student(self.model, config, self.calibration, settings)
        self.students.append(student)
        fit_blocks(student, self.calibration[: settings.blockwise_windows], settings.blockwise)
        self.synchronize()
        blockwise_seconds = time.monotonic() - begin
        self.short(f"{name}: block by block in {blockwise_seconds:.1f}s", student)
        if config.depths > 1:
            attach_routers(student, measure_layer_scores(student, self.calibration[: settings.measure_windows]))
        trainer = EndToEnd(student, settings.end_to_end, self.other)
        settle = trainer.settle

        def noted(batch: Tensor) -> None:
            settle(batch)
            self.synchronize()
            self.short(f"{name}: base slice settled at step {trainer.steps_done}", student)

        trainer.settle = noted
        divergence = math.nan if self.arguments.blocks_only else trainer.run(self.calibration)
        self.synchronize()
        seconds = time.monotonic() - begin
        self.results.setdefault("fits", {})[name] = {
            "slice_bits": config.slice_bits,
            "overrides": overrides,
            "settings": asdict(settings),
            "blockwise_seconds": blockwise_seconds,
            "seconds": seconds,
            "steps": trainer.steps_done,
            "final_kl": divergence,
            "capture_failure": trainer.gradients.failure,
        }
        self.steps = trainer.steps_done
        self.short(
            f"{name}: {trainer.steps_done} steps, {seconds:.1f}s in all, KL {divergence:.4f}, "
            f"graph {trainer.gradients.failure or 'ok'}",
            student,
        )
        del trainer
        gc.collect()
        return student

    def short(self, text: str, student: Student) -> None:
        """Ratios of the fixed depths on a few test windows, beside a note."""
        windows = self.tests["wikitext2"][:64]
        compute, student.run.compute = student.run.compute, torch.float32
        student.freeze()
        reference = reference_loss(student, windows, BATCH)
        losses = depth_losses(student, windows, range(1, student.config.depths + 1), BATCH)
        student.thaw()
        student.run.compute = compute
        self.note(f"{text} | depths {' '.join(f'{math.exp(loss - reference):.4f}' for loss in losses)}")

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def elastic(self, name: str, overrides: dict, whole: bool) -> None:
        """Fits one elastic variant and measures it: everything, or a short table."""
        student = self.fit(name, MobiQuantConfig(overrides.pop("slice_bits", (2, 2, 2, 2))), overrides)
        if self.arguments.depths_only:
            student.restore()
            return
        student.run.compute = torch.float32
        sample = self.calibration[-16 if not self.arguments.smoke else -2 :]
        begin = time.monotonic()
        found = student_calibration(student, self.calibration[-64 if not self.arguments.smoke else -4 :])
        self.results["fits"][name]["artefact_seconds"] = time.monotonic() - begin
        save_calibration(found, self.out / f"{name}.safetensors")
        if whole:
            self.save_state(student, name)
        student.freeze()
        test = self.tests["wikitext2"]
        budgets = POLICY_BUDGETS if whole else QUICK_BUDGETS
        book = PolicyBook(student, found, sample[:4])
        rows = policy_rows(student, book, test if whole else test[:192], budgets, BATCH)
        print_rows(f"{name}, wikitext2 test, router share {router_share(student):.4f}", rows, sys.stdout.write)
        self.results.setdefault("elastic", {})[name] = {"wikitext2": rows, "spent": found.spent_bits}
        if whole:
            self.rest(student, book, name)
        else:
            held_out = policy_rows(student, book, self.tests["wikipedia"][:96], {"router": (2.5, 3.0, 4.0)}, BATCH)
            print_rows(f"{name}, held-out Wikipedia", held_out, sys.stdout.write)
        self.save()
        student.restore()
        if whole:
            self.complete(name, found)

    def complete(self, name: str, found: Calibration) -> None:
        """The rivals' thresholds, on the model as it will run, and where the artefact comes from; saved again."""
        begin, fit = time.monotonic(), self.results["fits"][name]
        quantized = quantize_model(working_copy(self.model, found), found.config, found, keep_originals=True)
        measure_thresholds(quantized, self.calibration[:RIVAL_WINDOWS], lambda _: None, ("norm", "oracle"))
        fit["rivals_seconds"] = time.monotonic() - begin
        self.note(f"artefact {fit['artefact_seconds']:.1f}s, rivals' thresholds {fit['rivals_seconds']:.1f}s")
        found.provenance |= {
            "effort": "full",
            "seconds": f"{fit['seconds']:.0f}",
            "device": self.device_name(),
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "command": f"python -m benchmarks.calibration_study {' '.join(sys.argv[1:])}",
            "text": f"{len(self.calibration)} windows of {self.calibration.shape[1]} tokens, made by study_data; "
            f"in routed steps also {len(self.other)} of program text",
            "end_to_end_steps": str(fit["steps"]),
            "final_kl": f"{fit['final_kl']:.4f}",
        }
        save_calibration(found, self.out / f"{name}.safetensors")

    def rest(self, student: Student, book: PolicyBook, name: str) -> None:
        figures = self.results["elastic"][name]
        oracle = policy_rows(student, book, self.tests["wikitext2"][:32], {"oracle": (2.5, 3.0)}, 8)
        print_rows("oracle, 32 windows", oracle, sys.stdout.write)
        figures["oracle_32_windows"] = oracle
        for domain in DOMAINS:
            rows = policy_rows(student, book, self.tests[domain], DOMAIN_BUDGETS, BATCH)
            print_rows(domain, rows, sys.stdout.write)
            figures[domain] = rows
            self.save()
        self.note("domains done")
        if self.arguments.tasks is not None:
            requests = {}
            for task in TASKS:
                items = read_items(self.arguments.tasks, task, self.arguments.task_limit)
                requests[task] = (items, make_requests(task, items, self.encode, 0, 512))
            figures["tasks"] = task_rows(student, book, requests)
            for row in figures["tasks"]:
                normalised = row["accuracy_normalised"]
                second = "" if normalised is None else f" / {normalised:.3f}"
                sys.stdout.write(f"{row['task']:15s} {row['bits']:4g} {row['accuracy']:.3f}{second}\n")
            self.note("tasks done")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def save_state(self, student: Student, name: str) -> None:
        """Everything fitted but rounding, which the artefact holds."""
        layers = range(len(student.backbone.layers))
        state = {key: value for layer in layers for key, value in block_state(student, layer).items()}
        small = {key: value.detach().cpu().contiguous() for key, value in state.items() if "lean" not in key}
        save_file(small, self.out / f"{name}.state.safetensors")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/demo_model")
    parser.add_argument("--data", type=Path, default=Path(".carry/study"))
    parser.add_argument("--tasks", type=Path, help="folder with the task files")
    parser.add_argument("--task-limit", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", default=[], help=f"short runs of: {', '.join(VARIANTS)}")
    parser.add_argument("--final", help="variant measured in full, with bit-specific rivals")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the end-to-end stage")
    parser.add_argument("--seconds", type=float, default=45.0, help="time of one end-to-end fit")
    parser.add_argument("--final-seconds", type=float)
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument(
        "--rival-steps", type=int, help="steps of bit-specific fits, by default the final fit's; 0: none"
    )
    parser.add_argument("--windows-per-step", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--test-window", type=int, default=512)
    parser.add_argument("--limit", type=int, help="test windows")
    parser.add_argument("--block-steps", type=int, default=48, help="steps of a block over all depths")
    parser.add_argument("--base-steps", type=int, help="steps of a block's base slice alone; a third of the others")
    parser.add_argument("--blocks-only", action="store_true", help="leave the end-to-end stage out")
    parser.add_argument(
        "--depths-only", action="store_true", help="variants are fitted and read at uniform depths only"
    )
    parser.add_argument("--bars", nargs="*", type=int, metavar="BITS", help="only fits for these widths, and the bars")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--shape", choices=("llama3-8b",))
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="everything tiny, to find mistakes")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_float32_matmul_precision("high")
    extra = {key: float(value) for key, value in (pair.split("=") for pair in arguments.set)}
    study = Study(arguments)
    if arguments.variants or arguments.final or arguments.bars:
        study.load()
        for name in arguments.variants:
            study.attempt(study.elastic, name, VARIANTS[name] | extra, False)
        if arguments.final:
            chosen = VARIANTS[arguments.final] | extra
            arguments.seconds = arguments.final_seconds or arguments.seconds
            study.attempt(study.elastic, arguments.final, chosen, True)
            steps = study.steps if arguments.rival_steps is None else arguments.rival_steps
            if not arguments.no_plain:
                study.attempt(plain_baselines, study)
            if steps:
                study.attempt(bit_specific, study, chosen, steps)
    if arguments.bars:
        study.attempt(bit_specific, study, VARIANTS["rounding"] | extra, arguments.steps)
    if arguments.shape:
        study.attempt(large_shape, study)
    study.save()


if __name__ == "__main__":
    main()
