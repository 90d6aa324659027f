"""Perplexity: windows, counts and ratios are exact where they can be known."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobiquant_core.convert import quantize_model
from mobiquant_core.engine import Engine
from mobiquant_core.errors import BudgetError, Cancelled, PromptError
from mobiquant_core.evaluate import perplexity
from mobiquant_core.windows import cut_windows

IDS = np.random.default_rng(1).integers(2, 8000, 500).tolist()


@pytest.fixture(scope="module")
def engine(tokenizer, make_tiny_model):
    return Engine(quantize_model(make_tiny_model()), tokenizer, make_tiny_model())


@given(count=st.integers(0, 100), window=st.integers(2, 20), bos=st.sampled_from([None, 0]))
def test_windows_hold_every_token_once_in_order(count, window, bos):
    windows, rest = cut_windows(range(10, 10 + count), bos, window)
    head = 0 if bos is None else 1
    tokens = [*windows[:, head:].flatten().tolist(), *rest[head:].tolist()]
    assert tokens == list(range(10, 10 + count))
    assert bos is None or (windows[:, 0] == bos).all()


def test_the_reference_is_the_mean_loss_of_all_windows(engine):
    found = perplexity(engine, IDS, policies=["uniform"], budgets=[8], window=128)
    losses = []
    windows, rest = cut_windows(IDS, 0, 128)
    for window in [*windows, rest]:
        logits = engine.reference(window[None]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:], reduction="none"))
    assert found.reference_perplexity == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
    assert found.tokens == found.rows[0].tokens == 500
    assert found.rows[0].ratio == pytest.approx(1, abs=2e-3)
    assert found.rows[0].measured_bits == 8


def test_measured_bits_follow_the_budget(engine):
    found = perplexity(engine, IDS, policies=["uniform", "random"], budgets=[2, 2.5, 3.3], window=64, batch=2)
    assert [(row.policy, row.bits) for row in found.rows][:3] == [("uniform", 2), ("uniform", 2.5), ("uniform", 3.3)]
    for row in found.rows:
        assert row.measured_bits == pytest.approx(row.bits, abs=0.05)


def test_the_number_of_tokens_is_limited_and_a_stop_stops(engine):
    assert perplexity(engine, IDS, policies=["uniform"], budgets=[4], window=64, max_tokens=100).tokens == 100
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        perplexity(engine, IDS, policies=["uniform"], budgets=[4], cancel=cancel)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"budgets": [float("nan")]}, BudgetError),
        ({"budgets": []}, BudgetError),
        ({"policies": ["luck"]}, BudgetError),
        ({"window": 1}, PromptError),
        ({"window": 4096}, PromptError),
        ({"max_tokens": 0}, PromptError),
        ({"ids": []}, PromptError),
    ],
)
def test_bad_arguments_are_refused(engine, wrong, kind):
    with pytest.raises(kind):
        perplexity(engine, **({"ids": IDS, "policies": ["uniform"], "budgets": [4]} | wrong))
