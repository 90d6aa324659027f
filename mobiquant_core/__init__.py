"""MoBiQuant: one set of weights, any bit budget from 2 to 8, chosen token by token.

This file is the index of public names. They are imported on first use, so that `import mobiquant_core` stays
light, touches no GPU and needs no triton.
"""

from importlib import import_module
from typing import Any

from mobiquant_core.registration import announce

_HOMES = {
    "budget": ("BudgetController", "ThresholdTable", "validate_budget"),
    "calibration": ("Calibration", "load_calibration", "save_calibration"),
    "config": ("MobiQuantConfig",),
    "convert": ("QuantizedModel", "quantize_model"),
    "linear": ("MobiLinear",),
    "policies": ("POLICIES",),
    "router": ("MlpRouter", "SketchRouter"),
    "routing": ("FixedDepth", "Recorder", "RoutingPass", "RoutingPlan", "full_depth"),
    "slicing": ("SlicedWeight", "dequantize", "slice_weight", "truncate"),
    "trace": ("Columns", "LinearInfo", "RunSettings", "Step", "Timing", "Trace"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


announce()
