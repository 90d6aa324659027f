"""Ranks, overlap and the sentence that must not overclaim."""

import json
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest

from app.views import migration, theme


def report(shared: float, size: int = 4, tokens: int = 40):
    overlap = np.full((4, 4), shared)
    np.fill_diagonal(overlap, 1)
    sets = SimpleNamespace(overlap=overlap, jaccard=overlap, spearman=overlap)
    generator = np.random.default_rng(0)
    errors = generator.random((2, 4, tokens))
    return SimpleNamespace(
        token_texts=[f" t{i}" for i in range(tokens)], bits_by_depth=(2, 4, 6, 8), set_size=size, chance=size / tokens,
        first_skipped=True, errors=errors, model_level=sets,
        per_linear=SimpleNamespace(overlap=np.stack([overlap] * 2), spearman=np.stack([overlap] * 2)),
        ranks=migration.ranks_of(errors[0], 1),
    )  # fmt: skip


def test_ranks_start_at_one_for_the_largest_and_leave_the_first_out():
    ranks = migration.ranks_of(np.array([[9.0, 0.1, 0.5, 0.3]]), 1)
    assert ranks.tolist() == [[0, 3, 1, 2]]
    assert migration.ranks_of(np.array([[9.0, 0.1, 0.5]]), 0).tolist() == [[1, 3, 2]]


@pytest.mark.parametrize(
    "shared, words",
    [(0.0, "4 are not among the 4"), (0.1, "almost as much as chance"), (1.0, "mostly together"), (0.5, "part moves")],
)
def test_the_sentence_follows_the_numbers(shared, words):
    text = migration.sentence(migration.data(report(shared)), "Whole model")
    assert words in text and "Two random sets would share 0.4" in text


def test_leading_tokens_are_those_in_a_set_somewhere():
    info = migration.data(report(0.5))
    chosen = migration.leading(info)
    assert chosen and all(info.ranks[:, token].min() <= info.set_size for token in chosen)
    assert 0 not in chosen


@pytest.mark.parametrize("linear", [migration.WHOLE_MODEL, 1])
def test_figures_are_valid(linear):
    info = migration.data(report(0.25), linear)
    for figure in (migration.bump_figure(info), migration.overlap_figure(info)):
        done = theme.resolve(figure, "light")
        go.Figure(done)
        assert "mbq:" not in json.dumps(done)
