"""The decode step against the model's own modules: same tokens, same scores, same depths."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel, quantize_model
from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.decoder import Decoder
from mobiquant_core.fast_decode.from_model import step_weights
from mobiquant_core.fast_decode.step import Step
from mobiquant_core.fast_decode.weights import LayerWeights, SiteWeights, StepWeights
from mobiquant_core.kernels import reference
from mobiquant_core.kernels.tuning import Tuning
from mobiquant_core.packing import PackedWeight, unpack
from mobiquant_core.router import MlpRouter, SketchRouter
from mobiquant_core.routing import FixedDepth

_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "intermediate_size": 96,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "head_dim": 32,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **_SMALL))


def llama_of_odd_vocabulary() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=1, **_SMALL | {"vocab_size": 50}))


def tied_llama() -> PreTrainedModel:
    config = LlamaConfig(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, **_SMALL)
    return LlamaForCausalLM(config)


def llama_with_fused_output() -> PreTrainedModel:
    """Four query heads of 32 share a key-value head: one whole group, so attention prepares the output's input."""
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=1, **_SMALL))


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(num_attention_heads=2, num_key_value_heads=1, **_SMALL))


MASSIVE = 3
"""A channel that some norms make this much larger than the others, near its mean in every token."""


def head_of(packed: PackedWeight) -> torch.Tensor:
    """A head's planes as the dense matrix they stand for, in float64."""
    dense = reference.dequantize(*unpack(packed), packed.slices, (2, 4, 6, 8), torch.float64)
    return dense[:, : packed.in_features]


def weights_of(quantized: QuantizedModel, room: int) -> StepWeights:
    """The step's weights; from then on the modules predict with the very head that the step reads."""
    weights = step_weights(quantized, room)
    predict_alike(quantized, weights)
    return weights


def predict_alike(quantized: QuantizedModel, weights: StepWeights) -> None:
    """Gives the modules the values of the head's planes."""
    if isinstance(weights.head.weight, PackedWeight):
        quantized.model.get_output_embeddings().weight.copy_(head_of(weights.head.weight))


def quantized_with_routers(make: Callable[[], PreTrainedModel], device: str, kind: str = "mlp") -> QuantizedModel:
    torch.manual_seed(0)
    model = make().eval().float().requires_grad_(False).to(device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 1.0)
    if kind == "sketch":
        model.get_submodule("model.layers.0.input_layernorm").weight[MASSIVE] = 100.0
    quantized = quantize_model(model, MobiQuantConfig())
    for leader, site in zip([None, *quantized.sites], quantized.sites, strict=False):
        if kind == "mlp" and len(site.linears) == 1:
            object.__setattr__(site, "leader", leader)
            continue
        width, heads = site.linears[0].in_features, len(site.linears) + (kind == "mlp")
        router = (MlpRouter if kind == "mlp" else SketchRouter)(width, heads, 3).to(device).requires_grad_(False)
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        if kind == "mlp":
            # Scores on either side of a limit about 0, so that all depths come up.
            router.base.add_(torch.tensor([1.5, 0.5, -0.5], device=device).repeat(heads))
        object.__setattr__(site, "router", router)
    if kind == "sketch":
        make_sketches_fit(quantized)
    return quantized


def make_sketches_fit(quantized: QuantizedModel) -> None:
    """Energies are no negative numbers, scores lie about 0, and the massive channel is all but cancelled."""
    with FixedDepth(2), torch.no_grad():
        inputs = site_inputs(quantized, [5])
    for site, x in zip(quantized.sites, inputs, strict=True):
        router = site.router
        router.energy.abs_()
        router.centre[MASSIVE] = x[0, -1, MASSIVE] + 0.5
        # As calibration stores them.
        for parameter in router.parameters():
            parameter.copy_(parameter.half())
        wanted = torch.tensor([1.5, 0.0, -1.5], device=x.device).repeat(len(site.linears))
        wanted += torch.randn_like(wanted)
        router.offset.copy_((router.offset - router(x[:, -1]).flatten() + wanted).half())


@pytest.mark.parametrize("kind", ["mlp", "sketch"])
@pytest.mark.parametrize("make", [llama_with_fused_output, qwen3])
def test_tokens_scores_and_depths(make: Callable[[], PreTrainedModel], kind: str, device: str, asm: bool) -> None:
    quantized = quantized_with_routers(make, device, kind)
    limit = 0.3
    step = Step(weights_of(quantized, 16), 16, dtype=torch.float32, dependent=False, asm=asm)
    step.buffers.control[:, 0] = limit
    step.buffers.token.fill_(5)
    logits = step.forward()
    step.predict(logits)
    depths = step.buffers.record[:, 3]
    assert len(depths.unique()) > 2
    with FixedDepth(depths), torch.no_grad():
        inputs = site_inputs(quantized, [5])
        expected = quantized.model(torch.tensor([[5]], device=device)).logits[0, -1]
    for site, x in zip(quantized.sites, inputs, strict=True):
        if site.leader is not None:
            continue
        scores, own = site.router(x[:, -1])[0], site.decided
        torch.testing.assert_close(step.buffers.record[own, :3], scores, rtol=2e-3, atol=2e-3)
        assert torch.equal((scores > limit).sum(-1).float() + 1, depths[own])
    torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    assert int(step.buffers.position) == 1


def site_inputs(quantized: QuantizedModel, ids: list[int]) -> list[torch.Tensor]:
    """What every site reads when the model runs `ids`."""
    seen: list[torch.Tensor] = []
    hooks = [
        site.linears[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        for site in quantized.sites
    ]
    device = next(quantized.model.parameters()).device
    quantized.model(torch.tensor([ids], device=device))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("make", [llama])
def test_fixed_depths_give_the_models_own_tokens(make: Callable[[], PreTrainedModel], device: str, asm: bool) -> None:
    quantized = quantized_with_routers(make, device)
    for site in quantized.sites:
        object.__setattr__(site, "router", None)
        object.__setattr__(site, "leader", None)
    step = Step(weights_of(quantized, 16), 16, dtype=torch.float32, dependent=False, asm=asm)
    step.buffers.control[:, 1] = 3
    step.buffers.token.fill_(5)
    ids = [5]
    for _ in range(2):
        step.run()
        with FixedDepth(3), torch.no_grad():
            ids.append(int(quantized.model(torch.tensor([ids], device=device)).logits[0, -1].argmax()))
    assert step.buffers.history[1:3].tolist() == ids[1:]


def test_an_untied_head_is_read_as_eight_bits(device: str, asm: bool) -> None:
    """A vocabulary that fills no tile: exact to the stored head, and to half a finest cell of the head it came from."""
    quantized = quantized_with_routers(llama_of_odd_vocabulary, device)
    head = quantized.model.get_output_embeddings().weight.double()
    weights = step_weights(quantized, 16)
    step = Step(weights, 16, dtype=torch.float32, dependent=False, asm=asm)
    Decoder(step).set_budget(torch.zeros(7), torch.ones(7))
    step.buffers.token.fill_(5)
    logits = step.forward().double()
    hidden = step.buffers.hidden[0].double()
    x = hidden * (hidden.square().mean() + weights.shape.norm_eps).rsqrt() * weights.final_norm.double()
    packed = weights.head.weight
    exact = head_of(packed) @ x
    assert logits.shape == (50,)
    assert ((logits - exact).abs() <= 2e-5 * (head_of(packed).abs() @ x.abs())).all()
    half_cell = unpack(packed)[2].double()[:, :1] / 2**7
    bound = (half_cell * x.abs().sum()).squeeze(1) * (1 + 1e-6)
    assert ((exact - head @ x).abs() <= bound).all() and not torch.allclose(exact, head @ x, rtol=1e-4)
    assert (step.buffers.record[:, 3] == 1).all() and step.buffers.record.shape == (7, 4)


def test_a_tied_head_is_the_embedding_and_an_untied_one_counts_as_stored(device: str) -> None:
    untied = step_weights(quantized_with_routers(llama, device), 16)
    tied = step_weights(quantized_with_routers(tied_llama, device), 16)
    assert tied.head.weight is tied.embedding
    # 48 rows of one group: 128 bytes of codes (64 columns are padded) and 4 of ranges each.
    assert untied.stored_bytes() - tied.stored_bytes() == 48 * 132


def test_what_is_asked_for_early_changes_no_number(device: str, asm: bool) -> None:
    quantized = quantized_with_routers(llama_with_fused_output, device)
    weights, found = step_weights(quantized, 16), []
    packed = [site.weight for site in _sites(weights.layers[0])]
    early = Tuning(1, 2, (2, 1, 1, 1), pieces=1, held=True)
    for tuning in (Tuning(1, 2, (2, 1, 1, 1)), early):
        tunings = {(weight.out_features, weight.groups): tuning for weight in packed}
        step = Step(weights, 16, dtype=torch.float32, dependent=False, asm=asm, tuning=tunings)
        for depth in (1, 2, 0):
            step.buffers.control[:, 1] = depth
            step.buffers.token.fill_(5)
            found.append((step.forward().clone(), step.buffers.record.clone()))
    for (logits, record), (early_logits, early_record) in zip(found[:3], found[3:], strict=True):
        assert torch.equal(logits, early_logits) and torch.equal(record, early_record)


def _sites(layer: LayerWeights) -> tuple[SiteWeights, ...]:
    return layer.attention_input, layer.attention_output, layer.mlp_input, layer.mlp_output


def test_what_the_step_cannot_run_is_refused(device: str) -> None:
    torch.manual_seed(0)
    model = llama().eval().requires_grad_(False).to(device)
    quantized = quantize_model(model, MobiQuantConfig(group_size=32))
    with pytest.raises(KernelError, match="groups of 32"):
        step_weights(quantized, 16)
