"""Where kernels run in tests: on the GPU, or interpreted (see the top of tests/conftest.py)."""

import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def asm() -> bool:
    """Inline assembly on a GPU, its plain Triton twin in the interpreter."""
    return torch.cuda.is_available()
