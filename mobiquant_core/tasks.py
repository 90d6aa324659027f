"""Multiple-choice and last-word tasks read as lm-evaluation-harness reads them: by log-likelihood.

LAMBADA asks whether the continuation is the greedy one; the others pick the likeliest choice, plain and per
character. It knows items and token ids; how log-probabilities are made is the caller's.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mobiquant_core.errors import PromptError

TASKS = ("lambada_openai", "piqa", "arc_easy", "winogrande", "copa")
Logits = Callable[[Int[Tensor, "batch tokens"]], Float[Tensor, "batch tokens vocabulary"]]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Request:
    """One continuation to score: its item, which choice it is, and its tokens behind the context's."""

    item: int
    choice: int
    ids: tuple[int, ...]
    context_length: int
    characters: int


@dataclass(frozen=True)
class TaskScore:
    task: str
    items: int
    accuracy: float
    accuracy_normalised: float | None
    """By length in characters; None where the task has no choices of different length."""


def read_items(folder: Path, task: str, limit: int | None = None) -> list[dict]:
    """The items of one task; PromptError names the file that is missing or unknown."""
    path = folder / f"{task}.jsonl"
    if task not in TASKS or not path.is_file():
        raise PromptError(f"There is no task file {path}. Known tasks: {', '.join(TASKS)}.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:limit] if line.strip()]


def continuations(task: str, item: dict) -> list[tuple[str, str]]:
    """(context, continuation) of every choice; WinoGrande varies the context and keeps the continuation."""
    if task == "lambada_openai":
        return [(item["context"], " " + item["continuation"].strip())]
    if task == "winogrande":
        return [(context, " " + item["continuation"].strip()) for context in item["context_options"]]
    context = item["query"].rstrip()
    if task in ("piqa", "arc_easy"):
        context += "\nAnswer:"
    return [(context, " " + choice.strip()) for choice in item["choices"]]


def make_requests(task: str, items: Iterable[dict], encode: Encode, bos: int, longest: int) -> list[Request]:
    """Token requests of all items; contexts that are too long lose their beginning."""
    requests = []
    for number, item in enumerate(items):
        for choice, (context, continuation) in enumerate(continuations(task, item)):
            before = encode(context)
            after = encode(context + continuation)[len(before) :] or encode(continuation)
            before = before[-(longest - 1 - len(after)) :]
            requests.append(Request(number, choice, (bos, *before, *after), 1 + len(before), len(continuation) - 1))
    return requests


def score_task(
    task: str, items: list[dict], requests: list[Request], logits: Logits, device: str, batch_tokens: int = 16384
) -> TaskScore:
    """Runs all requests, longest first, and counts right answers."""
    likelihood = torch.zeros(len(items), max(request.choice for request in requests) + 1, dtype=torch.float64)
    greedy = torch.zeros(len(items), dtype=torch.bool)
    for batch in _batches(requests, batch_tokens):
        width = -(-max(len(request.ids) for request in batch) // 32) * 32
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, request in enumerate(batch):
            ids[row, : len(request.ids)] = torch.tensor(request.ids)
        # Padding stands behind the text: causal attention never sees it.
        table = logits(ids.to(device))[:, :-1].log_softmax(-1)
        chosen = table.gather(-1, ids[:, 1:, None].to(device)).squeeze(-1).cpu()
        best = (table.argmax(-1).cpu() == ids[:, 1:]).float()
        for row, request in enumerate(batch):
            span = slice(request.context_length - 1, len(request.ids) - 1)
            likelihood[request.item, request.choice] = float(chosen[row, span].sum())
            greedy[request.item] = bool(best[row, span].all())
    return _count(task, items, requests, likelihood, greedy)


def _count(task: str, items: list[dict], requests: list[Request], likelihood: Tensor, greedy: Tensor) -> TaskScore:
    if task == "lambada_openai":
        return TaskScore(task, len(items), float(greedy.double().mean()), None)
    gold = torch.tensor([item["gold"] for item in items])
    counts = torch.tensor([len(continuations(task, item)) for item in items])
    missing = torch.arange(likelihood.shape[1]) >= counts[:, None]
    plain = likelihood.masked_fill(missing, -torch.inf)
    accuracy = float((plain.argmax(1) == gold).double().mean())
    if task == "winogrande":
        return TaskScore(task, len(items), accuracy, None)
    lengths = torch.ones_like(likelihood)
    for request in requests:
        lengths[request.item, request.choice] = max(request.characters, 1)
    return TaskScore(task, len(items), accuracy, float(((plain / lengths).argmax(1) == gold).double().mean()))


def _batches(requests: list[Request], batch_tokens: int) -> Iterable[list[Request]]:
    ordered = sorted(requests, key=lambda request: -len(request.ids))
    while ordered:
        width = -(-len(ordered[0].ids) // 32) * 32
        count = max(1, batch_tokens // width)
        yield ordered[:count]
        ordered = ordered[count:]
