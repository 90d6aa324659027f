"""Tells transformers about the method `mobiquant`, whichever of the two packages is imported first.

Neither is loaded for it: the entry is made when transformers' own list of methods comes into being, and it leads to
hf.py only when a checkpoint is opened.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_METHOD = "mobiquant"
_LIST_OF_METHODS = "transformers.quantizers.auto"


def announce() -> None:
    """Make the entry now if transformers' list exists, else as soon as it does."""
    if (module := sys.modules.get(_LIST_OF_METHODS)) is not None:
        _register(module)
    elif not any(isinstance(finder, _ListFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ListFinder())


class _ListFinder(MetaPathFinder):
    """Watches for one module, makes the entry once it has run, and is gone."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != _LIST_OF_METHODS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _register_after(spec)
        return spec


def _register_after(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        _register(module)

    loader.exec_module = exec_module


def _register(module: ModuleType) -> None:
    module.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(_METHOD, _ConfigEntry)
    module.AUTO_QUANTIZER_MAPPING.setdefault(_METHOD, _quantizer)


class _ConfigEntry:
    """Stands in transformers' list for the settings class."""

    @staticmethod
    def from_dict(settings: dict[str, Any], **kwargs: Any) -> Any:
        return import_module("mobiquant_core.hf").MobiQuantHfConfig.from_dict(settings, **kwargs)


def _quantizer(settings: Any, **kwargs: Any) -> Any:
    return import_module("mobiquant_core.hf").MobiQuantHfQuantizer(settings, **kwargs)
