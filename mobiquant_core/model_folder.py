"""Reads what a model folder says about itself, before any weight is read: config.json, strictly, and the weight files.

It knows files and JSON; it loads no model and downloads nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobiquant_core.architectures import architecture_of
from mobiquant_core.errors import CheckpointError, UnsupportedModelError

CONFIG_LIMIT = 256 * 1024
_HEADER_LIMIT = 100_000_000
_NESTING_LIMIT = 8
QUANT_METHOD = "mobiquant"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that may be loaded: its settings, and whether its weights are slices already."""

    path: Path
    config: dict[str, Any]
    quantized: bool

    @property
    def model_type(self) -> str:
        return self.config["model_type"]


def inspect_folder(path: Path) -> ModelFolder:
    """Check everything that can be checked without reading weights; one clear line for each thing amiss."""
    if not path.is_dir():
        raise UnsupportedModelError(f"{path} was not found. Give a model folder, a hub id, or demo.")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise UnsupportedModelError(f"{path} is no model: it has no config.json. Give a transformers model folder.")
    config = read_json(config_file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedModelError(f"{config_file} names no model_type, so this is no transformers model.")
    architecture_of(model_type)
    method = _quantization_method(config, config_file)
    check_weight_files(path)
    return ModelFolder(path, config, method == QUANT_METHOD)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size and depth without doubled keys; CheckpointError names the file."""
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise ValueError(f"it has more than {CONFIG_LIMIT:,} bytes")
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_unique_keys)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        _check_nesting(value, _NESTING_LIMIT)
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {str(error)[:200]}. Get the model again.") from error
    return value


def clean_config(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without private fields and references to code: a model's files never decide what code runs."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "auto_map"}


def check_weight_files(path: Path) -> None:
    """Every safetensors file must be exactly as long as its header says."""
    files = sorted(path.glob("*.safetensors"))
    weights = [file for file in files if file.name != "calibration.safetensors"]
    if not weights:
        raise CheckpointError(f"{path} has no safetensors weights. Other formats can carry code and are not read.")
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """CheckpointError where the file is truncated, padded or has a damaged header."""
    try:
        if not file.is_file():
            raise ValueError("it is no plain file")
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length), object_pairs_hook=_unique_keys)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"it has {size:,} bytes, its header promises {8 + length + max(ends, default=0):,}")
    except OSError as error:
        raise CheckpointError(f"{file} could not be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {str(error)[:200]}. Get the model again.") from error


def _quantization_method(config: dict[str, Any], config_file: Path) -> str | None:
    settings = config.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method != QUANT_METHOD:
        raise UnsupportedModelError(
            f"{config_file} says the weights are already quantized by {method!r}. Give the 16-bit model instead."
        )
    return method


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field is given twice")
    return result


def _check_nesting(value: Any, levels: int) -> None:
    if levels == 0:
        raise ValueError(f"its fields are nested more than {_NESTING_LIMIT} deep")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_nesting(child, levels - 1)
