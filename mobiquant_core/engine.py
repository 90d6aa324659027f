"""Runs a quantized model under a bit budget: generate token by token, or analyze a given text.

The budget, the policy and the seed are arguments of a call. Nothing about a call stays behind on the model, so
requests with different budgets share it. It draws nothing and reads no files.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from mobiquant_core.analysis import ErrorProbe, ReferenceComparison
from mobiquant_core.budget import THRESHOLD_MODES, BudgetController, validate_budget
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.decode import PREFILL_CHUNK, Sampling
from mobiquant_core.errors import BudgetError, Cancelled, PromptError
from mobiquant_core.fast_decode.lending import Lender
from mobiquant_core.machine import describe_machine
from mobiquant_core.policies import POLICIES
from mobiquant_core.recording import install_residual_hooks, join_columns
from mobiquant_core.routing import RoutingPlan
from mobiquant_core.run import Run, to_numpy
from mobiquant_core.token_text import TextStream, TokenTexts
from mobiquant_core.trace import RunSettings, Step, Timing, Trace

_DEFAULT_CONTEXT = 2048
_CORRECTION_STEPS_PER_BIT = 20
"""Corrected budgets are rounded to 0.05 bits, so that each needs its thresholds solved only once."""
_MOST_PLANS = 512


class Engine:
    """A quantized model with its tokenizer and, where kept, the full-precision model it came from."""

    def __init__(
        self,
        quantized: QuantizedModel,
        tokenizer: Any,
        reference: nn.Module | None = None,
        model_name: str = "model",
    ) -> None:
        self.quantized = quantized
        self.tokenizer = tokenizer
        self.reference = reference
        self.model_name = model_name
        self.token_texts = TokenTexts(tokenizer)
        self._plans: dict[tuple[float, str, str], RoutingPlan] = {}
        self.device = next(quantized.model.parameters()).device
        config = quantized.model.config
        self.context_length = int(getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT)
        self.lender = Lender(quantized, self.context_length)
        install_residual_hooks(list(quantized.model.get_submodule(quantized.architecture.layers).children()))

    def encode(self, text: str) -> list[int]:
        """Token ids with BOS in front; PromptError for empty or over-long text."""
        if not isinstance(text, str) or not text.strip():
            raise PromptError("The prompt is empty. Type some text.")
        # A lone surrogate cannot be encoded; tokenizers would fail with an error of their own.
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        ids = self.encode_plain(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None:
            ids = [bos, *ids]
        if len(ids) > self.context_length:
            raise PromptError(
                f"The prompt has {len(ids):,} tokens; this model takes at most {self.context_length:,}. Shorten it."
            )
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text of any length, without BOS."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return self.token_texts.decode(ids)

    def texts_of(self, ids: list[int]) -> list[str]:
        """The text that each token adds, one for each id."""
        return TextStream(self.token_texts).push_all(ids)

    def run_settings(
        self,
        kind: str,
        *,
        budget: float,
        policy: str = "router",
        mode: str = "global",
        max_new_tokens: int = 0,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> RunSettings:
        """The record of what a call asked for, as `assemble` wants it."""
        return RunSettings(self.model_name, kind, policy, mode, float(budget), seed, temperature, max_new_tokens)

    def generate(
        self,
        prompt_ids: list[int],
        *,
        budget: float,
        policy: str = "router",
        mode: str = "global",
        max_new_tokens: int = 64,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int = 0,
        cancel: threading.Event | None = None,
    ) -> Iterator[Step]:
        """Steps of a run: the prompt's columns, then one column for each new token.

        Bad arguments raise here, before the first step. A cancel ends the iterator after the step under way; it also
        ends at the end-of-text token, which gets no column, and where the context is full.
        """
        ids = self._checked_ids(prompt_ids)
        budget = self._checked_budget(budget, policy, mode)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            raise PromptError(f"max_new_tokens={max_new_tokens!r} cannot be used: give a whole number from 0.")
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 10:
            raise PromptError(f"temperature={temperature!r} cannot be used: give a number from 0 to 10.")
        if max_new_tokens and len(ids) >= self.context_length:
            raise PromptError(
                f"The prompt has {len(ids):,} tokens and fills the context of {self.context_length:,}: "
                "nothing can be added. Shorten it."
            )
        new_tokens = min(max_new_tokens, self.context_length - len(ids))
        generator = torch.Generator().manual_seed(int(seed) % 2**63)
        sampling = Sampling(temperature, top_k, torch.rand(new_tokens, generator=generator))
        return self._steps(ids, budget, policy, mode, sampling, cancel or threading.Event())

    def analyze(
        self,
        ids: list[int],
        *,
        budget: float,
        policy: str = "router",
        mode: str = "global",
        errors: bool = False,
        reference: bool = False,
        cancel: threading.Event | None = None,
    ) -> Trace:
        """Run a given text through the model under a budget and record everything; Cancelled when asked to stop.

        `errors` adds each linear's relative output error, `reference` the full-precision loss and divergence.
        """
        ids = self._checked_ids(ids)
        budget = self._checked_budget(budget, policy, mode)
        started = time.perf_counter()
        plan = self._plan(budget, policy, mode)
        probe = ErrorProbe(self.quantized) if errors else None
        compare = ReferenceComparison(self.reference_model()) if reference else None
        run = Run(self.quantized, self.token_texts)
        parts = []
        for start in range(0, len(ids), PREFILL_CHUNK):
            if cancel is not None and cancel.is_set():
                raise Cancelled("The analysis was stopped.")
            chunk = ids[start : start + PREFILL_CHUNK]
            columns, logits = run.process(chunk, plan, probe)
            if compare is not None:
                columns.reference_loss, columns.reference_kl = compare.chunk(chunk, logits)
            parts.append(columns)
        settings = self.run_settings("analyze", budget=budget, policy=policy, mode=mode)
        step = Step("prefill", 0, join_columns(parts), time.perf_counter() - started, run.bits)
        trace = self.assemble([step], settings)
        if probe is not None and probe.note:
            trace.notes.append(probe.note)
        return trace

    def assemble(self, steps: list[Step], settings: RunSettings) -> Trace:
        """All steps of one `generate` call as one trace."""
        if not steps:
            raise PromptError("There is nothing to record: the run was stopped before its first step.")
        table = self.quantized.thresholds(settings.policy)
        plan = self.quantized.plan(settings.requested_bits, settings.policy, settings.threshold_mode)
        prompt, *decoded = steps
        captured = any(step.captured for step in decoded)
        return Trace(
            settings=settings,
            linears=list(self.quantized.linear_infos),
            bits_by_depth=self.quantized.config.bits_by_depth,
            thresholds=to_numpy(plan.thresholds),
            budget_grid=to_numpy(table.budget_grid),
            threshold_grid=to_numpy(table.global_thresholds),
            prompt_tokens=len(prompt.columns.token_ids),
            columns=join_columns([step.columns for step in steps]),
            timing=Timing(prompt.seconds, [step.seconds for step in decoded]),
            machine=describe_machine(self.device) | ({"decode": "captured graph"} if captured else {}),
        )

    def reference_model(self) -> nn.Module:
        """The full-precision model; PromptError where none was kept."""
        if self.reference is None:
            raise PromptError(
                f"{self.model_name} was loaded without its full-precision weights, so nothing can be compared with "
                "them. Load the original model instead of a quantized checkpoint, on a device with room for both."
            )
        return self.reference

    def _steps(
        self, ids: list[int], budget: float, policy: str, mode: str, sampling: Sampling, cancel: threading.Event
    ) -> Iterator[Step]:
        if cancel.is_set():
            return
        new_tokens = len(sampling.uniforms)
        # A step that had to be made first is no part of the run's own time.
        with self._lent(policy, len(ids) + new_tokens, sampling) as session:
            run = Run(self.quantized, self.token_texts, session)
            started = time.perf_counter()
            plan = self._plan(budget, policy, mode)
            parts = []
            for start in range(0, len(ids), PREFILL_CHUNK):
                if cancel.is_set():
                    return
                parts.append(run.process(ids[start : start + PREFILL_CHUNK], plan)[0])
            yield Step("prefill", 0, join_columns(parts), time.perf_counter() - started, run.bits)
            controller = BudgetController(budget, self.quantized.config)
            controller.observe(run.bits, run.position)

            def begin() -> None:
                run.begin(self._plan(_rounded(controller.effective, budget), policy, mode), sampling)

            started = time.perf_counter()
            if new_tokens:
                begin()
            for left in reversed(range(new_tokens)):
                if cancel.is_set():
                    return
                # Under way while this one is read, so a budget is corrected by what was known one token before.
                if left:
                    begin()
                before = run.bits * run.position
                decoded = run.finish(sampling, self.tokenizer.eos_token_id)
                if decoded is None:
                    return
                controller.observe(run.bits * run.position - before, 1)
                seconds = max(time.perf_counter() - started, decoded.seconds)
                yield Step("decode", run.position - 1, decoded.columns, seconds, run.bits, session is not None)
                started = time.perf_counter()

    def _lent(self, policy: str, positions: int, sampling: Sampling) -> Any:
        """A captured step for as long as a run needs it; None for one that it cannot serve."""
        if not len(sampling.uniforms) or not sampling.on_device:
            return nullcontext()
        return self.lender.lend(self.quantized.policy(policy), positions)

    def _plan(self, budget: float, policy: str, mode: str) -> RoutingPlan:
        """The plan of a budget; solving for thresholds takes longer than a decode step, so plans are kept."""
        key = (budget, policy, mode)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = self.quantized.plan(budget, policy, mode)
        return plan

    def _checked_ids(self, ids: list[int]) -> list[int]:
        vocabulary = self.quantized.model.config.vocab_size
        ids = [int(token) for token in ids]
        if not ids:
            raise PromptError("The prompt is empty. Type some text.")
        if len(ids) > self.context_length:
            raise PromptError(
                f"The text has {len(ids):,} tokens; this model takes at most {self.context_length:,}. Shorten it."
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise PromptError(f"A token id is outside the vocabulary of {vocabulary:,}. Encode the text again.")
        return ids

    def _checked_budget(self, budget: float, policy: str, mode: str) -> float:
        if policy not in POLICIES:
            raise BudgetError(f"The policy {policy!r} is unknown. Choose one of: {', '.join(POLICIES)}.")
        if mode not in THRESHOLD_MODES:
            raise BudgetError(f"The threshold mode {mode!r} is unknown. Choose one of: {', '.join(THRESHOLD_MODES)}.")
        return validate_budget(budget, self.quantized.config)


def _rounded(corrected: float, requested: float) -> float:
    """A corrected budget on a coarse grid; where nothing was corrected the requested one itself."""
    if abs(corrected - requested) < 0.5 / _CORRECTION_STEPS_PER_BIT:
        return requested
    return round(corrected * _CORRECTION_STEPS_PER_BIT) / _CORRECTION_STEPS_PER_BIT
