"""Shared fixtures: a tiny random model of an awkward size, and the bundled tokenizer."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides at its first import, which transformers causes, whether kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

DEMO_MODEL = Path(__file__).parents[1] / "assets" / "demo_model"


def _make_tiny_model(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=344,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes random two-layer models by seed; the feed-forward size is no multiple of the group size."""
    return _make_tiny_model


@pytest.fixture
def tiny_model() -> PreTrainedModel:
    return _make_tiny_model()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)
