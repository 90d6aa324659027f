"""The model under calibration: its projections answer at full precision, at fixed depths, or through gates.

One object serves as teacher and student, so the weights are in memory once. It knows how a pass runs, not what
is being minimised. Input scales divide the input here; the artefact folds them into the preceding norm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mobiquant_core.architectures import Site, architecture_of
from mobiquant_core.calibrate.backbone import Backbone
from mobiquant_core.calibrate.fake_quant import RangeFit, leaning_base, leaning_residue, nested_weights
from mobiquant_core.calibrate.gating import gated_answers
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.rounding import pack_residues, residue_bits
from mobiquant_core.slicing import dequantize, group_columns, positions, round_range, slice_weight

FULL_PRECISION, FIXED_DEPTHS, GATED, CHOSEN = "full precision", "fixed depths", "gated", "chosen"


@dataclass
class Pass:
    """How the forward pass in progress runs, shared by all projections of one student."""

    mode: str = FULL_PRECISION
    compute: torch.dtype = torch.float32
    thresholds: Tensor = field(default_factory=lambda: torch.zeros(1))
    """[batch]: one per window, so that a step visits many budgets."""
    temperature: Tensor | float = 1.0
    softness: Tensor | None = None
    """How gradually weights change cells while rounding is learnt, in those cells."""
    reach: float = 0.0
    """How near to a base cell's border, in base cells, learnt rounding may cross it."""
    parts: tuple[int, ...] | None = None
    """Windows of the first depths in a pass at fixed depths, the only ones computed; by default equally many of all."""
    spared: Tensor | None = None
    """[windows]: for each of the last windows of a pass at fixed depths, the share of its answers (one per token and
    linear, drawn at random) that come at full precision instead."""
    scores: dict[int, Tensor] = field(default_factory=dict)
    """By canonical index of the linear, [batch, tokens, extra]: filled by a gated pass."""
    choose: Callable[["FitLinear", Tensor], Tensor] = lambda linear, x: torch.ones(x.shape[:2], device=x.device)
    """(linear, its input) -> depths [batch, tokens]: passes whose depths a policy chooses."""

    @contextmanager
    def at_fixed_depths(self, parts: tuple[int, ...] | None, spared: Tensor | None = None) -> Iterator[None]:
        """Passes at fixed depths on such parts of the batch."""
        self.mode, self.parts, self.spared = FIXED_DEPTHS, parts, spared
        try:
            yield
        finally:
            self.parts, self.spared = None, None


class FitSite:
    """Linears that read one input: they share the input scale and the router, their own or their leader's."""

    def __init__(
        self, site: Site, layer: int, first_index: int, in_features: int, heads: int, leader: "FitSite | None"
    ) -> None:
        self.site, self.layer, self.first_index = site, layer, first_index
        self.in_features, self.heads, self.leader = in_features, heads, leader
        self.router: nn.Module | None = None
        self.log_scale: nn.Parameter | None = None


class FitLinear(nn.Module):
    """One projection with learnable group ranges, gains and shifts over its frozen weight."""

    def __init__(self, linear: nn.Linear, index: int, site: FitSite, config: MobiQuantConfig, run: Pass) -> None:
        super().__init__()
        self.index, self.site, self.config, self.run = index, site, config, run
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.ranges = RangeFit(self.weight, config)
        self.shift = nn.Parameter(torch.zeros(config.depths, linear.out_features, device=self.weight.device))
        self.readout = nn.Parameter(torch.zeros(config.depths, linear.out_features, device=self.weight.device))
        # A correction may be as large as the error it corrects: smaller with every slice, none at full depth. Adam
        # moves every parameter alike, and what it would drift on a fine depth costs more than the fine depth errs.
        finer = [2.0 ** (config.bits(1) - bits) for bits in config.bits_by_depth]
        free = torch.tensor(finer, device=self.weight.device).unsqueeze(1)
        if config.depths > 1:
            free[-1] = 0
        self.free_depths: Tensor
        self.register_buffer("free_depths", free)
        self.lean: nn.Parameter | None = None
        self.home: Tensor | None = None
        """Base codes that stay as they are."""
        self.shift_unit = 1.0
        self.frozen_stack: Tensor | None = None

    @property
    def weights(self) -> int:
        return self.weight.numel()

    def dense(self, depth: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out in_features"]:
        """The weight at one depth, as a MobiLinear gives it."""
        return self.stack()[depth - 1].to(dtype)

    def scaled_weight(self) -> Float[Tensor, "out in_features"]:
        weight = self.weight.float()
        return weight if self.site.log_scale is None else weight * self.site.log_scale.exp()

    def stack(self) -> Float[Tensor, "depths out in_features"]:
        if self.frozen_stack is not None:
            return self.frozen_stack
        low, high = self.ranges()
        run, weight = self.run, self.scaled_weight()
        depths = self.config.depths if run.parts is None else len(run.parts)
        rounding = (self.lean, run.softness, run.reach, self.home)
        return nested_weights(weight, low, high, self.config, run.compute, *rounding, self.gain()[:depths])

    @torch.no_grad()
    def settle(self) -> None:
        """Makes the base codes chosen so far constants; choices within base cells start again."""
        if self.lean is None:
            return
        low, high = self.ranges()
        self.home = leaning_base(self.scaled_weight(), low, high, self.lean, self.config, self.run.reach)
        self.lean.zero_()

    def output_shift(self) -> Float[Tensor, "depths out"]:
        """What is added to every output at each depth."""
        return self.shift * self.free_depths * self.shift_unit

    def gain(self) -> Float[Tensor, "depths out"]:
        """What every output is multiplied with at each depth."""
        return 1 + self.readout * self.free_depths

    def forward(self, x: Float[Tensor, "batch tokens in_features"]) -> Float[Tensor, "batch tokens out"]:
        if self.run.mode == FULL_PRECISION:
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        gates, exact = self._gates(x), x
        if self.site.log_scale is not None:
            x = x * (-self.site.log_scale).exp()
        shift = self.output_shift()
        if self.bias is not None:
            shift = shift + self.bias
        inputs, stack = x.to(self.run.compute), self.stack()
        if gates is None:
            y = self._at_fixed_depths(inputs, stack, shift, exact)
        else:
            every = F.linear(inputs, stack.flatten(0, 1)).view(-1, self.config.depths, self.out_features)
            y = gated_answers(every, gates.flatten(0, 1), shift).view(*x.shape[:2], self.out_features)
        return y.to(x.dtype)

    def _gates(self, x: Tensor) -> Float[Tensor, "batch tokens depths"] | None:
        """Which depth answers for every token: one-hot forward, soft backward."""
        run = self.run
        if run.mode == FIXED_DEPTHS:
            return None
        if run.mode == CHOSEN:
            return F.one_hot(run.choose(self, x).long() - 1, self.config.depths).to(x.dtype)
        scores = self._scores(x)
        distance = scores - run.thresholds.view(-1, 1, 1)
        soft = torch.sigmoid(distance / run.temperature)
        opened = (distance > 0).to(soft.dtype) + soft - soft.detach()
        return F.pad(opened, (1, 0), value=1.0) - F.pad(opened, (0, 1), value=0.0)

    def _scores(self, x: Tensor) -> Float[Tensor, "batch tokens extra"]:
        run, first = self.run, self.site.first_index
        if self.index == first and self.site.leader is None:
            # Scores read detached activations: what a gate does to later scores is noise, not a lesson.
            router = cast(nn.Module, self.site.router)
            every = router(x.detach().flatten(0, 1).float()).view(*x.shape[:2], -1, self.config.depths - 1)
            for head in range(every.shape[2]):
                run.scores[first + head] = every[:, :, head]
        return run.scores[self.index]

    def _at_fixed_depths(self, inputs: Tensor, stack: Tensor, shift: Tensor, exact: Tensor) -> Tensor:
        """Part k of the batch answers at depth k + 1; of the last windows, some tokens as `Pass.spared` says."""
        run = self.run
        if run.parts is not None:
            shifts = shift.to(inputs.dtype)[: len(run.parts)]
            pieces = zip(inputs.split(run.parts), stack, shifts, strict=True)
            y = torch.cat([F.linear(piece, weight, bias) for piece, weight, bias in pieces])
            return y if run.spared is None else self._spare(y, exact, run.spared)
        parts = inputs.view(self.config.depths, -1, self.in_features)
        y = torch.baddbmm(shift.unsqueeze(1).to(parts.dtype), parts, stack.transpose(1, 2))
        return y.view(*inputs.shape[:2], self.out_features)

    def _spare(self, y: Tensor, exact: Tensor, share: Tensor) -> Tensor:
        """Full precision for a random share of the tokens of the last windows."""
        first = len(y) - len(share)
        bias = None if self.bias is None else self.bias.to(y.dtype)
        full = F.linear(exact[first:].to(y.dtype), self.weight.to(y.dtype), bias)
        chosen = torch.rand(full.shape[:2], device=y.device) < share.unsqueeze(-1)
        return torch.cat([y[:first], torch.where(chosen.unsqueeze(-1), full, y[first:])])


@torch.no_grad()
def learnt_rounding(linear: FitLinear) -> UInt8[Tensor, "out bytes"] | None:
    """The choices of one linear as they are stored; None where rounding was not learnt."""
    if linear.lean is None:
        return None
    low, high = (bound.half().float() for bound in linear.ranges())
    edge, step = round_range(low, high, linear.config)
    cells = positions(group_columns(linear.scaled_weight(), linear.config), edge, step, linear.config)
    residue = leaning_residue(cells, linear.lean, linear.config, linear.run.reach, linear.home)
    return pack_residues(residue.flatten(1), residue_bits(linear.run.reach, linear.home is not None))


class Student:
    """A model whose projections are FitLinears, in place; `restore` puts the plain ones back."""

    def __init__(self, model: PreTrainedModel, config: MobiQuantConfig, compute: torch.dtype = torch.float32) -> None:
        self.model, self.config = model, config
        self.backbone = Backbone(model)
        self.run = Pass(compute=compute)
        self.linears: list[FitLinear] = []
        self.sites: list[FitSite] = []
        self._plain: list[tuple[nn.Module, str, nn.Module]] = []
        model.requires_grad_(False)
        architecture = architecture_of(model.config.model_type)
        for layer, block in enumerate(self.backbone.layers):
            made: dict[str, FitSite] = {}
            for site in architecture.sites:
                leader = made[site.leader] if site.leader else None
                made[site.name] = self._replace(block, layer, site, architecture.heads(site), leader)

    def _replace(self, block: nn.Module, layer: int, site: Site, heads: int, leader: FitSite | None) -> FitSite:
        parent = block.get_submodule(site.parent)
        plain = [parent.get_submodule(name) for name in site.projections]
        width = plain[0].in_features
        shared = FitSite(site, layer, len(self.linears), width, heads, leader)  # pyright: ignore[reportArgumentType]
        self.sites.append(shared)
        for name, module in zip(site.projections, plain, strict=True):
            linear = cast(nn.Linear, module)
            fit = FitLinear(linear, len(self.linears), shared, self.config, self.run)
            self._plain.append((parent, name, linear))
            setattr(parent, name, fit)
            self.linears.append(fit)
        return shared

    def restore(self) -> None:
        for parent, name, linear in self._plain:
            setattr(parent, name, linear)

    @property
    def weights(self) -> Float[Tensor, " linears"]:
        """Number of weights of every linear: its share in average bits."""
        counts = [linear.weight.numel() for linear in self.linears]
        return torch.tensor(counts, dtype=torch.float64)

    def linears_of(self, layer: int) -> Sequence[FitLinear]:
        return [linear for linear in self.linears if linear.site.layer == layer]

    def name_of(self, linear: FitLinear) -> str:
        site = linear.site
        projection = site.site.projections[linear.index - site.first_index]
        return f"layers.{site.layer}.{site.site.parent}.{projection}"

    @torch.no_grad()
    def freeze(self) -> None:
        """Computes every stack once, exactly as slicing will store it; `thaw` drops them."""
        for linear in self.linears:
            low, high = (bound.half() for bound in linear.ranges())
            sliced = slice_weight(linear.scaled_weight(), self.config, low, high, learnt_rounding(linear))
            plain = torch.stack([dequantize(sliced, depth) for depth in range(1, self.config.depths + 1)])
            linear.frozen_stack = (plain * linear.gain().unsqueeze(-1)).to(self.run.compute)

    def thaw(self) -> None:
        for linear in self.linears:
            linear.frozen_stack = None
