"""What a fast calibration needs to know of a model: input moments, sampled inputs, and loss gradients.

One window at a time, forward and backward, with a bounded sample of tokens per site. It fits nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from mobiquant_core.architectures import architecture_of
from mobiquant_core.budget import QUANTILES
from mobiquant_core.convert import PreTrainedModel, walk_sites

SAMPLES_PER_SITE = 512
"""Inputs kept per site, over all windows: what later steps measure errors on."""


@dataclass
class SiteStatistics:
    """Of one site; `gradients` has one entry per projection."""

    moments: Float[Tensor, " in_features"]
    """Mean square of every input channel about `mean`."""
    mean: Float[Tensor, " in_features"]
    """Mean of every input channel, first tokens left out: theirs are like no other's."""
    inputs: Float[Tensor, "samples in_features"]
    """Sampled inputs, less `mean`."""
    sample_weights: Float[Tensor, " samples"]
    """How many calibration tokens each sample stands for, summing to 1."""
    norm_quantiles: Float[Tensor, " quantiles"]
    sensitivity: Float[Tensor, " heads"]
    """Mean squared gradient of the loss at each projection's output, per output channel."""
    gradients: Float[Tensor, "heads samples"]
    """The same of the sampled tokens."""


def collect_statistics(
    model: PreTrainedModel, token_windows: Int[Tensor, "windows tokens"], report: Callable[[float], None]
) -> list[SiteStatistics]:
    """Statistics of every site in canonical order, from the loss on `token_windows`."""
    device = model.device
    picks, weights = _sampled_positions(*token_windows.shape)
    collectors = [
        _SiteCollector([block.get_submodule(site.parent).get_submodule(name) for name in site.projections])
        for _, site, block in walk_sites(model, architecture_of(model.config.model_type))
    ]
    # Without a trainable parameter nothing would record a graph; the embeddings' output starts it.
    embedding_hook = model.get_input_embeddings().register_forward_hook(lambda *call: call[2].requires_grad_(True))
    hooks = [embedding_hook, *(hook for collector in collectors for hook in collector.hooks())]
    try:
        for done, window in enumerate(token_windows.to(device)):
            for collector in collectors:
                collector.picks = picks[done].to(device)
            logits = model(window[None], use_cache=False).logits[0, :-1]
            F.cross_entropy(logits.float(), window[1:], reduction="sum").backward()
            report((done + 1) / len(token_windows))
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return [collector.result(token_windows.numel(), weights.to(device)) for collector in collectors]


class _SiteCollector:
    """Hooks on the projections of one site."""

    def __init__(self, projections: list[nn.Module]) -> None:
        self.picks = torch.zeros(0, dtype=torch.long)
        self._projections = projections
        self._squares: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0
        self._first_sum: Tensor | float = 0.0
        self._inputs: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._sums = [0.0] * len(projections)
        self._gradients: list[list[Tensor]] = [[] for _ in projections]

    def hooks(self) -> list[RemovableHandle]:
        handles = [self._projections[0].register_forward_pre_hook(self._see_input)]
        return handles + [
            projection.register_forward_hook(self._output_hook(head))
            for head, projection in enumerate(self._projections)
        ]

    @torch.no_grad()
    def _see_input(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2).float()
        self._squares = self._squares + x.square().sum(0)
        self._sum, self._first_sum = self._sum + x.sum(0), self._first_sum + x[0]
        self._norms.append(torch.linalg.vector_norm(x, dim=-1))
        self._inputs.append(x[self.picks])

    def _output_hook(self, head: int) -> Callable[[nn.Module, object, Tensor], None]:
        def see_gradient(gradient: Tensor) -> None:
            squares = gradient.flatten(0, -2).float().square().mean(-1)
            self._sums[head] += squares.sum().item()
            self._gradients[head].append(squares[self.picks])

        def see_output(_: nn.Module, __: object, output: Tensor) -> None:
            output.register_hook(see_gradient)

        return see_output

    def result(self, tokens: int, sample_weights: Tensor) -> SiteStatistics:
        probabilities = torch.linspace(0, 1, QUANTILES, device=sample_weights.device)
        mean = torch.as_tensor(self._sum - self._first_sum) / (tokens - len(self._norms))
        moments = torch.as_tensor(self._squares - 2 * mean * self._sum) / tokens + mean.square()
        return SiteStatistics(
            moments=moments.clamp_min(0),
            mean=mean,
            inputs=torch.cat(self._inputs) - mean,
            sample_weights=sample_weights,
            norm_quantiles=torch.quantile(torch.cat(self._norms), probabilities),
            sensitivity=torch.tensor(self._sums, device=sample_weights.device) / tokens,
            gradients=torch.stack([torch.cat(parts) for parts in self._gradients]),
        )


def _sampled_positions(windows: int, length: int) -> tuple[Int[Tensor, "windows picks"], Float[Tensor, " samples"]]:
    """Positions sampled per window and their weights: the first token always, its activations are like no other's."""
    count = min(length, max(2, SAMPLES_PER_SITE // windows))
    generator = torch.Generator().manual_seed(0)
    others = [1 + torch.randperm(length - 1, generator=generator)[: count - 1].sort().values for _ in range(windows)]
    picks = torch.stack([torch.cat([torch.zeros(1, dtype=torch.long), part]) for part in others])
    weights = torch.full((windows, count), (length - 1) / (count - 1) / (windows * length))
    weights[:, 0] = 1 / (windows * length)
    return picks, weights.flatten()
