"""Generation through the captured step beside generation through the model's modules: the same tokens and columns."""

import copy
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_step import llama, llama_with_fused_output, predict_alike, quantized_with_routers, qwen3
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel, Qwen2Config

from mobiquant_core.convert import QuantizedModel
from mobiquant_core.engine import Engine
from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode import from_model
from mobiquant_core.fast_decode.lending import Lender, build_session
from mobiquant_core.fast_decode.session import Session
from mobiquant_core.hf import CALIBRATION_FILE
from mobiquant_core.kernels import dispatch, reference
from mobiquant_core.loading import DEMO_MODEL, load_engine
from mobiquant_core.packing import unpack
from mobiquant_core.planes import site_planes
from mobiquant_core.policies import RouterPolicy
from mobiquant_core.trace import Step

PROMPT = [0, 7, 9, 4]
TOKENS = 2


def mistral() -> PreTrainedModel:
    """A window smaller than the prompt: its cache hands over fewer positions than were processed."""
    config = MistralConfig(
        hidden_size=64, num_hidden_layers=1, intermediate_size=96, vocab_size=48, max_position_embeddings=64,
        head_dim=32, num_attention_heads=2, num_key_value_heads=1, sliding_window=3,
    )  # fmt: skip
    return MistralForCausalLM(config)


class _Thresholds:
    """Stands for a calibrated table: budgets to thresholds near which the scores of random routers lie."""

    def __init__(self, linears: int) -> None:
        self.linears = linears
        self.budget_grid = self.global_thresholds = torch.zeros(1)

    def at(self, budget: float, mode: str = "global") -> torch.Tensor:
        offsets = torch.linspace(-0.2, 0.2, self.linears) if mode == "per_linear" else torch.zeros(self.linears)
        return offsets + 4.0 - budget


def _mixed_planes(x, packed, depths, bias=None, shift=None, gain=None) -> torch.Tensor:
    return reference.mixed_linear(x, *unpack(packed), depths, bias, shift, bits_by_depth=(2, 4, 6, 8))


def _session(quantized: QuantizedModel, room: int) -> Session:
    """As `build_session`, with the modules predicting as the step does from then on."""
    session = build_session(quantized, room)
    predict_alike(quantized, session.step.weights)
    return session


@pytest.fixture
def engine_of(tokenizer, device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    if device == "cpu":
        # The modules multiply by the definition: interpreted kernels take seconds.
        monkeypatch.setattr(dispatch, "mixed_planes", _mixed_planes)
    # Random weights differ between devices, and a text that ends at once would say nothing.
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None

    def make(model: Callable[[], PreTrainedModel], kind: str = "mlp") -> Engine:
        quantized = quantized_with_routers(model, device, kind)
        quantized._policies["router"] = RouterPolicy()
        quantized._tables["router"] = _Thresholds(len(quantized.linears))
        for site in quantized.sites:
            site_planes(site)
        engine = Engine(quantized, endless, None, "tiny")
        engine.lender = Lender(quantized, engine.context_length, _session)
        return engine

    return make


def generate(engine: Engine, **changed) -> list[Step]:
    asked = {"budget": 4.3, "max_new_tokens": TOKENS, "temperature": 0.8, "seed": 4} | changed
    return list(engine.generate(PROMPT, **asked))


def through_modules(engine: Engine, **changed) -> list[Step]:
    engine.lender.problem = "switched off"
    steps = generate(engine, **changed)
    engine.lender.problem = ""
    return steps


def assert_same(captured: list[Step], expected: list[Step]) -> None:
    assert [step.captured for step in captured] == [False, *[True] * (len(captured) - 1)]
    assert not any(step.captured for step in expected)
    for one, other in zip(captured, expected, strict=True):
        assert (one.phase, one.position) == (other.phase, other.position)
        assert one.measured_bits == pytest.approx(other.measured_bits, abs=1e-9)
        found, wanted = one.columns, other.columns
        assert found.token_ids == wanted.token_ids and found.token_texts == wanted.token_texts
        assert found.top_texts == wanted.top_texts
        for name in ("depths", "top_ids", "thresholds"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
        for name in ("scores", "residual_max", "residual_top3", "residual_median", "top_probabilities", "loss"):
            mine, modules = getattr(found, name), getattr(wanted, name)
            assert mine.dtype == modules.dtype, name
            np.testing.assert_allclose(mine, modules, rtol=3e-3, atol=3e-3, err_msg=name)


@pytest.mark.parametrize(("make", "mode"), [(llama, "global"), (qwen3, "per_linear"), (mistral, "global")])
def test_the_router_gives_the_same_columns(engine_of, make, mode: str) -> None:
    engine = engine_of(make)
    captured = generate(engine, mode=mode)
    assert_same(captured, through_modules(engine, mode=mode))
    trace = engine.assemble(captured, engine.run_settings("generate", budget=4.3, mode=mode))
    used = trace.token_thresholds()
    np.testing.assert_array_equal(trace.columns.depths, 1 + (trace.columns.scores > used[..., None]).sum(-1))
    assert trace.machine["decode"] == "captured graph"
    # Depths must differ, or the comparison would say little.
    assert len(np.unique(trace.columns.depths)) > 1


def test_a_sketch_router_gives_the_same_columns(engine_of) -> None:
    engine = engine_of(llama_with_fused_output, "sketch")
    captured = generate(engine, budget=4.0)
    assert_same(captured, through_modules(engine, budget=4.0))
    assert len(np.unique(captured[-1].columns.depths)) > 1


def test_a_policy_of_positions_keeps_its_own_scores(engine_of) -> None:
    engine = engine_of(llama)
    assert_same(
        generate(engine, policy="random", temperature=0), through_modules(engine, policy="random", temperature=0)
    )


def test_policies_that_read_what_the_step_does_not_keep_run_through_the_modules(engine_of) -> None:
    lender = engine_of(llama).lender
    norm = type("Norm", (), {"name": "norm", "reads_input": True})()
    assert "norm" in lender.why_not(norm)
    with lender.lend(norm, 8) as session:
        assert session is None


def test_a_second_run_at_the_same_time_goes_through_the_modules(engine_of) -> None:
    engine = engine_of(llama)
    cancel = threading.Event()
    one, two = (engine.generate(PROMPT, budget=4.3, max_new_tokens=TOKENS, seed=4, cancel=cancel) for _ in range(2))
    next(one), next(two)
    first, second = next(one), next(two)
    assert first.captured and not second.captured
    assert first.columns.token_ids == second.columns.token_ids
    # A stop ends both after the token under way, and the session comes back.
    cancel.set()
    assert not [*one, *two]
    with engine.lender.lend(RouterPolicy(), 8) as session:
        assert session is not None


def test_the_next_token_is_under_way_while_a_step_is_read(engine_of) -> None:
    engine = engine_of(llama)
    with engine.lender.lend(RouterPolicy(), 8) as session:
        pass
    steps = engine.generate(PROMPT, budget=4.3, max_new_tokens=3, seed=4)
    reached = [(step.position, session.position) for step in steps][1:]
    first = len(PROMPT)
    assert reached == [(first, first + 2), (first + 1, first + 3), (first + 2, first + 3)]
    # One that nobody waited for changes nothing about the run after it.
    left = engine.generate(PROMPT, budget=4.3, max_new_tokens=3, seed=4)
    next(left), next(left)
    left.close()
    assert_same(generate(engine), through_modules(engine))


def test_tokens_are_drawn_among_as_many_as_were_asked_for(engine_of) -> None:
    engine = engine_of(llama)
    asked = {"temperature": 5.0, "top_k": 3, "max_new_tokens": 4}
    assert_same(generate(engine, **asked), through_modules(engine, **asked))
    # More than the device keeps are drawn by the host.
    assert not any(step.captured for step in generate(engine, **asked | {"top_k": 0}))


def test_the_end_of_a_text_has_no_column(engine_of) -> None:
    engine = engine_of(llama)
    third = generate(engine, max_new_tokens=4)[3].columns.token_ids[0]
    engine.tokenizer.eos_token = engine.tokenizer.convert_ids_to_tokens(third)
    captured = generate(engine, max_new_tokens=4)
    assert_same(captured, through_modules(engine, max_new_tokens=4))
    assert len(captured) <= 3 and third not in [token for step in captured[1:] for token in step.columns.token_ids]


def test_a_run_left_alone_gives_the_session_back(engine_of) -> None:
    engine = engine_of(llama)
    left = engine.generate(PROMPT, budget=4.3, max_new_tokens=TOKENS)
    next(left)
    with engine.lender.lend(RouterPolicy(), 8) as session:
        assert session is None
    del left
    gc.collect()
    with engine.lender.lend(RouterPolicy(), 8) as session:
        assert session is not None


class _Fake:
    """As much of a session as its lender sees."""

    def __init__(self, room: int) -> None:
        self.room, self.broken = room, False


def lender_of(quantized: QuantizedModel, build: Callable, context: int = 4096) -> Lender:
    for site in quantized.sites:
        site_planes(site)
    return Lender(quantized, context, build)


def test_one_session_serves_as_long_as_it_is_large_enough(device: str) -> None:
    rooms: list[int] = []

    def build(_: QuantizedModel, room: int) -> _Fake:
        rooms.append(room)
        return _Fake(room)

    lender = lender_of(quantized_with_routers(llama, device), build)
    for positions in (10, 4096, 5000):
        with lender.lend(RouterPolicy(), positions) as session:
            assert session.room >= positions
    # A small model's cache is made for the whole context at once; the odd request rounds up.
    assert rooms == [4096, 5120]


def test_too_little_memory_and_a_failing_compiler_are_one_warning(device: str) -> None:
    asked: list[int] = []

    def out_of_memory(_: QuantizedModel, room: int) -> _Fake:
        asked.append(room)
        if room > 1024:
            raise torch.OutOfMemoryError("no memory")
        return _Fake(room)

    quantized = quantized_with_routers(llama, device)
    lender = lender_of(quantized, out_of_memory)
    with pytest.warns(UserWarning, match="no memory for a cache of 4,096"), lender.lend(RouterPolicy(), 10) as session:
        assert session is None
    with pytest.warns(UserWarning, match="2,048"), lender.lend(RouterPolicy(), 10):
        pass
    with lender.lend(RouterPolicy(), 10) as session:
        assert session.room == 1024
    with lender.lend(RouterPolicy(), 3000) as session:
        assert session is None
    assert asked == [4096, 2048, 1024]

    def broken(_: QuantizedModel, __: int) -> _Fake:
        raise ValueError("first line\nmore")

    lender = lender_of(quantized, broken)
    with pytest.warns(UserWarning, match=r"modules: first line\.$"), lender.lend(RouterPolicy(), 10) as session:
        assert session is None
    assert lender.why_not(RouterPolicy()) == "first line"


def test_a_device_that_fails_is_one_line_and_the_next_run_does_without(engine_of, monkeypatch) -> None:
    engine = engine_of(llama)

    def fail(*_: object) -> None:
        raise RuntimeError("device lost\nlong story")

    def build(quantized: QuantizedModel, room: int) -> Session:
        session = build_session(quantized, room)
        session.replay = fail
        return session

    engine.lender = Lender(engine.quantized, 64, build)
    with pytest.warns(UserWarning, match="slower modules"), pytest.raises(KernelError, match="failed: device lost"):
        generate(engine)
    assert not any(step.captured for step in generate(engine))


def test_models_whose_layers_or_angles_the_step_does_not_know_are_refused(device: str) -> None:
    quantized = quantized_with_routers(llama, device)
    settings = quantized.model.config
    assert from_model.why_not(quantized) == ""
    settings.layer_types = Qwen2Config(use_sliding_window=True, max_window_layers=1, num_hidden_layers=2).layer_types
    assert "sliding window" in from_model.why_not(quantized)
    settings.layer_types = None
    settings.rope_parameters = {"rope_type": "longrope"}
    assert "longrope" in from_model.why_not(quantized)
    settings.rope_parameters = {"rope_type": "default"}
    settings.head_dim = 48
    assert "heads" in from_model.why_not(quantized)


def test_routers_the_step_does_not_know_are_refused(device: str) -> None:
    quantized = quantized_with_routers(llama, device, "sketch")
    assert from_model.why_not(quantized) == ""
    object.__setattr__(quantized.sites[0], "router", torch.nn.Identity())
    assert "neither perceptrons nor sketches" in from_model.why_not(quantized)


def test_the_bundled_model_can_be_captured() -> None:
    engine = load_engine("demo", device="cpu", keep_reference=False)
    assert from_model.why_not(engine.quantized) == ""
    # Without planes it stays with its modules.
    assert "without kernels" in engine.lender.why_not(engine.quantized.policy("router"))


@pytest.fixture(params=["mlp", "sketch"])
def model_name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bundled model, or its plain checkpoint as a user brings one: loading calibrates it and fits sketches."""
    if request.param == "mlp":
        return "demo"
    monkeypatch.setenv("MOBIQUANT_CACHE", str(tmp_path / "cache"))
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in DEMO_MODEL.iterdir():
        if file.name != CALIBRATION_FILE:
            (plain / file.name).symlink_to(file)
    return str(plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_bundled_model_on_a_gpu(model_name: str) -> None:
    engine = load_engine(model_name, device="cuda")
    assert engine.quantized.calibration.router_kind == ("mlp" if model_name == "demo" else "sketch")
    assert engine.lender.why_not(engine.quantized.policy("router")) == ""
    ids = engine.encode("The river runs through the valley and")
    asked = {"budget": 4.0, "max_new_tokens": 32, "temperature": 0.0}
    captured = list(engine.generate(ids, **asked))
    engine.lender.problem = "switched off"
    expected = list(engine.generate(ids, **asked))
    engine.lender.problem = ""
    assert len(captured) > 8 and all(step.captured for step in captured[1:])
    assert len(expected) > 8 and not any(step.captured for step in expected)
    # The modules round to 16 bits between layers, the step does not: two runs may part where two tokens are as likely.
    pairs = list(zip(captured, expected, strict=False))
    same = [one.columns.token_ids == other.columns.token_ids for one, other in pairs]
    apart = same.index(False) if False in same else len(same)
    if apart < len(same):
        likeliest = expected[apart - 1].columns.top_probabilities[0]
        assert likeliest[0] - likeliest[1] < 0.05, (apart, likeliest)
    for one, other in pairs[1:apart]:
        found, wanted = one.columns, other.columns
        assert (found.depths != wanted.depths).mean() < 0.1
        assert np.median(abs(found.scores - wanted.scores)) < 0.05
        np.testing.assert_array_equal(found.thresholds.shape, wanted.thresholds.shape)
        np.testing.assert_allclose(found.residual_max, wanted.residual_max, rtol=0.1)
        np.testing.assert_allclose(found.residual_median, wanted.residual_median, rtol=0.1)
        np.testing.assert_allclose(found.loss, wanted.loss, atol=0.3)
        # Exact within the captured run itself.
        above = (found.scores > np.broadcast_to(found.thresholds, found.depths.shape)[..., None]).sum(-1)
        np.testing.assert_array_equal(found.depths, 1 + above)
    cancel, steps = threading.Event(), []
    for step in engine.generate(ids, cancel=cancel, **asked):
        steps.append(step)
        if len(steps) == 3:
            cancel.set()
    assert len(steps) == 3
