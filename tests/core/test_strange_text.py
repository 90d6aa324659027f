"""Windows made strange: the same length and beginning, and of each kind what makes it strange."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobiquant_core.calibrate import strange_text
from mobiquant_core.calibrate.program_text import FOLDERS, program_text

VOCABULARY = 96
MAKERS = {
    "replaced": lambda window, draw: strange_text.with_replaced(window, VOCABULARY, draw),
    "enciphered": strange_text.enciphered,
}


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _window(tokens: int, seed: int = 0) -> torch.Tensor:
    window = torch.randint(2, VOCABULARY, (tokens,), generator=_draw(seed))
    window[0] = 0
    return window


@pytest.mark.parametrize("kind", MAKERS)
@given(tokens=st.integers(8, 200), seed=st.integers(0, 1000))
def test_a_strange_window_is_as_long_begins_alike_and_stays_in_the_vocabulary(kind: str, tokens: int, seed: int):
    window = _window(tokens, seed)
    kept = window.clone()
    made = MAKERS[kind](window, _draw(seed))
    assert made.shape == window.shape and made.dtype == window.dtype
    assert made[0] == 0 and bool((made[1:] >= 2).all()) and bool((made < VOCABULARY).all())
    assert torch.equal(window, kept)
    assert torch.equal(made, MAKERS[kind](window, _draw(seed)))


def test_about_a_quarter_of_the_tokens_is_replaced():
    window = _window(4000)
    changed = (strange_text.with_replaced(window, VOCABULARY, _draw(1)) != window).float().mean().item()
    assert 0.2 < changed < 0.3


def test_a_cipher_is_one_to_one_and_keeps_what_repeats():
    window = _window(400)
    made = strange_text.enciphered(window, _draw(1))
    pairs = set(zip(window.tolist(), made.tolist(), strict=True))
    assert len({plain for plain, _ in pairs}) == len(pairs) == len({secret for _, secret in pairs})
    assert set(made.tolist()) == set(window.tolist())
    assert 0.3 < (made != window).float().mean() < 0.9


def test_program_text_is_source_of_the_named_packages():
    text = "\n".join(program_text())
    assert len(text) > 400_000 and "def __init__(self" in text
    assert len(FOLDERS) == len(set(FOLDERS))
