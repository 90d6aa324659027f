"""The engine: same seed same tokens, a stop that stops, columns that say what happened."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

from mobiquant_core import engine as engine_module
from mobiquant_core.budget import BudgetController
from mobiquant_core.convert import quantize_model
from mobiquant_core.decode import DecodeState, Sampling, decode_one_token, prefill, sample
from mobiquant_core.engine import Engine
from mobiquant_core.errors import BudgetError, Cancelled, CheckpointError, PromptError
from mobiquant_core.token_text import TextStream, TokenTexts
from mobiquant_core.trace import average_bits

PROMPT = "The café 🙂 was open — again."


@pytest.fixture(scope="module")
def engine(tokenizer, make_tiny_model):
    model = make_tiny_model()
    return Engine(quantize_model(make_tiny_model(), keep_originals=True), tokenizer, model, "tiny")


def _generate(engine, **changed):
    asked = {"budget": 3.3, "policy": "uniform", "max_new_tokens": 8, "seed": 4} | changed
    return list(engine.generate(engine.encode(PROMPT), **asked))


def _ids(steps):
    return [token for step in steps[1:] for token in step.columns.token_ids]


def test_the_same_seed_and_budget_give_the_same_tokens(engine):
    first, second = _generate(engine), _generate(engine)
    assert _ids(first) == _ids(second) and len(_ids(first)) == 8
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.columns.depths, other.columns.depths)
    assert _ids(_generate(engine, seed=5)) != _ids(first)


def test_temperature_zero_ignores_the_seed(engine):
    assert _ids(_generate(engine, temperature=0, seed=1)) == _ids(_generate(engine, temperature=0, seed=2))


def test_cached_decoding_equals_one_long_prefill(engine):
    ids = engine.encode(PROMPT)
    model = engine.quantized.model
    whole = prefill(model, DecodeState(), ids)
    state = DecodeState()
    prefill(model, state, ids[:4])
    steps = [decode_one_token(model, state, token)[0] for token in ids[4:]]
    torch.testing.assert_close(torch.stack(steps), whole[4:], atol=2e-4, rtol=1e-3)
    assert state.position == len(ids)


def test_columns_describe_every_token(engine):
    steps = _generate(engine)
    trace = engine.assemble(steps, engine.run_settings("generate", budget=3.3, policy="uniform", max_new_tokens=8))
    linears, tokens, layers = 14, trace.tokens, 2
    assert tokens == len(engine.encode(PROMPT)) + 8
    assert trace.columns.depths.shape == (linears, tokens) and trace.columns.depths.dtype == np.uint8
    assert trace.columns.scores.shape == (linears, tokens, 3)
    assert trace.columns.residual_max.shape == (layers + 1, tokens)
    assert trace.columns.residual_top3.shape == (layers + 1, tokens, 3)
    assert trace.columns.top_ids.shape == (tokens, 5)
    assert np.isnan(trace.columns.loss[0]) and np.isfinite(trace.columns.loss[1:]).all()
    measured = average_bits(trace.columns.depths, trace.linears, trace.bits_by_depth)
    assert steps[-1].measured_bits == pytest.approx(measured, abs=1e-6)
    assert len(trace.timing.decode_seconds) == 8 and trace.timing.tokens_per_second > 0


def test_depths_are_the_scores_above_the_threshold(engine):
    trace = engine.analyze(engine.encode(PROMPT), budget=3.7, policy="random")
    above = (trace.columns.scores > trace.thresholds[:, None, None]).sum(-1)
    np.testing.assert_array_equal(trace.columns.depths, 1 + above)


@pytest.mark.parametrize("mode", ["global", "per_linear"])
def test_every_token_records_the_thresholds_its_scores_were_compared_with(engine, mode, monkeypatch):
    # A short horizon, so that a short run is corrected often.
    monkeypatch.setattr(engine_module, "BudgetController", partial(BudgetController, horizon_tokens=4))
    asked = {"budget": 3.1, "policy": "random", "mode": mode}
    steps = list(engine.generate([0, 7, 9], max_new_tokens=20, seed=1, **asked))
    trace = engine.assemble(steps, engine.run_settings("generate", max_new_tokens=20, **asked))
    assert trace.columns.thresholds.shape == ((1 if mode == "global" else len(trace.linears)), trace.tokens)
    used = trace.token_thresholds()
    np.testing.assert_array_equal(trace.columns.depths, 1 + (trace.columns.scores > used[..., None]).sum(-1))
    # The controller moved them while decoding; the prompt was processed at the requested budget.
    assert len(np.unique(used[0])) > 2
    np.testing.assert_array_equal(used[:, 0], trace.thresholds)


def test_the_controller_brings_a_long_run_to_its_budget(engine):
    steps = list(engine.generate([0, 7, 9], budget=3.1, policy="random", max_new_tokens=150, seed=1))
    assert steps[-1].measured_bits == pytest.approx(3.1, abs=0.05)


@pytest.mark.parametrize("budget", [2, 8])
def test_the_ends_of_the_range_are_exact(engine, budget):
    assert _generate(engine, budget=budget)[-1].measured_bits == budget


def test_a_stop_ends_the_run_after_the_step_under_way(engine):
    cancel = threading.Event()
    steps = []
    for step in engine.generate(engine.encode(PROMPT), budget=4, policy="uniform", max_new_tokens=50, cancel=cancel):
        steps.append(step)
        if len(steps) == 3:
            cancel.set()
    assert len(steps) == 3
    with pytest.raises(Cancelled):
        engine.analyze(engine.encode(PROMPT), budget=4, policy="uniform", cancel=cancel)
    assert not list(engine.generate([0, 1], budget=4, policy="uniform", cancel=cancel))


def test_two_budgets_share_one_model_at_the_same_time(engine):
    alone = {budget: _ids(_generate(engine, budget=budget)) for budget in (2.0, 8.0)}
    found = {}
    threads = [
        threading.Thread(target=lambda b=budget: found.__setitem__(b, _ids(_generate(engine, budget=b))))
        for budget in alone
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_interleaved_runs_do_not_meet(engine):
    one = engine.generate(engine.encode(PROMPT), budget=2, policy="uniform", max_new_tokens=5)
    two = engine.generate(engine.encode(PROMPT), budget=8, policy="uniform", max_new_tokens=5)
    pairs = list(zip(one, two, strict=True))
    assert all(first.columns.depths.max() == 1 and second.columns.depths.min() == 4 for first, second in pairs)


def test_full_depth_is_close_to_full_precision(engine):
    trace = engine.analyze(engine.encode(PROMPT), budget=8, policy="uniform", errors=True, reference=True)
    assert trace.columns.errors.max() < 1e-3
    assert trace.columns.reference_kl.max() < 1e-2
    np.testing.assert_allclose(trace.columns.loss[1:], trace.columns.reference_loss[1:], atol=0.05)
    coarse = engine.analyze(engine.encode(PROMPT), budget=2, policy="uniform", errors=True)
    assert (coarse.columns.errors > trace.columns.errors).mean() > 0.99


def test_without_16_bit_weights_errors_say_so_and_the_reference_is_refused(tokenizer, make_tiny_model):
    bare = Engine(quantize_model(make_tiny_model()), tokenizer)
    trace = bare.analyze([0, 5, 6], budget=8, policy="uniform", errors=True)
    assert trace.columns.errors.max() < 1e-9 and "all slices" in trace.notes[0]
    with pytest.raises(PromptError, match="full-precision"):
        bare.analyze([0, 5, 6], budget=8, policy="uniform", reference=True)


def test_a_long_prompt_is_processed_in_chunks_as_if_whole(engine):
    ids = [0, *np.random.default_rng(0).integers(2, 8000, 599).tolist()]
    trace = engine.analyze(ids, budget=8, policy="uniform")
    whole = prefill(engine.quantized.model, DecodeState(), ids)
    expected = torch.nn.functional.cross_entropy(whole[:-1], torch.tensor(ids[1:]), reduction="none")
    np.testing.assert_allclose(trace.columns.loss[1:], expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("text", ["", "   \n", None, "word " * 5000])
def test_empty_and_over_long_prompts_are_refused(engine, text):
    with pytest.raises(PromptError):
        engine.encode(text)


@pytest.mark.parametrize("budget", [1.99, 8.01, float("nan"), float("inf"), "4", None, True, []])
def test_bad_budgets_are_refused_before_the_first_step(engine, budget):
    with pytest.raises(BudgetError):
        engine.generate([0, 1], budget=budget, policy="uniform")


def test_other_bad_arguments_are_refused_before_the_first_step(engine):
    for wrong in ({"policy": "luck"}, {"mode": "none"}):
        with pytest.raises(BudgetError):
            engine.generate([0, 1], **({"budget": 4, "policy": "uniform"} | wrong))
    for ids in ([], [-1], [8192], [0] * 2049):
        with pytest.raises(PromptError):
            engine.generate(ids, budget=4, policy="uniform")
    for wrong in ({"max_new_tokens": -1}, {"max_new_tokens": 2.5}, {"temperature": float("nan")}):
        with pytest.raises(PromptError):
            engine.generate([0, 1], budget=4, policy="uniform", **wrong)


def test_a_full_context_ends_the_run(engine):
    steps = list(engine.generate([0] * 2046, budget=8, policy="uniform", max_new_tokens=10, temperature=0))
    assert len(steps) == 3
    with pytest.raises(PromptError, match="nothing can be added"):
        engine.generate([0] * 2048, budget=8, policy="uniform", max_new_tokens=1)


def test_sampling_refuses_what_is_no_number_and_honours_top_k():
    greedy, two = Sampling(0, 0, torch.zeros(1)), Sampling(2.0, 2, torch.rand(60))
    with pytest.raises(CheckpointError, match="finite"):
        sample(torch.tensor([0.0, float("nan")]), Sampling(1, 0, torch.zeros(1)), 0)
    huge = torch.tensor([3e38, 3e38, 0.0])  # their sum overflows, they do not
    assert sample(huge, greedy, 0) == 0
    logits = torch.tensor([0.0, 5.0, 4.0, -3.0])
    assert {sample(logits, two, index) for index in range(60)} == {1, 2}
    # All of the vocabulary, each as often as it is likely.
    everything = Sampling(2.0, 0, torch.linspace(0, 1, 1001)[:-1])
    drawn = torch.bincount(torch.tensor([sample(logits, everything, index) for index in range(1000)]), minlength=4)
    torch.testing.assert_close(drawn / 1000, (logits / 2).softmax(0), atol=2e-3, rtol=0)


def test_every_token_gets_a_text_and_the_texts_make_the_whole(tokenizer):
    texts = TokenTexts(tokenizer)
    ids = tokenizer("naïve 🙂👩‍🚀 — 日本", add_special_tokens=False)["input_ids"]
    pieces = TextStream(texts).push_all(ids)
    assert len(pieces) == len(ids) and all(pieces)
    assert "".join(piece for piece in pieces if not piece.startswith("⟨")) == "naïve 🙂👩‍🚀 — 日本"
    assert texts.decode(ids) == "naïve 🙂👩‍🚀 — 日本"
    assert texts.single(0) == "<|bos|>"
