"""Saves a quantized model as a normal transformers folder, whole or not at all, and checks one before it is opened.

A manifest, written last, names every file with its length and hash. No pickle anywhere.
It knows files; opening a checked folder is transformers' work (see hf.py).
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mobiquant_core import atomic
from mobiquant_core.calibration import save_calibration
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.errors import CheckpointError
from mobiquant_core.linear import MobiLinear
from mobiquant_core.model_folder import QUANT_METHOD, clean_config, read_json

MANIFEST = "manifest.json"
FORMAT = "mobiquant-checkpoint"
VERSION = 1
SHARD_BYTES = 512 * 2**20
_READ_BYTES = 2**20
_WELCOME_BESIDE = {"README.md", "LICENSE", ".gitattributes"}


def save_checkpoint(quantized: QuantizedModel, tokenizer: Any, folder: Path | str) -> dict[str, int]:
    """Write the checkpoint and return bytes by file name; CheckpointError leaves an earlier one as it was."""
    folder = Path(folder)
    _refuse_foreign_folder(folder)
    with atomic.new_folder(folder) as temporary:
        _write_weights(quantized, temporary)
        atomic.write_synced(temporary / "config.json", _json_bytes(_config(quantized)))
        if quantized.calibration is not None:
            save_calibration(quantized.calibration, temporary / "calibration.safetensors")
        tokenizer.save_pretrained(temporary)
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "version": VERSION, "files": files}
        atomic.write_synced(temporary / MANIFEST, _json_bytes(manifest))
    return {name: entry["bytes"] for name, entry in files.items()}


def verify_checkpoint(folder: Path) -> None:
    """CheckpointError unless the folder holds exactly the files of its manifest, each with its length and hash."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if manifest is None:
        raise CheckpointError(f"{folder} has no {MANIFEST}: the checkpoint was not saved completely. Save it again.")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise CheckpointError(f"{folder / MANIFEST} is of another format or version. Save the checkpoint again.")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise CheckpointError(f"{folder / MANIFEST} is damaged: its list of files cannot be read.")
    present = {path.name for path in folder.iterdir()} - {MANIFEST} - (_WELCOME_BESIDE - files.keys())
    if extra := sorted(present - files.keys()):
        raise CheckpointError(f"{folder} holds {extra[0]!r}, which is not part of the checkpoint. Move it away.")
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. Save or fetch the checkpoint again.")
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes instead of {entry['bytes']:,}. Fetch the checkpoint again."
            )
        if _hash(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its hash differs from the manifest. Fetch the checkpoint again.")


def check_values(quantized: QuantizedModel) -> None:
    """CheckpointError where group numbers are not usable: a valid file can still hold NaN."""
    for linear in quantized.linears:
        step, edge = linear.weight_step, linear.weight_edge
        if step.dtype != torch.float16 or linear.weight.dtype != torch.uint8:
            raise CheckpointError(f"Layer {linear.layer} {linear.projection} has weights of a wrong type.")
        if not (torch.isfinite(step).all() and torch.isfinite(edge).all() and (step > 0).all()):
            raise CheckpointError(f"Layer {linear.layer} {linear.projection} has group steps that are no numbers.")


def _refuse_foreign_folder(folder: Path) -> None:
    """A save replaces its target, so the target must be new, empty or an earlier checkpoint."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} holds something that is no MoBiQuant checkpoint. Choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file. Choose a folder.")


def _write_weights(quantized: QuantizedModel, folder: Path) -> None:
    shards = list(_shards(_tensors(quantized)))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        atomic.write_synced(folder / name, save(shard, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        atomic.write_synced(folder / "model.safetensors.index.json", _json_bytes(index))


def _tensors(quantized: QuantizedModel) -> dict[str, Tensor]:
    """Every stored tensor by name, tied ones once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in quantized.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = _stored(quantized.model, name, tensor.detach()).cpu().contiguous()
    neutral = {"shift": torch.zeros, "gain": torch.ones}
    for kind in (kind for kind in neutral if _has(quantized, kind)):
        for name, module in quantized.model.named_modules():
            if isinstance(module, MobiLinear) and getattr(module, kind) is None:
                tensors[f"{name}.{kind}"] = neutral[kind](module.config.depths, module.out_features)
    return tensors


def _stored(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """16-bit where that changes no value: a model opened in fp32 on a CPU does not grow on the disk."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, MobiLinear) or tensor.dtype != torch.float32:
        return tensor
    for dtype in (torch.bfloat16, torch.float16):
        narrow = tensor.to(dtype)
        if torch.equal(narrow.float(), tensor):
            return narrow
    return tensor


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _config(quantized: QuantizedModel) -> dict[str, Any]:
    config = clean_config(quantized.model.config.to_dict())
    config["architectures"] = [type(quantized.model).__name__]
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "slice_bits": list(quantized.config.slice_bits),
        "group_size": quantized.config.group_size,
        "shift": _has(quantized, "shift"),
        "gain": _has(quantized, "gain"),
    }
    return config


def _has(quantized: QuantizedModel, kind: str) -> bool:
    return any(getattr(linear, kind) is not None for linear in quantized.linears)


def _json_bytes(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("utf-8")


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _hash(path)}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_entry(name: str, entry: Any) -> bool:
    """A plain file name with a length and a hash: a manifest names nothing outside its folder."""
    return (
        name not in ("", ".", "..")
        and not set(name) & set("/\\\0")
        and isinstance(entry, dict)
        and entry.keys() == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
    )
