"""Table of supported transformers architectures: where the projections and norms are.

Plain data. An architecture that is absent here is refused before any weight is read.
"""

from dataclasses import dataclass

from mobiquant_core.errors import UnsupportedModelError


@dataclass(frozen=True)
class Site:
    """Projections of one layer that read the same input, so they share a router body and a fused kernel."""

    name: str
    projections: tuple[str, ...]
    parent: str
    """The submodule of the decoder layer that owns the projections."""
    norm: str | None
    """The norm of the decoder layer whose output they read, where there is one to fold a scale into."""
    leader: str | None = None
    """The site just before whose trained router also decides about these projections: a norm's output tells as much as
    what they read themselves, and a token is scored half as often."""


@dataclass(frozen=True)
class Architecture:
    model_type: str
    layers: str
    sites: tuple[Site, ...]

    def heads(self, site: Site) -> int:
        """Projections that a trained router of `site` decides about: its own and, without a gap, its followers'."""
        return sum(len(other.projections) for other in self.sites if other is site or other.leader == site.name)


_GATED_SITES = (
    Site("attention_input", ("q_proj", "k_proj", "v_proj"), "self_attn", "input_layernorm"),
    Site("attention_output", ("o_proj",), "self_attn", None, "attention_input"),
    Site("mlp_input", ("gate_proj", "up_proj"), "mlp", "post_attention_layernorm"),
    Site("mlp_output", ("down_proj",), "mlp", None, "mlp_input"),
)
PROJECTIONS = tuple(projection for site in _GATED_SITES for projection in site.projections)
SUPPORTED = {
    model_type: Architecture(model_type, "model.layers", _GATED_SITES)
    for model_type in ("llama", "mistral", "qwen2", "qwen3", "smollm3")
}


def architecture_of(model_type: str) -> Architecture:
    """The table row of a `config.model_type`; UnsupportedModelError names what is supported."""
    if model_type not in SUPPORTED:
        raise UnsupportedModelError(
            f"The architecture {model_type!r} is not supported. Supported: {', '.join(sorted(SUPPORTED))}. "
            "Choose a checkpoint of one of these."
        )
    return SUPPORTED[model_type]
