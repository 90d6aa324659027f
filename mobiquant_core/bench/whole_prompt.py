"""A prompt through some layers of a Llama-3-8B in transformers' own code, routers included, beside the same in bf16.

What the products alone do not tell: attention, norms and activations take the same time in both, routers come on top.
Weights and routers are random; thresholds are measured on the prompt itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mobiquant_core.architectures import architecture_of
from mobiquant_core.bench.random_model import LLAMA_3_8B
from mobiquant_core.calibrate.thresholds import measure_thresholds
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel, quantize_model, site_name, walk_sites
from mobiquant_core.fast_decode.weights import StepShape
from mobiquant_core.planes import use_kernels
from mobiquant_core.router import MlpRouter
from mobiquant_core.routing import Recorder
from mobiquant_core.trace import average_bits

TOKENS, LAYERS = 2048, 4
BUDGETS = (2.0, 3.0, 4.0, 5.0, 8.0)
_CALLS = 12


def measure(shape: StepShape = LLAMA_3_8B, layers: int = LAYERS, tokens: int = TOKENS) -> list[dict[str, Any]]:
    """One row per budget."""
    model = _random_model(shape, layers)
    ids = torch.randint(0, shape.vocabulary, (1, tokens), device=model.device)

    @torch.inference_mode()
    def prompt() -> None:
        model(ids, use_cache=False, logits_to_keep=1)

    bf16 = _milliseconds(prompt)
    quantized = quantize_model(model, calibration=_random_routers(model))
    use_kernels(quantized)
    measure_thresholds(quantized, ids, lambda _done: None, ("router",))
    return [_row(quantized, bits, prompt, tokens, bf16) for bits in BUDGETS]


def _row(
    quantized: QuantizedModel, bits: float, prompt: Callable[[], None], tokens: int, bf16: float
) -> dict[str, Any]:
    plan = quantized.plan(bits, mode="per_linear")

    def routed(recorder: Recorder | None = None) -> None:
        with quantized.routing_pass(plan, recorder=recorder):
            prompt()

    recorder = Recorder()
    routed(recorder)
    spent = _milliseconds(routed)
    return {
        "layers": quantized.linear_infos[-1].layer + 1,
        "tokens": tokens,
        "bits_asked": bits,
        "bits": average_bits(recorder.arrays()[0], quantized.linear_infos, quantized.config.bits_by_depth),
        "milliseconds": spent,
        "bf16_milliseconds": bf16,
        "share_of_bf16_speed": bf16 / spent,
    }


def _random_model(shape: StepShape, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)


def _random_routers(model: LlamaForCausalLM) -> Calibration:
    """A router behind every norm, which decides for the linear after its site too."""
    config, routers = MobiQuantConfig(), {}
    architecture = architecture_of(model.config.model_type)
    for layer, site, _block in walk_sites(model, architecture):
        if site.leader is None:
            router = MlpRouter(model.config.hidden_size, architecture.heads(site), config.depths - 1)
            torch.nn.init.normal_(router.output)
            routers |= {f"{site_name(layer, site)}.{name}": value.data for name, value in router.named_parameters()}
    return Calibration(config, router_kind="mlp", routers=routers)


def _milliseconds(run: Callable[[], None]) -> float:
    """Mean time of one call in a row of calls."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3):
        run()
    start.record()
    for _ in range(_CALLS):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / _CALLS
