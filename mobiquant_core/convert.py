"""A transformers model with its projections replaced by quantized ones, and what belongs to it.

It knows modules and names, not text: generation is the engine's, fitting is calibration's.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mobiquant_core.architectures import Architecture, Site, architecture_of
from mobiquant_core.budget import ThresholdTable, validate_budget
from mobiquant_core.calibration import Calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.dense_cache import DenseCache
from mobiquant_core.errors import BudgetError, CheckpointError, UnsupportedModelError
from mobiquant_core.ledger import LedgerRow, memory_ledger
from mobiquant_core.linear import MobiLinear
from mobiquant_core.policies import (
    POLICIES,
    LayerPolicy,
    NormPolicy,
    OraclePolicy,
    Policy,
    RandomPolicy,
    RouterPolicy,
    UniformPolicy,
    layer_quantiles,
    unit_quantiles,
)
from mobiquant_core.router import router_from_state
from mobiquant_core.routing import Recorder, RoutingPass, RoutingPlan, RuntimeSite
from mobiquant_core.trace import LinearInfo

Progress = Callable[[str, float], None]
CACHE_BYTES = 2**30


class QuantizedModel:
    """A model whose projections are MobiLinears, with its routers, calibration and threshold tables."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: MobiQuantConfig,
        calibration: Calibration | None = None,
        *,
        originals: tuple[Tensor, ...] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.model, self.config, self.calibration = model, config, calibration
        self.architecture = architecture_of(model.config.model_type)
        self.originals = originals
        self.cache = DenseCache(cache_bytes)
        self.sites = tuple(self._build_sites())
        self.linears = tuple(linear for site in self.sites for linear in site.linears)
        self.linear_infos = [LinearInfo(linear.layer, linear.projection, linear.weights) for linear in self.linears]
        self._site_of = tuple(site for site in self.sites for _ in site.linears)
        self._tables: dict[str, ThresholdTable] = {}
        self._policies: dict[str, Policy] = {}

    def plan(self, budget: float, policy: str = "router", mode: str = "global") -> RoutingPlan:
        """Thresholds that make `policy` spend `budget` bits per weight on average."""
        budget = validate_budget(budget, self.config)
        return RoutingPlan(self.policy(policy), self.thresholds(policy).at(budget, mode), budget, mode)

    def routing_pass(self, plan: RoutingPlan, position: int = 0, recorder: Recorder | None = None) -> RoutingPass:
        """One forward pass under `plan`; use it as a context manager around the model call."""
        return RoutingPass(self._site_of, plan, position, recorder)

    def policy(self, name: str) -> Policy:
        """The score function called `name`; BudgetError where this model lacks what it needs."""
        if name not in self._policies:
            self._policies[name] = self._make_policy(name)
        return self._policies[name]

    def thresholds(self, policy: str) -> ThresholdTable:
        """The threshold table of a policy."""
        if policy not in self._tables:
            weights = [info.weights for info in self.linear_infos]
            spent = self.calibration.spent_bits.get(policy, {}) if self.calibration else {}
            self._tables[policy] = ThresholdTable(self._quantiles(policy), weights, self.config, **spent)
        return self._tables[policy]

    def forget_thresholds(self) -> None:
        """Makes the tables anew: after the calibration's quantiles changed."""
        self._tables.clear()

    def memory_ledger(self) -> list[LedgerRow]:
        """Bytes stored and bytes read per token at each depth, part by part."""
        head = self.model.get_output_embeddings()
        return memory_ledger(
            self.model,
            self.model.get_input_embeddings().get_parameter("weight"),
            None if head is None else head.get_parameter("weight"),
            self.linears,
            self.sites,
        )

    def _make_policy(self, name: str) -> Policy:
        linears, extra = len(self.linears), self.config.depths - 1
        if name == "uniform":
            return UniformPolicy(linears, extra)
        if name == "random":
            return RandomPolicy(linears, extra)
        if name not in POLICIES:
            raise BudgetError(f"The policy {name!r} is unknown. Known: {', '.join(POLICIES)}.")
        if name == "router" and self.sites[0].router is not None:
            return RouterPolicy()
        found = self.calibration
        if found is not None:
            if name == "layer" and found.layer_scores is not None:
                return LayerPolicy(found.layer_scores.float())
            if name == "norm" and found.norm_quantiles is not None:
                return NormPolicy(found.norm_quantiles.float().contiguous(), extra)
            if name == "oracle" and found.sensitivity is not None:
                return OraclePolicy(found.sensitivity, self.originals)
        raise BudgetError(
            f"The policy {name!r} needs a calibration that this model does not have. Run `quantize` with "
            "`--calibrate fast`, or choose the policy uniform."
        )

    def _quantiles(self, policy: str) -> Tensor:
        self.policy(policy)
        measured = self.calibration.score_quantiles.get(policy) if self.calibration else None
        if measured is not None:
            return measured
        if policy == "layer" and self.calibration and self.calibration.layer_scores is not None:
            return layer_quantiles(self.calibration.layer_scores)
        if policy in ("uniform", "random", "norm"):
            return unit_quantiles(len(self.linears), self.config.depths - 1)
        raise BudgetError(f"No score quantiles were measured for the policy {policy!r}. Calibrate the model again.")

    def _build_sites(self) -> Iterator[RuntimeSite]:
        index = 0
        trained = self.calibration is not None and self.calibration.router_kind == "mlp" and self.config.depths > 1
        made: dict[str, RuntimeSite] = {}
        for layer, site, block in walk_sites(self.model, self.architecture):
            parent = block.get_submodule(site.parent)
            linears = tuple(parent.get_submodule(name) for name in site.projections)
            for linear, projection in zip(linears, site.projections, strict=True):
                if not isinstance(linear, MobiLinear):
                    raise CheckpointError(
                        f"The projection {linear_name(layer, site, projection)} is not quantized. "
                        "Quantize the whole model first."
                    )
                linear.index, linear.layer, linear.projection, linear.cache = index, layer, projection, self.cache
                index += 1
            # A closed form reads the input of every site; a trained router decides for those it leads as well.
            leader = made[site.leader] if trained and site.leader is not None else None
            heads = self.architecture.heads(site) if trained else len(linears)
            router = None if leader is not None else self._router(layer, site, heads)
            if router is not None:
                router.to(next(linears[0].parameters()).device)
            made[site.name] = RuntimeSite(layer, site.name, linears, router, leader)  # type: ignore[arg-type]
            yield made[site.name]

    def _router(self, layer: int, site: Site, heads: int) -> nn.Module | None:
        if self.calibration is None or self.calibration.router_kind == "none" or self.config.depths == 1:
            return None
        state = self.calibration.router_state(site_name(layer, site))
        return router_from_state(self.calibration.router_kind, state, heads, self.config.depths - 1)


def quantize_model(
    model: PreTrainedModel,
    config: MobiQuantConfig = MobiQuantConfig(),  # noqa: B008 - frozen
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    *,
    keep_originals: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> QuantizedModel:
    """Replaces the projections in place, layer by layer; `keep_originals` keeps the 16-bit weights for the oracle."""
    if calibration is not None and calibration.config != config:
        raise CheckpointError(
            f"The calibration is for slices {calibration.config.slice_bits} and groups of "
            f"{calibration.config.group_size}, not {config.slice_bits} and {config.group_size}. Calibrate again."
        )
    architecture = architecture_of(model.config.model_type)
    originals: list[Tensor] = []
    walked = list(walk_sites(model, architecture))
    for done, (layer, site, block) in enumerate(walked):
        if progress is not None:
            progress(f"Slicing layer {layer}", done / len(walked))
        _fold_input_scale(layer, site, block, calibration)
        parent = block.get_submodule(site.parent)
        for projection in site.projections:
            linear = parent.get_submodule(projection)
            if keep_originals:
                originals.append(linear.get_parameter("weight").data)
            setattr(parent, projection, _quantized(linear, linear_name(layer, site, projection), config, calibration))
    return QuantizedModel(
        model, config, calibration, originals=tuple(originals) if keep_originals else None, cache_bytes=cache_bytes
    )


def working_copy(model: PreTrainedModel, calibration: Calibration) -> PreTrainedModel:
    """A copy to be sliced. It shares every tensor with the original unless calibration folds scales into them."""
    shared = {} if calibration.input_scales else {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared)


def walk_sites(model: nn.Module, architecture: Architecture) -> Iterator[tuple[int, Site, nn.Module]]:
    """(layer index, site, decoder layer) in canonical order."""
    try:
        layers = model.get_submodule(architecture.layers)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"The model has no {architecture.layers!r}; only causal language models can be quantized."
        ) from error
    for layer, block in enumerate(layers.children()):
        for site in architecture.sites:
            yield layer, site, block


def linear_name(layer: int, site: Site, projection: str) -> str:
    """ "layers.3.self_attn.q_proj": the name of a linear in a calibration."""
    return f"layers.{layer}.{site.parent}.{projection}"


def site_name(layer: int, site: Site) -> str:
    """ "layers.3.attention_input": the name of a site in a calibration."""
    return f"layers.{layer}.{site.name}"


def _quantized(linear: nn.Module, name: str, config: MobiQuantConfig, calibration: Calibration | None) -> MobiLinear:
    if not isinstance(linear, nn.Linear):
        raise UnsupportedModelError(f"{name} is a {type(linear).__name__}, not a linear layer of a 16-bit model.")
    low, high, shift, gain, rounding = None, None, None, None, None
    if calibration is not None and calibration.ranges is not None:
        if name not in calibration.ranges:
            raise CheckpointError(f"The calibration has no ranges for {name}. Calibrate again for this model.")
        low, high = (bound.to(linear.weight.device) for bound in calibration.ranges[name])
    if calibration is not None and calibration.shifts is not None:
        shift = calibration.shifts.get(name)
    if calibration is not None and calibration.gains is not None:
        gain = calibration.gains.get(name)
    if calibration is not None and calibration.rounding is not None:
        rounding = calibration.rounding.get(name)
    try:
        return MobiLinear.from_linear(linear, config, low, high, shift, gain, rounding)
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(f"{name} cannot be quantized. {error}") from error


@torch.no_grad()
def _fold_input_scale(layer: int, site: Site, block: nn.Module, calibration: Calibration | None) -> None:
    """Multiplies the columns of a site's weights and divides the norm before them, which leaves the output alone."""
    scale = (calibration.input_scales or {}).get(site_name(layer, site)) if calibration is not None else None
    if scale is None:
        return
    if site.norm is None:
        raise CheckpointError(f"{site_name(layer, site)} has an input scale but no norm to fold it into.")
    norm_weight = block.get_submodule(site.norm).get_parameter("weight")
    norm_weight.data = (norm_weight.float() / scale.to(norm_weight.device)).to(norm_weight.dtype)
    for projection in site.projections:
        weight = block.get_submodule(site.parent).get_submodule(projection).get_parameter("weight")
        # Kept in fp32 until it is sliced: 16 bits would move weights across the edges of finest cells.
        weight.data = weight.float() * scale.to(weight.device)
