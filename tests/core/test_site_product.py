"""One product for linears that read the same input: the same results, fewer launches, nothing outlives its pass."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel, quantize_model
from mobiquant_core.kernels import dispatch, reference
from mobiquant_core.packing import PackedWeight, section, unpack
from mobiquant_core.planes import site_planes
from mobiquant_core.routing import FixedDepth, Recorder, RoutingPlan, RuntimeSite
from mobiquant_core.site_product import readouts

TOKENS = 40
BITS = (2, 4, 6, 8)
ATTENTION, GATED = (256, 128, 128), (384, 384)


class _OfInput:
    """Scores each token by its activations, at every linear in another way."""

    name, reads_input, leads = "of_input", True, False

    def scores(self, site: RuntimeSite, x: Tensor) -> Tensor:
        heads = len(site.linears)
        weight = torch.randn(x.shape[1], heads * 3, generator=torch.Generator().manual_seed(site.first))
        return (x @ weight).view(-1, heads, 3).sort(-1, descending=True).values


@pytest.fixture
def quantized() -> QuantizedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )
    made = quantize_model(LlamaForCausalLM(config).eval().requires_grad_(False), MobiQuantConfig())
    query, key, value = made.sites[0].linears
    query.gain = nn.Parameter(torch.rand(4, 256) + 0.5, requires_grad=False)
    key.bias = nn.Parameter(torch.randn(128), requires_grad=False)
    value.shift = nn.Parameter(torch.randn(4, 128), requires_grad=False)
    for site in made.sites:
        site_planes(site)
    return made


def _by_definition(x, packed, depths, bias=None, shift=None, gain=None) -> Tensor:
    y, own = reference.mixed_linear(x, *unpack(packed), depths, bits_by_depth=BITS), depths.long() - 1
    y = y if gain is None else y * gain[own]
    y = y if bias is None else y + bias
    return y if shift is None else y + shift[own]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Rows of the sections of every product, with kernels replaced by the definition."""
    made: list[tuple[int, ...]] = []

    def alone(x: Tensor, packed: PackedWeight, depths: Tensor, *others: Tensor | None) -> Tensor:
        made.append(packed.sections)
        return _by_definition(x, packed, depths, *others)

    def fused(x: Tensor, packed: PackedWeight, depths: Tensor, *others: Tensor | None) -> list[Tensor]:
        assert depths.shape == (len(packed.sections), x.shape[0]) and depths.dtype == torch.uint8
        made.append(packed.sections)
        parts = [(None,) * len(depths) if o is None else o.split(packed.sections, -1) for o in others]
        return [
            _by_definition(x, section(packed, i), own, *(part[i] for part in parts)) for i, own in enumerate(depths)
        ]

    monkeypatch.setattr(dispatch, "mixed_planes", alone)
    monkeypatch.setattr(dispatch, "fused_planes", fused)
    monkeypatch.setattr(dispatch, "whole_prompt", lambda _packed, x: x.shape[0] >= 33)
    return made


def _plan(quantized: QuantizedModel, policy: str, bits: float) -> RoutingPlan:
    if policy == "random":
        return quantized.plan(bits, policy)
    limit = {2.0: float("inf"), 8.0: -float("inf")}.get(bits, 0.0)
    return RoutingPlan(_OfInput(), torch.full((len(quantized.linears),), limit), bits, "global")


def _logits(quantized: QuantizedModel, plan: RoutingPlan, tokens: int = TOKENS) -> tuple[Tensor, Recorder]:
    ids = torch.randint(0, 512, (2, tokens // 2), generator=torch.Generator().manual_seed(tokens))
    recorder = Recorder()
    with torch.inference_mode(), quantized.routing_pass(plan, 0, recorder):
        return quantized.model(ids, use_cache=False).logits, recorder


@pytest.mark.parametrize("policy", ["random", "of_input"])
@pytest.mark.parametrize("bits", [2.0, 3.7, 8.0])
def test_a_prompt_gets_the_same_in_one_launch_a_site(
    quantized: QuantizedModel, launches: list, monkeypatch: pytest.MonkeyPatch, policy: str, bits: float
) -> None:
    plan = _plan(quantized, policy, bits)
    found, recorder = _logits(quantized, plan)
    assert launches == [ATTENTION, (256,), GATED, (256,)] * 2
    launches.clear()
    monkeypatch.setattr(dispatch, "whole_prompt", lambda _packed, _x: False)
    expected, alone = _logits(quantized, plan)
    assert ATTENTION not in launches and GATED not in launches
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (recorder.arrays()[0] == alone.arrays()[0]).all()


def test_few_tokens_and_fixed_depths_are_multiplied_one_by_one(quantized: QuantizedModel, launches: list) -> None:
    _logits(quantized, _plan(quantized, "of_input", 3.7), tokens=20)
    with torch.inference_mode(), FixedDepth(3):
        quantized.model(torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    assert len(launches) == 2 * 14 and all(len(sections) == 1 for sections in launches)


def test_another_input_is_multiplied_anew(quantized: QuantizedModel, launches: list) -> None:
    query, key, value = quantized.sites[0].linears
    x = torch.randn(TOKENS, 256)
    with torch.inference_mode(), quantized.routing_pass(_plan(quantized, "random", 3.7)):
        query(x)
        other = key(x + 1)
        assert launches == [ATTENTION, (128,)]
        same, again = value(x), value(x)
        assert launches == [ATTENTION, (128,), (128,)]
        torch.testing.assert_close(same, again)
        torch.testing.assert_close(other, key(x + 1))


def test_nothing_outlives_the_pass(quantized: QuantizedModel, launches: list) -> None:
    query, key, value = quantized.sites[0].linears
    x = torch.randn(TOKENS, 256)
    with torch.inference_mode(), quantized.routing_pass(_plan(quantized, "random", 3.7)) as running:
        query(x), key(x)
        made = running._product
        assert made is not None and list(made._left) == [value.index]
        value(x)
        assert not made._left and made._x is None
        query(x)
    assert running._product is None
    query(x)
    assert launches == [ATTENTION, ATTENTION, (256,)]


def test_linears_without_common_planes_are_on_their_own(quantized: QuantizedModel, launches: list) -> None:
    query, key, _value = quantized.sites[0].linears
    key.shared = key.packed
    with torch.inference_mode(), quantized.routing_pass(_plan(quantized, "random", 3.7)):
        query(torch.randn(TOKENS, 256))
    assert launches == [(256,)]


def test_planes_have_no_gradient() -> None:
    x = SimpleNamespace(is_cuda=True, requires_grad=True)
    assert not dispatch.whole_prompt(None, x)


def test_readouts_of_some_leave_the_others_alone(quantized: QuantizedModel) -> None:
    found = readouts(quantized.sites[0].linears)
    query, key, value = quantized.sites[0].linears
    assert torch.equal(found.gain, torch.cat([query.gain, torch.ones(4, 256)], 1))
    assert torch.equal(found.bias, torch.cat([torch.zeros(256), key.bias, torch.zeros(128)]))
    assert torch.equal(found.shift, torch.cat([torch.zeros(4, 384), value.shift], 1))
    assert readouts(quantized.sites[1].linears).gain is None
