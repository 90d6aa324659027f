"""Perplexity of a text per policy and budget, beside full precision, with the bits that were really spent.

Windows of BOS and text tokens are run in batches; between batches the budget is slowly corrected, causally.
It knows token ids and an engine, nothing about files.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mobiquant_core.analysis import perplexity_of
from mobiquant_core.budget import BudgetController, validate_budget
from mobiquant_core.decode import device_of
from mobiquant_core.engine import Engine
from mobiquant_core.errors import BudgetError, Cancelled, PromptError
from mobiquant_core.policies import POLICIES
from mobiquant_core.routing import Recorder
from mobiquant_core.trace import average_bits
from mobiquant_core.windows import cut_windows

Progress = Callable[[str, float], None]
_SMALLEST_WINDOW = 8


@dataclass(frozen=True)
class EvaluationRow:
    """One policy at one budget."""

    policy: str
    bits: float
    """Requested; `measured_bits` is what was spent."""
    measured_bits: float
    perplexity: float
    ratio: float
    """Perplexity over that of full precision."""
    tokens: int
    """Tokens whose loss was counted."""


@dataclass(frozen=True)
class Evaluation:
    """Rows of one text and the full-precision perplexity they are compared with."""

    reference_perplexity: float
    reference: str
    """`full precision`, or `all slices` where the 16-bit weights were not kept."""
    window: int
    tokens: int
    rows: list[EvaluationRow]


def perplexity(
    engine: Engine,
    ids: list[int],
    *,
    policies: tuple[str, ...] | list[str] = ("router", "layer", "uniform"),
    budgets: tuple[float, ...] | list[float] = (2.5, 3.0, 4.0),
    window: int = 512,
    max_tokens: int | None = None,
    mode: str = "global",
    batch: int = 4,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Evaluation:
    """Run every policy at every budget over the text (ids without BOS); Cancelled when asked to stop."""
    _check(engine, policies, budgets, window, max_tokens)
    batches = _batches(engine, ids if max_tokens is None else ids[:max_tokens], window, batch)
    total = 1 + len(policies) * len(budgets)
    tell = progress or _silent
    tell("Full precision", 0.0)
    model = engine.quantized.model if engine.reference is None else engine.reference
    losses = torch.cat([_losses(model, inputs) for inputs in _until(cancel, batches)])
    reference = perplexity_of(losses)
    rows: list[EvaluationRow] = []
    for policy in policies:
        for bits in budgets:
            tell(f"{policy} at {bits:g} bits", (1 + len(rows)) / total)
            losses, measured = _run_budget(engine, _until(cancel, batches), float(bits), policy, mode)
            value = perplexity_of(losses)
            rows.append(EvaluationRow(policy, float(bits), measured, value, value / reference, losses.numel()))
    name = "all slices" if engine.reference is None else "full precision"
    return Evaluation(reference, name, window, losses.numel(), rows)


def _run_budget(
    engine: Engine, batches: Iterator[Int[Tensor, "windows window"]], budget: float, policy: str, mode: str
) -> tuple[Float[Tensor, " tokens"], float]:
    """(loss of every counted token, average bits over every processed token)."""
    quantized = engine.quantized
    controller = BudgetController(budget, quantized.config)
    losses: list[Tensor] = []
    spent, processed = 0.0, 0
    for inputs in batches:
        recorder = Recorder()
        plan = quantized.plan(controller.effective, policy, mode)
        losses.append(_losses(quantized.model, inputs, quantized.routing_pass(plan, 0, recorder)))
        bits = average_bits(recorder.arrays()[0], quantized.linear_infos, quantized.config.bits_by_depth)
        controller.observe(bits, inputs.numel())
        spent += bits * inputs.numel()
        processed += inputs.numel()
    return torch.cat(losses), spent / processed


@torch.no_grad()
def _losses(
    model: nn.Module, inputs: Int[Tensor, "windows window"], routing_pass: Any = None
) -> Float[Tensor, " tokens"]:
    """Nats of every token but the first of each window."""
    inputs = inputs.to(device_of(model))
    with routing_pass or nullcontext():
        logits = model(input_ids=inputs, use_cache=False).logits
    # One window at a time: log-probabilities of a large vocabulary in fp32 outweigh the model itself.
    rows = [
        F.cross_entropy(row[:-1].float(), ids[1:], reduction="none") for row, ids in zip(logits, inputs, strict=True)
    ]
    return torch.cat(rows).cpu()


def _batches(engine: Engine, ids: list[int], window: int, batch: int) -> list[Int[Tensor, "windows window"]]:
    windows, rest = cut_windows(ids, engine.tokenizer.bos_token_id, window)
    batches = list(windows.split(batch)) if len(windows) else []
    if rest.numel() > 1:
        batches.append(rest[None])
    if not batches:
        raise PromptError("The text is too short to evaluate: it needs at least two tokens.")
    return batches


def _check(
    engine: Engine, policies: tuple[str, ...] | list[str], budgets: tuple[float, ...] | list[float], window: int,
    max_tokens: int | None,
) -> None:  # fmt: skip
    if not policies or not budgets:
        raise BudgetError("Nothing to evaluate: give at least one policy and one budget.")
    for policy in policies:
        if policy not in POLICIES:
            raise BudgetError(f"The policy {policy!r} is unknown. Choose one of: {', '.join(POLICIES)}.")
    for bits in budgets:
        validate_budget(bits, engine.quantized.config)
    if not _SMALLEST_WINDOW <= window <= engine.context_length:
        raise PromptError(
            f"window={window} cannot be used: give a whole number from {_SMALLEST_WINDOW} to "
            f"{engine.context_length}, the context of this model."
        )
    if max_tokens is not None and max_tokens < 2:
        raise PromptError(f"max_tokens={max_tokens} is too few: give at least 2.")


def _until(cancel: threading.Event | None, batches: list[Tensor]) -> Iterator[Tensor]:
    for inputs in batches:
        if cancel is not None and cancel.is_set():
            raise Cancelled("The evaluation was stopped.")
        yield inputs


def _silent(_: str, __: float) -> None:
    return None
