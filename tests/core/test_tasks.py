"""Tasks: which tokens are scored, and how answers are counted."""

import json
from pathlib import Path

import pytest
import torch

from mobiquant_core.errors import PromptError
from mobiquant_core.tasks import continuations, make_requests, read_items, score_task

LETTERS = "abcdefghijklmnopqrstuvwxyz .:\nABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _encode(text: str) -> list[int]:
    return [1 + LETTERS.index(letter) for letter in text]


def _likes(letter: str):
    """Logits that prefer one letter everywhere."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(*ids.shape, 1 + len(LETTERS))
        table[..., 1 + LETTERS.index(letter)] = 3.0
        return table

    return logits


def test_choices_are_ranked_plain_and_per_character() -> None:
    items = [{"query": "Say", "choices": ["zz", "zzzzzzzz"], "gold": 1}]
    requests = make_requests("copa", items, _encode, bos=0, longest=64)
    score = score_task("copa", items, requests, _likes("z"), "cpu")
    assert score.accuracy == 0.0  # the short answer has more probability in all
    assert score.accuracy_normalised == 1.0  # the long one has more per character


def test_lambada_counts_greedy_words_only() -> None:
    items = [{"context": "the end", "continuation": "z"}, {"context": "the end", "continuation": "q"}]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        table = _likes("z")(ids)
        table[..., 1 + LETTERS.index(" ")] = torch.where(ids == 1 + LETTERS.index("d"), 9.0, 0.0)
        return table

    requests = make_requests("lambada_openai", items, _encode, bos=0, longest=64)
    assert score_task("lambada_openai", items, requests, logits, "cpu").accuracy == 0.5


def test_winogrande_scores_the_same_continuation_behind_two_contexts() -> None:
    item = {"context_options": ["Ann", "Bob"], "continuation": "won.", "gold": 0}
    assert continuations("winogrande", item) == [("Ann", " won."), ("Bob", " won.")]


def test_long_contexts_lose_their_beginning() -> None:
    items = [{"query": "a" * 500, "choices": ["b", "c"], "gold": 0}]
    requests = make_requests("copa", items, _encode, bos=0, longest=32)
    assert all(len(request.ids) <= 32 and request.ids[0] == 0 for request in requests)


def test_missing_files_and_unknown_tasks_are_named(tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text(json.dumps({"query": "a", "choices": ["b"], "gold": 0}) + "\n")
    assert len(read_items(tmp_path, "copa")) == 1
    with pytest.raises(PromptError, match="piqa"):
        read_items(tmp_path, "piqa")
