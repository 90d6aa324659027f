"""The whole of a full calibration: blocks first, then end to end, then the artefact.

It knows the order of the stages and what each leaves behind; the stages do the work.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mobiquant_core.calibrate.artefact import student_calibration
from mobiquant_core.calibrate.blockwise import BlockwiseSettings, fit_blocks
from mobiquant_core.calibrate.end_to_end import EndToEnd, EndToEndSettings
from mobiquant_core.calibrate.local_gains import measure_layer_scores, measure_output_sizes
from mobiquant_core.calibrate.mlp import attach_routers
from mobiquant_core.calibrate.resume import Progress
from mobiquant_core.calibrate.schedule import SOFTEST
from mobiquant_core.calibrate.student import Student
from mobiquant_core.calibrate.thresholds import measure_thresholds
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import quantize_model, working_copy
from mobiquant_core.rounding import LARGEST_REACH

ProgressCall = Callable[[str, float], None]
LARGEST_END_TO_END = 2_000_000_000
TWO_STAGES = EndToEndSettings(
    steps=1900,
    rounding_rate=1e-2,
    base_share=0.76,
    spared_share=3 / 16,
    rescored=4,
    settled_range_rate=5e-4,
    highest_budget=5.0,
    fixed_every=4,
    fixed_first=0.375,
)
"""What brought one model within 1 % of one fitted for 2, 3 or 4 bits alone (benchmarks/LOG.md)."""
TWO_STAGES_REACH = 0.3
BLOCKWISE_SHARE = 0.15
"""Part of the progress bar that belongs to the block-wise stage."""


@dataclass(frozen=True)
class FullSettings:
    """Everything a full calibration can be asked for."""

    blockwise: BlockwiseSettings = field(default_factory=BlockwiseSettings)
    end_to_end: EndToEndSettings = field(default_factory=EndToEndSettings)
    input_scales: bool = True
    reach: float = 0.0
    """Learnt rounding may cross a base cell's border from so near, in base cells; 0: from half a pivot cell only."""
    blockwise_windows: int = 64
    measure_windows: int = 16
    rival_windows: int = 8


def settings_for(weights: int, on_gpu: bool) -> FullSettings:
    """The recipe that fits a device and a size: under three minutes on an H100 for the bundled model.

    End to end a student needs the whole model at every depth in memory; beyond `LARGEST_END_TO_END` weights the
    blocks alone are fitted, and routers stay at the layer policy.
    """
    if weights > LARGEST_END_TO_END:
        return FullSettings(BlockwiseSettings(base_steps=16, steps=64), EndToEndSettings(steps=0))
    if not on_gpu:
        few = EndToEndSettings(steps=40, windows_per_step=4, rounding_rate=1e-2, fixed_every=4)
        return FullSettings(BlockwiseSettings(base_steps=4, steps=12, windows_per_depth=1, rounding_rate=1e-2), few)
    return FullSettings(BlockwiseSettings(16, 48, rounding_rate=1e-2), TWO_STAGES, reach=TWO_STAGES_REACH)


def prepare_student(
    model: PreTrainedModel,
    config: MobiQuantConfig,
    windows: Int[Tensor, "windows tokens"],
    settings: FullSettings,
) -> Student:
    """A student with what the settings ask for attached; its model is changed until `restore`."""
    on_gpu = windows.is_cuda
    student = Student(model, config, torch.bfloat16 if on_gpu else torch.float32)
    student.run.reach = min(settings.reach, LARGEST_REACH)
    if settings.input_scales:
        for site in student.sites:
            if site.site.norm is not None:
                site.log_scale = nn.Parameter(torch.zeros(site.in_features, device=windows.device))
    sizes = measure_output_sizes(student, windows[: settings.measure_windows])
    for linear, size in zip(student.linears, sizes.tolist(), strict=True):
        linear.shift_unit = max(size, 1e-6)
    if max(settings.end_to_end.rounding_rate, settings.blockwise.rounding_rate) > 0:
        for linear in student.linears:
            student.run.softness = torch.full((), SOFTEST, device=windows.device)
            linear.lean = nn.Parameter(torch.zeros_like(linear.weight, dtype=torch.float32))
    return student


def fit_student(
    student: Student,
    windows: Int[Tensor, "windows tokens"],
    settings: FullSettings,
    progress: ProgressCall | None = None,
    resume: Progress | None = None,
    other: Int[Tensor, "windows tokens"] | None = None,
) -> float:
    """Both stages in place; returns the last KL. The end-to-end stage starts routers at the layer policy, and shows
    them `other` text as well."""

    def report(share_before: float, share: float) -> ProgressCall | None:
        if progress is None:
            return None
        call = progress
        return lambda text, done: call(text, share_before + share * done)

    fit_blocks(student, windows[: settings.blockwise_windows], settings.blockwise, report(0.0, BLOCKWISE_SHARE), resume)
    if student.config.depths > 1:
        attach_routers(student, measure_layer_scores(student, windows[: settings.measure_windows]))
    if settings.end_to_end.steps == 0:
        return math.nan
    trainer = EndToEnd(student, settings.end_to_end, other)
    return trainer.run(windows, report(BLOCKWISE_SHARE, 0.95 - BLOCKWISE_SHARE))


def calibrate_full(
    model: PreTrainedModel,
    windows: Int[Tensor, "windows tokens"],
    config: MobiQuantConfig = MobiQuantConfig(),  # noqa: B008 - frozen
    settings: FullSettings | None = None,
    progress: ProgressCall | None = None,
    resume_dir: Path | None = None,
    other: Int[Tensor, "windows tokens"] | None = None,
) -> Calibration:
    """Fits a calibration and leaves the model as it was."""
    device = next(model.parameters()).device
    windows = windows.to(device)
    weights = sum(parameter.numel() for parameter in model.parameters())
    settings = settings or settings_for(weights, device.type == "cuda")
    started = time.monotonic()
    if settings.end_to_end.steps > 0 and next(model.parameters()).dtype != torch.float32:
        # Against a 16-bit teacher the finest slices would learn its rounding.
        model = copy.deepcopy(model).float()
    tag = {"settings": asdict(settings), "config": asdict(config), "model": model.config.to_dict()}
    resume = Progress(resume_dir, {**tag, "windows": float(windows.double().sum()), "shape": list(windows.shape)})
    training = model.training
    student = prepare_student(model.eval(), config, windows, settings)
    try:
        divergence = fit_student(student, windows, settings, progress, resume, other)
        found = student_calibration(student, windows[-settings.measure_windows :])
    finally:
        student.restore()
        model.train(training)
    if config.depths > 1:
        # The rivals' thresholds, on the model as it will run; the router's were measured at mixed budgets above.
        quantized = quantize_model(working_copy(model, found), config, found, keep_originals=True)
        measure_thresholds(quantized, windows[: settings.rival_windows], lambda _: None, ("norm", "oracle"))
    found.provenance |= {"effort": "full", "final_kl": f"{divergence:.4f}", "windows": str(tuple(windows.shape))}
    found.provenance["seconds"] = f"{time.monotonic() - started:.0f}"
    resume.clear()
    return found
