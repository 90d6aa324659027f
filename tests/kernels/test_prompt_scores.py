"""Scores of many tokens in one launch: what the router's definition says."""

import pytest
import torch

from mobiquant_core.kernels.prompt_scores import scores
from mobiquant_core.policies import RouterPolicy
from mobiquant_core.router import MlpRouter, SketchRouter
from mobiquant_core.routing import RuntimeSite


def _router(width: int, heads: int, extra: int, device: str) -> MlpRouter:
    made = MlpRouter(width, heads, extra).requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.to(device)


def _scores(router: MlpRouter, x: torch.Tensor) -> torch.Tensor:
    return scores(x, router.direction, router.size, router.hidden_bias, router.output, router.base, router.heads)


@pytest.mark.parametrize(("tokens", "width", "heads", "extra"), [(1, 40, 1, 1), (17, 512, 4, 3), (35, 1000, 3, 2)])
def test_scores_are_those_of_the_definition(device: str, tokens: int, width: int, heads: int, extra: int) -> None:
    router = _router(width, heads, extra, device)
    x = torch.randn(tokens, width, device=device).half()
    x[0] = 0
    torch.testing.assert_close(_scores(router, x), router(x), rtol=1e-4, atol=1e-3)


def test_tokens_may_stand_apart(device: str) -> None:
    router, x = _router(64, 2, 3, device), torch.randn(5, 96, device=device).half()[:, :64]
    torch.testing.assert_close(_scores(router, x), router(x), rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["mlp", "sketch"])
def test_a_policy_on_a_gpu_scores_as_the_router_does(kind: str) -> None:
    router = _router(4096, 4, 3, "cuda") if kind == "mlp" else SketchRouter(4096, 3, 3).cuda()
    site = RuntimeSite(0, "attention_input", (), router)
    x = torch.randn(2048, 4096, device="cuda").bfloat16()
    with torch.inference_mode():
        torch.testing.assert_close(RouterPolicy().scores(site, x), router(x), rtol=1e-4, atol=1e-3)
