"""Where kernels run in tests: on the GPU, or interpreted (see the top of tests/conftest.py) without idle work."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import triton.language as tl
from compiler_process import compiler
from triton.runtime import interpreter


@pytest.fixture(autouse=True, scope="session")
def without_idle_work() -> Iterator[None]:
    """Leaves out what Triton's interpreter does for nothing, which is more than half of its time.

    Every sum of integers is checked for an overflow that is then reported in debug mode only, and every call from one
    kernel function to another puts the interpreter's operations in the place of the compiler's, where they are.
    """
    builder, replace_operations = interpreter.interpreter_builder, interpreter._patch_lang
    options, replaced = builder.options, set()

    def replace_once(function: Any) -> Any:
        modules = languages(function)
        if modules <= replaced:
            return None
        scope = replace_operations(function)
        if not replaced:  # the kernel itself: what it calls is over when it is
            restore = scope.restore
            scope.restore = lambda: (replaced.clear(), restore())
        replaced.update(modules)
        return scope

    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    interpreter._patch_lang = replace_once
    yield
    builder.options, interpreter._patch_lang = options, replace_operations


@cache
def languages(function: Any) -> frozenset[str]:
    """Names of the modules whose operations the function uses."""
    return frozenset(value.__name__ for value in function.__globals__.values() if value is tl or value is tl.core)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """What a function of `compiling.py` makes, called by its name."""
    with compiler(tmp_path_factory.mktemp("compiled")) as call:
        yield call


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def asm() -> bool:
    """Inline assembly on a GPU, its plain Triton twin in the interpreter."""
    return torch.cuda.is_available()
