"""A recorded run as one JSON file: small integer arrays in base64, a schema version, a size limit.

The reader is strict: anything that is not exactly what the writer makes is refused by name.
It knows trace records and bytes; it draws nothing and holds no model.
"""

import base64
import binascii
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobiquant_core.atomic import write_file
from mobiquant_core.errors import CheckpointError
from mobiquant_core.trace import SCHEMA_VERSION, Columns, LinearInfo, RunSettings, Timing, Trace

FORMAT = "mobiquant-trace"
SIZE_LIMIT = 5_000_000
# Half precision ends at 65504; larger magnitudes (massive activations) are scaled into it.
_HALF_RANGE = 60_000.0
# int16 codes that stand for the two infinities; NaN has no code and is refused.
_FIXED_MIN, _FIXED_MAX = -32_767, 32_766
_NEGATIVE_INFINITY, _POSITIVE_INFINITY = -32_768, 32_767

_HALF = ("residual_max", "residual_top3", "residual_median", "top_probabilities", "loss")
_OPTIONAL = ("errors", "reference_loss", "reference_kl")
_WHOLE = {"depths": "uint8", "top_ids": "int32"}
_ENCODINGS = {"uint8": "uint8", "int32": "int32", "float32": "float32", "float16": "float16", "fixed16": "int16"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Array(_Strict):
    encoding: str
    shape: list[int] = Field(max_length=4)
    data: str
    scale: float = 1.0
    offset: float = 0.0


class _Linear(_Strict):
    layer: int = Field(ge=0, lt=10_000)
    projection: str = Field(max_length=100)
    weights: int = Field(ge=1, lt=2**50)


class _Settings(_Strict):
    model: str = Field(max_length=500)
    kind: str = Field(max_length=20)
    policy: str = Field(max_length=20)
    threshold_mode: str = Field(max_length=20)
    requested_bits: float
    seed: int
    temperature: float
    max_new_tokens: int


class _Timing(_Strict):
    prefill_seconds: float = Field(ge=0)
    decode_seconds: list[float]


class _Columns(_Strict):
    token_ids: list[int]
    token_texts: list[str]
    top_texts: list[list[str]]
    depths: _Array
    scores: _Array
    residual_max: _Array
    residual_top3: _Array
    residual_median: _Array
    top_ids: _Array
    top_probabilities: _Array
    loss: _Array
    errors: _Array | None
    reference_loss: _Array | None
    reference_kl: _Array | None
    thresholds: _Array | None = None


class _File(_Strict):
    format: str
    version: int
    settings: _Settings
    linears: list[_Linear] = Field(min_length=1)
    bits_by_depth: list[int] = Field(min_length=1, max_length=8)
    thresholds: _Array
    budget_grid: _Array
    threshold_grid: _Array
    prompt_tokens: int = Field(ge=0)
    columns: _Columns
    timing: _Timing
    machine: dict[str, str]
    notes: list[str]


def dump_trace(trace: Trace) -> bytes:
    """The file's bytes; CheckpointError where they exceed the limit."""
    columns = trace.columns
    body = {
        "format": FORMAT,
        "version": SCHEMA_VERSION,
        "settings": asdict(trace.settings),
        "linears": [asdict(info) for info in trace.linears],
        "bits_by_depth": list(trace.bits_by_depth),
        "thresholds": _encode(trace.thresholds, "float32"),
        "budget_grid": _encode(trace.budget_grid, "float32"),
        "threshold_grid": _encode(trace.threshold_grid, "float32"),
        "prompt_tokens": trace.prompt_tokens,
        "columns": {
            "token_ids": [int(token) for token in columns.token_ids],
            "token_texts": columns.token_texts,
            "top_texts": columns.top_texts,
            "scores": _encode(columns.scores, "fixed16"),
            **{name: _encode(getattr(columns, name), kind) for name, kind in _WHOLE.items()},
            **{name: _encode(getattr(columns, name), "float16") for name in _HALF},
            **{name: _encode_optional(getattr(columns, name)) for name in _OPTIONAL},
            "thresholds": None if columns.thresholds is None else _encode(columns.thresholds, "float32"),
        },
        "timing": asdict(trace.timing),
        "machine": trace.machine,
        "notes": trace.notes,
    }
    data = json.dumps(body, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(data) > SIZE_LIMIT:
        raise CheckpointError(
            f"This run of {trace.tokens} tokens makes a file of {len(data):,} bytes; the limit is {SIZE_LIMIT:,}. "
            "Record fewer tokens."
        )
    return data


def save_trace(trace: Trace, path: Path | str) -> Path:
    """Write the run atomically and return the path."""
    path = Path(path)
    write_file(path, dump_trace(trace))
    return path


def load_trace(path: Path | str) -> Trace:
    """Read a recorded run; CheckpointError for anything missing, damaged or of another version."""
    path = Path(path)
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is no recorded run: there is no such file.")
        size = path.stat().st_size
        if size > SIZE_LIMIT:
            raise CheckpointError(f"{path} has {size:,} bytes; a recorded run has at most {SIZE_LIMIT:,}.")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} could not be read: {error.strerror or error}.") from error
    return parse_trace(data, str(path))


def parse_trace(data: bytes, name: str = "the recorded run") -> Trace:
    """The trace in the bytes of a run file; `name` is what errors call it."""
    try:
        body = json.loads(data.decode("ascii"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ValueError("it is not a MoBiQuant run file")
        if body.get("version") not in range(1, SCHEMA_VERSION + 1):
            raise ValueError(f"it has version {body.get('version')!r}, this program reads 1 to {SCHEMA_VERSION}")
        return _build(_File.model_validate(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:200]
        raise _damaged(name, f"field {field}: {first['msg']}") from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise _damaged(name, str(error)[:300]) from error


def _damaged(name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{name} cannot be used: {reason}. Record the run again.")


def _build(file: _File) -> Trace:
    linears = [LinearInfo(**info.model_dump()) for info in file.linears]
    tokens, depth_count = len(file.columns.token_ids), len(file.bits_by_depth)
    rows = max(info.layer for info in linears) + 2
    shapes = {
        "depths": (len(linears), tokens),
        "scores": (len(linears), tokens, depth_count - 1),
        "residual_max": (rows, tokens),
        "residual_top3": (rows, tokens, 3),
        "residual_median": (rows, tokens),
        "top_ids": (tokens, 5),
        "top_probabilities": (tokens, 5),
        "loss": (tokens,),
        "errors": (len(linears), tokens),
        "reference_loss": (tokens,),
        "reference_kl": (tokens,),
    }
    encodings = {**_WHOLE, "scores": "fixed16"}
    arrays = {}
    for name, shape in shapes.items():
        stored: _Array | None = getattr(file.columns, name)
        arrays[name] = stored and _decode(name, stored, encodings.get(name, "float16"), shape)
    if (limits := file.columns.thresholds) is not None:
        height = 1 if file.settings.threshold_mode == "global" else len(linears)
        arrays["thresholds"] = _decode("thresholds of tokens", limits, "float32", (height, tokens))
    columns = Columns(
        token_ids=file.columns.token_ids,
        token_texts=file.columns.token_texts,
        top_texts=file.columns.top_texts,
        **arrays,
    )
    _check_columns(file, columns)
    grid = (len(_payload("budget_grid", file.budget_grid, "float32")),)
    return Trace(
        settings=RunSettings(**file.settings.model_dump()),
        linears=linears,
        bits_by_depth=tuple(file.bits_by_depth),
        thresholds=_decode("thresholds", file.thresholds, "float32", (len(linears),)),
        budget_grid=_decode("budget_grid", file.budget_grid, "float32", grid),
        threshold_grid=_decode("threshold_grid", file.threshold_grid, "float32", grid),
        prompt_tokens=file.prompt_tokens,
        columns=columns,
        timing=Timing(**file.timing.model_dump()),
        machine=file.machine,
        notes=file.notes,
    )


def _check_columns(file: _File, columns: Columns) -> None:
    """What shapes alone do not say: ranges and lengths that a view would trip over."""
    tokens = len(columns.token_ids)
    if tokens == 0 or file.prompt_tokens > tokens:
        raise ValueError(f"prompt_tokens={file.prompt_tokens} does not fit {tokens} columns")
    if len(columns.token_texts) != tokens or len(columns.top_texts) != tokens:
        raise ValueError(f"token_texts and top_texts must have {tokens} entries each")
    if any(len(texts) != columns.top_ids.shape[1] for texts in columns.top_texts):
        raise ValueError("top_texts must have as many entries per token as top_ids")
    if any(token < 0 or token >= 2**31 for token in columns.token_ids):
        raise ValueError("token_ids must be whole numbers from 0")
    if any(later <= earlier for earlier, later in zip([0, *file.bits_by_depth], file.bits_by_depth, strict=False)):
        raise ValueError("bits_by_depth must rise")
    if columns.thresholds is not None and np.isnan(columns.thresholds).any():
        raise ValueError("thresholds of tokens hold NaN")
    if columns.depths.min() < 1 or columns.depths.max() > len(file.bits_by_depth):
        raise ValueError(f"depths must lie in 1 to {len(file.bits_by_depth)}")


def _encode(array: np.ndarray, encoding: str) -> dict[str, Any]:
    """Shape, base64 bytes (little endian) and, where the type needs them, scale and offset."""
    values = np.asarray(array)
    scale, offset = 1.0, 0.0
    if encoding == "fixed16":
        values, scale, offset = _to_fixed(values.astype(np.float64))
    elif encoding == "float16":
        finite = np.abs(values[np.isfinite(values)], dtype=np.float64)
        scale = max(1.0, float(finite.max(initial=0.0)) / _HALF_RANGE)
        values = values / scale
    data = np.ascontiguousarray(values, dtype=np.dtype(_ENCODINGS[encoding]).newbyteorder("<")).tobytes()
    text = base64.b64encode(data).decode("ascii")
    return {"encoding": encoding, "shape": list(values.shape), "data": text, "scale": scale, "offset": offset}


def _encode_optional(array: np.ndarray | None) -> dict[str, Any] | None:
    return None if array is None else _encode(array, "float16")


def _to_fixed(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """int16 codes, step and offset that cover the finite values; NaN is refused, infinities keep their sign."""
    if np.isnan(values).any():
        raise CheckpointError("Scores of this run hold NaN and cannot be stored. Check the model's weights.")
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    steps = _FIXED_MAX - _FIXED_MIN
    scale = (high - low) / steps or 1.0
    codes = np.rint((np.where(np.isfinite(values), values, low) - low) / scale) + _FIXED_MIN
    codes = np.where(values == math.inf, _POSITIVE_INFINITY, codes)
    codes = np.where(values == -math.inf, _NEGATIVE_INFINITY, codes)
    return codes.astype(np.int16), scale, low - _FIXED_MIN * scale


def _payload(name: str, stored: _Array, encoding: str) -> np.ndarray:
    if stored.encoding != encoding:
        raise ValueError(f"{name} is stored as {stored.encoding[:20]!r}, expected {encoding}")
    try:
        data = base64.b64decode(stored.data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is not base64: {error}") from error
    kind = np.dtype(_ENCODINGS[encoding]).newbyteorder("<")
    if len(data) % kind.itemsize:
        raise ValueError(f"{name} holds {len(data)} bytes, no whole number of {encoding} values")
    return np.frombuffer(data, dtype=kind)


def _decode(name: str, stored: _Array, encoding: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array in native byte order: uint8 and int32 as stored, everything else float32."""
    values = _payload(name, stored, encoding)
    if tuple(stored.shape) != shape or values.size != math.prod(shape):
        raise ValueError(f"{name} has shape {stored.shape} and {values.size} values, expected {list(shape)}")
    if encoding in _WHOLE.values():
        return values.reshape(shape).astype(encoding)
    if not stored.scale > 0:
        raise ValueError(f"{name} has scale {stored.scale}, expected a number above 0")
    with np.errstate(over="ignore", invalid="ignore"):
        decoded = values.astype(np.float64) * stored.scale + stored.offset
    if encoding == "fixed16":
        decoded = np.where(values == _POSITIVE_INFINITY, math.inf, decoded)
        decoded = np.where(values == _NEGATIVE_INFINITY, -math.inf, decoded)
    with np.errstate(over="ignore"):
        return decoded.reshape(shape).astype(np.float32)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field is given twice")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
