"""Score quantiles of every policy, and what budgets really spend: measured on the finished quantized model.

Any calibration ends here, whatever it fitted before. It fits nothing itself.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mobiquant_core.budget import QUANTILES
from mobiquant_core.convert import QuantizedModel
from mobiquant_core.errors import BudgetError
from mobiquant_core.policies import INPUT_POLICIES
from mobiquant_core.routing import FixedDepth, InputPolicy, Recorder, RuntimeSite, reader
from mobiquant_core.trace import average_bits

ASKED_SHARES = (1 / 12, 1 / 6, 1 / 3, 1 / 2, 2 / 3)
"""Where spending is checked, as shares of the way from the least to the most bits: 2.5, 3, 4, 5 and 6 of 2 to 8."""
_CHECK_TOKENS = {"router": 1024, "norm": 1024, "oracle": 512}


def measure_thresholds(
    quantized: QuantizedModel,
    token_windows: Int[Tensor, "windows tokens"],
    report: Callable[[float], None],
    names: tuple[str, ...] = INPUT_POLICIES,
) -> None:
    """Fills `score_quantiles` and `spent_bits` of the model's calibration for policies that read inputs."""
    calibration = quantized.calibration
    if calibration is None:
        raise BudgetError("Thresholds can only be measured on a model with a calibration. Calibrate it first.")
    policies = [name for name in names if name != "router" or calibration.router_kind != "none"]
    calibration.score_quantiles |= {
        name: _quantiles(scores) for name, scores in _collect_scores(quantized, token_windows, policies).items()
    }
    for done, policy in enumerate(policies):
        report((1 + done) / (1 + len(policies)))
        calibration.spent_bits[policy] = _spending(quantized, token_windows, policy)
    quantized.forget_thresholds()
    report(1.0)


@torch.inference_mode()
def _collect_scores(
    quantized: QuantizedModel, token_windows: Int[Tensor, "windows tokens"], policies: list[str]
) -> dict[str, list[Tensor]]:
    """Per policy, scores [tokens, heads, extra] of each site that is scored; the model runs at its middle depth."""
    scorers = {name: cast(InputPolicy, quantized.policy(name)) for name in policies}
    collected: dict[str, list[list[Tensor]]] = {name: [[] for _ in quantized.sites] for name in policies}

    def score_input(index: int, site: RuntimeSite) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            for name, policy in scorers.items():
                if reader(policy, site) is site:
                    collected[name][index].append(policy.scores(site, x).float().cpu())

        return hook

    hooks = [
        site.linears[0].register_forward_pre_hook(score_input(index, site))
        for index, site in enumerate(quantized.sites)
    ]
    try:
        for window in token_windows:
            with FixedDepth(max(1, quantized.config.depths // 2)):
                _run(quantized, window)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: [torch.cat(parts) for parts in sites if parts] for name, sites in collected.items()}


def _quantiles(sites: list[Float[Tensor, "tokens _ extra"]]) -> Float[Tensor, "linears extra quantiles"]:
    probabilities = torch.linspace(0, 1, QUANTILES)
    return torch.cat([torch.quantile(scores, probabilities, dim=0).permute(1, 2, 0) for scores in sites]).contiguous()


@torch.inference_mode()
def _spending(
    quantized: QuantizedModel, token_windows: Int[Tensor, "windows tokens"], policy: str
) -> dict[str, list[float]]:
    """Budgets asked for and bits spent when the policy itself routes; the layers before then run at other depths."""
    quantized.forget_thresholds()
    config = quantized.config
    count = max(1, _CHECK_TOKENS[policy] // token_windows.shape[1])
    windows = token_windows[:: max(1, len(token_windows) // count)][:count]
    curve: dict[str, list[float]] = {"asked": [], "spent": []}
    for share in ASKED_SHARES:
        asked = config.bits(1) + share * (config.total_bits - config.bits(1))
        plan, spent = quantized.plan(asked, policy), []
        for window in windows:
            recorder = Recorder()
            with quantized.routing_pass(plan, 0, recorder):
                _run(quantized, window)
            spent.append(average_bits(recorder.arrays()[0], quantized.linear_infos, config.bits_by_depth))
        curve["asked"].append(asked)
        curve["spent"].append(sum(spent) / len(spent))
    return curve


def _run(quantized: QuantizedModel, window: Int[Tensor, " tokens"]) -> None:
    """The decoder alone: the output head adds nothing to routing."""
    quantized.model.base_model(window[None].to(quantized.model.device), use_cache=False)
