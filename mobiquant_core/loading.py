"""From a name to an engine: the bundled model, a local folder, or a hub id; sliced on the way in if need be.

A plain model without a calibration gets a fast one on the bundled text, kept in the user's cache folder.
It reads files and puts parts together; it measures and decides nothing itself.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mobiquant_core import hub
from mobiquant_core.calibrate import calibrate
from mobiquant_core.calibrate.program_text import program_text
from mobiquant_core.calibration import FORMAT_VERSION, Calibration, load_calibration, save_calibration
from mobiquant_core.checkpoint import check_values, verify_checkpoint
from mobiquant_core.convert import QuantizedModel, quantize_model, working_copy
from mobiquant_core.engine import Engine
from mobiquant_core.errors import CheckpointError, ConfigError, MobiQuantError, UnsupportedModelError
from mobiquant_core.hf import CALIBRATION_FILE, load_model, load_tokenizer, quantized_of
from mobiquant_core.model_folder import ModelFolder, inspect_folder
from mobiquant_core.planes import use_kernels
from mobiquant_core.windows import cut_windows

Progress = Callable[[str, float], None]
ASSETS = Path(__file__).resolve().parents[1] / "assets"
DEMO_MODEL = ASSETS / "demo_model"
CALIBRATION_TEXT = ASSETS / "calibration" / "text.txt"
PROGRAM_CHARACTERS = 400_000
CALIBRATION_WINDOW = 256
CALIBRATION_WINDOWS = 16
_SAMPLES_PER_FILE, _SAMPLE_BYTES = 64, 65_536
_BYTES_OF_A_WEIGHT = 1.1
"""With all slices, and its share of a group's range and step."""
_ROOM_TO_RUN = 2**31
"""For keys and values, the inputs of a prompt, and one linear while it is sliced."""


def load_engine(
    name: str, *, device: str = "auto", keep_reference: bool = True, progress: Progress | None = None
) -> Engine:
    """An engine for `demo`, a folder or a hub id. Every failure is one MobiQuantError with a next step.

    `keep_reference` keeps the full-precision weights of a plain model beside its slices, where a device has room.
    """
    target = resolve_device(device)
    try:
        return _opened(name, target, keep_reference, progress or _silent)
    except torch.OutOfMemoryError as error:
        whole = torch.cuda.get_device_properties(target).total_memory / 1e9
        raise UnsupportedModelError(
            f"{name} does not fit on {target}, which has {whole:.0f} GB: memory ran out while it was loaded. Give a "
            "smaller model, a checkpoint made by `mobiquant quantize`, or --device cpu."
        ) from error


def _opened(name: str, target: torch.device, keep_reference: bool, tell: Progress) -> Engine:
    tell(f"Looking for {name}", 0.0)
    folder = find_folder(name)
    dtype = torch.float32 if target.type == "cpu" else torch.bfloat16
    if folder.quantized:
        tell("Checking the checkpoint", 0.05)
        verify_checkpoint(folder.path)
    tokenizer = load_tokenizer(folder.path)
    tell("Reading weights", 0.1)
    model = load_model(folder, dtype, target)
    _check_tokenizer(tokenizer, model, folder.path)
    if folder.quantized:
        quantized = quantized_of(model)
        check_values(quantized)
        _take_kernels(quantized, target, tell)
        tell("Ready", 1.0)
        return Engine(quantized, tokenizer, None, name)
    calibration = find_calibration(folder, model, tokenizer, tell)
    keep_reference = keep_reference and _has_room_for_both(model, calibration)
    try:
        quantized = _slice(model, calibration, keep_reference, tell)
    except MobiQuantError:
        kept = _kept_calibration(folder)
        if not kept.is_file() or (folder.path / CALIBRATION_FILE).is_file():
            raise
        # Readable, yet made for other code or another model: a cache is made again, never a reason to fail.
        tell("The kept calibration does not fit; calibrating again", 0.15)
        kept.unlink(missing_ok=True)
        model = load_model(folder, dtype, target)
        quantized = _slice(model, find_calibration(folder, model, tokenizer, tell), keep_reference, tell)
    _take_kernels(quantized, target, tell)
    tell("Ready", 1.0)
    return Engine(quantized, tokenizer, model if keep_reference else None, name)


def find_folder(name: str) -> ModelFolder:
    """The checked folder behind a name, fetched from the hub where it is no local one."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise UnsupportedModelError("No model was named. Give demo, a model folder, or a hub id.")
    if name == "demo":
        return inspect_folder(DEMO_MODEL)
    path = Path(name).expanduser()
    try:
        is_local = path.exists()
    except OSError as error:
        raise UnsupportedModelError(f"{name[:80]!r} cannot be a folder: {error.strerror}. Check the name.") from error
    if is_local or not hub.is_hub_id(name):
        return inspect_folder(path)
    return inspect_folder(hub.fetch(name))


def resolve_device(device: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"The device {device!r} is unknown. Give auto, cpu or cuda.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"The device {device!r} is not available here. Give auto or cpu.")
    return found


def find_calibration(folder: ModelFolder, model: PreTrainedModel, tokenizer: object, tell: Progress) -> Calibration:
    """The model's own calibration, the one made here earlier, or a fast new one."""
    own = folder.path / CALIBRATION_FILE
    if own.is_file():
        return load_calibration(own)
    kept = _kept_calibration(folder)
    if kept.is_file():
        try:
            return load_calibration(kept)
        except CheckpointError:
            # A cache is no one's only copy: what cannot be read is made again.
            tell("The kept calibration cannot be read; calibrating again", 0.15)
            kept.unlink(missing_ok=True)
    windows = calibration_windows(tokenizer, bundled_text(), model.config.vocab_size)
    calibration = calibrate(
        model,
        windows.to(model.device),
        router="sketch",
        effort="fast",
        progress=lambda text, share: tell(text, 0.15 + 0.55 * share),
    )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_calibration(calibration, kept)
    except (OSError, MobiQuantError):
        tell("The calibration could not be kept for the next start", 0.7)
    return calibration


def calibration_windows(
    tokenizer: object, text: str, vocabulary: int, count: int = CALIBRATION_WINDOWS
) -> torch.Tensor:
    """int64 [windows, tokens]: at most `count` evenly spread windows of a text, each starting with BOS."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[operator]
    bos = getattr(tokenizer, "bos_token_id", None)
    windows, _ = cut_windows([token for token in ids if token < vocabulary], bos, CALIBRATION_WINDOW)
    if not len(windows):
        raise UnsupportedModelError("The calibration text is too short. Give a text of some thousand words.")
    picks = torch.linspace(0, len(windows) - 1, min(count, len(windows))).round().long()
    return windows[picks]


def program_windows(tokenizer: object, vocabulary: int) -> torch.Tensor | None:
    """Windows of program text, None on a machine that has none."""
    text = "\n".join(program_text())[:PROGRAM_CHARACTERS]
    return calibration_windows(tokenizer, text, vocabulary, 2 * CALIBRATION_WINDOWS) if text else None


def bundled_text() -> str:
    """The calibration text that comes with the project."""
    try:
        return CALIBRATION_TEXT.read_text("utf-8").replace("\n<|endoftext|>\n", "\n\n")
    except OSError as error:
        raise CheckpointError(
            f"The bundled calibration text {CALIBRATION_TEXT} could not be read: {error.strerror}. "
            "Get the project again, or give --text FILE to quantize."
        ) from error


def cache_folder() -> Path:
    """Where calibrations made here are kept: MOBIQUANT_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mobiquant"
    return Path(os.environ.get("MOBIQUANT_CACHE") or default)


def _kept_calibration(folder: ModelFolder) -> Path:
    """Where the calibration made here for this model is kept; the format's version is part of the name."""
    return cache_folder() / f"calibration-v{FORMAT_VERSION}-{_fingerprint(folder.path)}.safetensors"


def _slice(model: PreTrainedModel, calibration: Calibration, keep_reference: bool, tell: Progress) -> QuantizedModel:
    """The model sliced under its calibration; MobiQuantError where the two do not fit."""
    try:
        quantized = quantize_model(
            working_copy(model, calibration) if keep_reference else model,
            calibration.config,
            calibration,
            lambda text, share: tell(text, 0.7 + 0.3 * share),
            keep_originals=keep_reference,
        )
        for policy in calibration.score_quantiles:
            # Solved here, so that quantiles which do not fit are found before the engine is handed out.
            quantized.plan((calibration.config.bits(1) + calibration.config.total_bits) / 2, policy)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, ValueError) as error:
        raise CheckpointError(f"The calibration does not fit this model ({error}). Calibrate again.") from error
    return quantized


def _take_kernels(quantized: QuantizedModel, device: torch.device, tell: Progress) -> None:
    """On a GPU products run in kernels; where they cannot, one line says why and the reference path serves."""
    if device.type != "cuda":
        return
    tell("Packing weights for the kernels", 0.97)
    reason = use_kernels(quantized)
    if reason:
        tell(f"Reference path: {reason}", 0.98)


def _has_room_for_both(model: PreTrainedModel, calibration: Calibration) -> bool:
    """Whether the device can hold all slices of a model beside its full-precision weights."""
    device = model.device
    if device.type != "cuda":
        return True
    weights = sum(parameter.numel() for parameter in model.parameters())
    # A copy that scales are folded into is sliced from weights of its own.
    each = _BYTES_OF_A_WEIGHT + (model.dtype.itemsize if calibration.input_scales else 0)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free, needed = torch.cuda.mem_get_info(device)[0] + unused, int(each * weights) + _ROOM_TO_RUN
    if free < needed:
        warnings.warn(
            f"Full precision is not kept: beside it {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. "
            "Nothing can be compared with it.",
            stacklevel=2,
        )
    return free >= needed


def _check_tokenizer(tokenizer: object, model: PreTrainedModel, path: Path) -> None:
    largest = max(tokenizer.get_vocab().values(), default=0)  # type: ignore[attr-defined]
    if largest >= model.config.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {path} has ids up to {largest:,}, the model a vocabulary of "
            f"{model.config.vocab_size:,}. They do not belong together; get the model again."
        )


def _fingerprint(path: Path) -> str:
    """A hash of the settings, the tokenizer and samples spread over every weight file."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        if (path / name).is_file():
            digest.update((path / name).read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES_PER_FILE):
                stream.seek(sample * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES_PER_FILE - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:24]


def _silent(_: str, __: float) -> None:
    return None
