"""Finished blocks of a calibration on disk, so that a killed run goes on where it stopped.

One safetensors file per finished block, written atomically, tagged with what the run was asked for.
It knows tensors by name, not what they mean.
"""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from mobiquant_core.atomic import write_file


class Progress:
    """The folder of one calibration run; files of a run with other settings are ignored, not mixed in."""

    def __init__(self, folder: Path | None, settings: dict[str, object]) -> None:
        self.folder = folder
        self.tag = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def load(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a finished part, or None where it is missing, damaged or of another run."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        try:
            return load(path.read_bytes())
        except Exception:  # any damage means the same: do this part again
            return None

    def save(self, name: str, tensors: dict[str, Tensor]) -> None:
        path = self._path(name)
        if path is not None:
            contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            write_file(path, save(contiguous))

    def clear(self) -> None:
        """Removes this run's files once the artefact is safe."""
        if self.folder is not None:
            for path in self.folder.glob(f"*.{self.tag}.part"):
                path.unlink()

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.{self.tag}.part"
