"""The calibration artefact: everything that was fitted, in one safetensors file beside a checkpoint.

It knows no model and fits nothing; reading is strict, writing is atomic.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mobiquant_core.atomic import write_file
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError, MobiQuantError
from mobiquant_core.router import ROUTER_KINDS

FORMAT_VERSION = 1
_METADATA_KEY = "mobiquant_calibration"
_KINDS = ("range_low", "range_high", "shift", "gain", "rounding", "input_scale", "router", "score_quantiles")
_PLAIN = ("layer_scores", "sensitivity", "norm_quantiles")


@dataclass
class Calibration:
    """What calibration found. Names of linears are "layers.3.self_attn.q_proj", of sites "layers.3.attention_input"."""

    config: MobiQuantConfig
    router_kind: str = "none"
    ranges: dict[str, tuple[Tensor, Tensor]] | None = None
    """fp16 (low, high) [out, groups] of each linear; None means the full range."""
    shifts: dict[str, Float[Tensor, "depths out"]] | None = None
    """Output correction of each depth."""
    gains: dict[str, Float[Tensor, "depths out"]] | None = None
    """Factor on the output of each depth."""
    rounding: dict[str, UInt8[Tensor, "out bytes"]] | None = None
    """Learnt rounding, one or two bits per weight (see rounding.py)."""
    input_scales: dict[str, Float[Tensor, " in_features"]] | None = None
    """Per site: its weights are multiplied by this and the norm before it is divided, before slicing."""
    routers: dict[str, Tensor] = field(default_factory=dict)
    """fp16 parameters, "layers.3.attention_input.energy"."""
    layer_scores: Float[Tensor, "linears extra"] | None = None
    sensitivity: Float[Tensor, " linears"] | None = None
    norm_quantiles: Float[Tensor, "linears quantiles"] | None = None
    score_quantiles: dict[str, Float[Tensor, "linears extra quantiles"]] = field(default_factory=dict)
    spent_bits: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Per policy {"asked": [...], "spent": [...]}: what budgets really used on the calibration text."""
    provenance: dict[str, str] = field(default_factory=dict)

    def router_state(self, site: str) -> dict[str, Tensor]:
        """The parameters of one site's router."""
        prefix = site + "."
        return {name.removeprefix(prefix): value for name, value in self.routers.items() if name.startswith(prefix)}


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Writes the file whole or not at all."""
    settings = {
        "version": FORMAT_VERSION,
        "config": asdict(calibration.config),
        "router_kind": calibration.router_kind,
        "spent_bits": calibration.spent_bits,
        "provenance": calibration.provenance,
    }
    write_file(Path(path), save(_to_tensors(calibration), metadata={_METADATA_KEY: json.dumps(settings)}))


def load_calibration(path: str | Path) -> Calibration:
    """Reads the file back; CheckpointError names the file and what is wrong with it."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the handle is no dict
        if settings["version"] != FORMAT_VERSION:
            raise ValueError(f"format version {settings['version']} is not {FORMAT_VERSION}")
        return _from_tensors(settings, tensors)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no calibration file at {path}. Run `quantize` to make one.") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, MobiQuantError) as error:
        raise CheckpointError(
            f"The calibration file {path} is damaged or of another version ({error}). Calibrate again."
        ) from error


def _to_tensors(calibration: Calibration) -> dict[str, Tensor]:
    tensors = {name: value for name in _PLAIN if (value := getattr(calibration, name)) is not None}
    for name, (low, high) in (calibration.ranges or {}).items():
        tensors[f"range_low/{name}"], tensors[f"range_high/{name}"] = low.half(), high.half()
    tensors |= {f"shift/{name}": value.float() for name, value in (calibration.shifts or {}).items()}
    tensors |= {f"gain/{name}": value.float() for name, value in (calibration.gains or {}).items()}
    tensors |= {f"rounding/{name}": value for name, value in (calibration.rounding or {}).items()}
    tensors |= {f"input_scale/{name}": value.float() for name, value in (calibration.input_scales or {}).items()}
    tensors |= {f"router/{name}": value.half() for name, value in calibration.routers.items()}
    tensors |= {f"score_quantiles/{name}": value.float() for name, value in calibration.score_quantiles.items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _from_tensors(settings: dict, tensors: dict[str, Tensor]) -> Calibration:
    kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if value.is_floating_point() and torch.isnan(value).any():
            raise ValueError(f"{key} holds NaN")
        kind, _, name = key.partition("/")
        if kind in kinds and name:
            kinds[kind][name] = value
        elif key in _PLAIN:
            plain[key] = value
        else:
            raise ValueError(f"unknown entry {key}")
    if kinds["range_low"].keys() != kinds["range_high"].keys():
        raise ValueError("lower and upper ranges do not match")
    if settings["router_kind"] not in ROUTER_KINDS:
        raise ValueError(f"unknown router kind {settings['router_kind']!r}")
    ranges = {name: (low, kinds["range_high"][name]) for name, low in kinds["range_low"].items()}
    stored = settings["config"]
    return Calibration(
        config=MobiQuantConfig(tuple(stored["slice_bits"]), stored["group_size"]),
        router_kind=settings["router_kind"],
        ranges=ranges or None,
        shifts=kinds["shift"] or None,
        gains=kinds["gain"] or None,
        rounding=kinds["rounding"] or None,
        input_scales=kinds["input_scale"] or None,
        routers=kinds["router"],
        score_quantiles=kinds["score_quantiles"],
        spent_bits={policy: dict(curve) for policy, curve in settings["spent_bits"].items()},
        provenance={str(key): str(value) for key, value in settings["provenance"].items()},
        **plain,
    )
