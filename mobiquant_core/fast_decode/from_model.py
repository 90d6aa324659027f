"""A quantized transformers model as the weights of a decode step.

It reads what the model's own modules hold (norms, rotary tables, biases); what the step cannot express is refused, and
the model then decodes through its modules as on a CPU.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.errors import KernelError
from mobiquant_core.fast_decode.step import MOST_HIDDEN
from mobiquant_core.fast_decode.weights import (
    LayerWeights,
    RouterWeights,
    SiteWeights,
    StepShape,
    StepWeights,
    pack_router,
    pack_sketch,
)
from mobiquant_core.packing import PackedWeight, can_pack
from mobiquant_core.planes import planes_of, site_planes
from mobiquant_core.router import MlpRouter, SketchRouter
from mobiquant_core.routing import RuntimeSite

_SITES = 4
_MODELS = ("llama", "mistral", "qwen2", "qwen3")
_HEAD_DIMS = (32, 64, 128, 256)
_ROTARY = ("default", "linear", "llama3", "yarn")


def step_weights(quantized: QuantizedModel, room: int) -> StepWeights:
    """Weights of the step for sequences of up to `room` positions; KernelError where the step cannot run the model."""
    reason = why_not(quantized)
    if reason:
        raise KernelError(f"The fast decode step cannot run this model: {reason}. It decodes through its modules.")
    model, shape = quantized.model, step_shape(quantized)
    body = model.get_submodule("model")
    layers = tuple(
        _layer(block, quantized.sites[_SITES * index : _SITES * index + _SITES])
        for index, block in enumerate(body.get_submodule("layers").children())
    )
    embedding = model.get_input_embeddings().get_parameter("weight").data
    return StepWeights(
        shape=shape,
        embedding=embedding,
        final_norm=body.get_submodule("norm").get_parameter("weight").data,
        head=SiteWeights(_head(model, embedding), None, shape.linears),
        rotary=_rotary(body.get_submodule("rotary_emb"), room, shape.head_dim, embedding.device),
        layers=layers,
    )


def why_not(quantized: QuantizedModel) -> str:
    """Why the step cannot run this model; empty where it can."""
    settings = quantized.model.config
    if settings.model_type not in _MODELS:
        return f"its architecture {settings.model_type} is none of {', '.join(_MODELS)}"
    if not can_pack(quantized.config):
        return f"its slices {quantized.config.slice_bits} in groups of {quantized.config.group_size} have no kernels"
    if settings.hidden_act != "silu":
        return f"its activation is {settings.hidden_act}, not silu"
    routers = [site.router for site in quantized.sites if site.router is not None]
    if any(not isinstance(router, MlpRouter | SketchRouter) for router in routers):
        return "its routers are neither perceptrons nor sketches"
    if any(isinstance(router, MlpRouter) and router.direction.shape[0] > MOST_HIDDEN for router in routers):
        return f"its routers have more than {MOST_HIDDEN} hidden numbers"
    if step_shape(quantized).head_dim not in _HEAD_DIMS:
        return f"its heads have a size that is none of {_HEAD_DIMS}"
    if len(set(getattr(settings, "layer_types", None) or ())) > 1:
        return "only some of its layers have a sliding window"
    rotary = (getattr(settings, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in _ROTARY:
        return f"its rotary angles ({rotary}) depend on the length of the text"
    if any(linear.out_features % 16 for site in quantized.sites for linear in site.linears[:-1]):
        return "a fused projection has a number of rows that is no multiple of 16"
    return ""


def step_shape(quantized: QuantizedModel) -> StepShape:
    """The model's numbers, from its settings."""
    settings = quantized.model.config
    head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    window = getattr(settings, "sliding_window", None)
    if not getattr(settings, "use_sliding_window", True):
        window = None
    return StepShape(
        hidden=settings.hidden_size,
        layers=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        kv_heads=settings.num_key_value_heads,
        head_dim=head_dim,
        feed_forward=settings.intermediate_size,
        vocabulary=settings.vocab_size,
        norm_eps=settings.rms_norm_eps,
        **({"window": window} if window else {}),
    )


def _head(model: PreTrainedModel, embedding: Tensor) -> Tensor | PackedWeight:
    """The embedding where the head is tied to it, else the head's planes at 8 bits: half of what a step would read.

    The module keeps its own 16 bits, which prompts are read with.
    """
    head = model.get_output_embeddings()
    if head is None or model.config.tie_word_embeddings:
        return embedding
    return planes_of(head.get_parameter("weight").data, MobiQuantConfig())


def _rotary(module: nn.Module, room: int, head_dim: int, device: torch.device) -> Tensor:
    """The model's own rotary angles, scaling included: cos and sin of half a head for every position."""
    positions = torch.arange(room, device=device)[None]
    cos, sin = module(torch.zeros(1, 1, device=device), positions)
    half = head_dim // 2
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=1).float().contiguous()


def _layer(block: nn.Module, sites: tuple[RuntimeSite, ...]) -> LayerWeights:
    attention = block.get_submodule("self_attn")

    def norm(module: nn.Module, name: str) -> Tensor | None:
        found = getattr(module, name, None)
        return None if found is None else found.weight.data

    attention_input, attention_output, mlp_input, mlp_output = (_site(site) for site in sites)
    return LayerWeights(
        block.get_submodule("input_layernorm").get_parameter("weight").data,
        block.get_submodule("post_attention_layernorm").get_parameter("weight").data,
        attention_input,
        attention_output,
        mlp_input,
        mlp_output,
        query_norm=norm(attention, "q_norm"),
        key_norm=norm(attention, "k_norm"),
    )


def _site(site: RuntimeSite) -> SiteWeights:
    return SiteWeights(
        site_planes(site),
        _router(site),
        site.first,
        bias=site.readouts.bias,
        shift=site.readouts.shift,
        gain=site.readouts.gain,
        followers=site.decided.stop - site.first - len(site.linears),
        follows=site.leader is not None,
    )


def _router(site: RuntimeSite) -> RouterWeights | None:
    router = site.router
    if isinstance(router, SketchRouter):
        return pack_sketch(
            router.energy.data.float(), router.offset.data.float(), router.centre.data.float(), router.heads
        )
    if not isinstance(router, MlpRouter):
        return None
    parts = (router.direction, router.size, router.hidden_bias, router.output, router.base)
    return pack_router(*(part.data.float() for part in parts), heads=router.heads)
