"""A process in which Triton compiles, beside tests in which it interprets: its import settles which of the two."""

import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def compiler(cache: Path) -> Iterator[Callable]:
    """Calls functions of `compiling.py` by name, all in one process: importing takes longer than compiling."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "0")
            patch.setenv("TRITON_CACHE_DIR", str(cache))
            pool.submit(os.getpid).result()  # starts it, with this environment
        yield lambda name, *asked: pool.submit(_call, name, *asked).result()


def _call(name: str, *asked: Any) -> Any:
    return getattr(importlib.import_module("compiling"), name)(*asked)
