"""A decoder of a given shape with random weights, made on the device layer by layer: nothing passes the host."""

import torch
from torch import Tensor

from mobiquant_core.bench.kernel import random_packed
from mobiquant_core.fast_decode.weights import (
    LayerWeights,
    RouterWeights,
    SiteWeights,
    StepShape,
    StepWeights,
    pack_router,
)

LLAMA_3_8B = StepShape(
    hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, feed_forward=14336, vocabulary=128256, norm_eps=1e-5
)
_ROUTER_HIDDEN = 16


def random_weights(shape: StepShape, room: int, *, dense: bool = False, router: bool = True) -> StepWeights:
    """Planes with perceptron routers, or dense bf16 weights for the baseline."""
    layers = tuple(_layer(shape, index, dense, router) for index in range(shape.layers))
    size = (shape.vocabulary, shape.hidden)
    head = _matrix(*size) if dense else random_packed(size[:1], size[1])
    return StepWeights(
        shape=shape,
        embedding=_matrix(shape.vocabulary, shape.hidden),
        final_norm=_ones(shape.hidden),
        head=SiteWeights(head, None, shape.linears),
        rotary=_rotary(room, shape.head_dim),
        layers=layers,
    )


def _layer(shape: StepShape, index: int, dense: bool, router: bool) -> LayerWeights:
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = [
        ((width, kv, kv), shape.hidden),
        ((shape.hidden,), width),
        ((shape.feed_forward, shape.feed_forward), shape.hidden),
        ((shape.hidden,), shape.feed_forward),
    ]
    first, sites = 7 * index, []
    for sections, columns in sizes:
        weight = _matrix(sum(sections), columns) if dense else random_packed(sections, columns)
        # A router behind a norm decides for the linear after its site too.
        routed, normed = router and not dense, len(sections) > 1
        leads = routed and normed
        own_router = _router(columns, len(sections) + 1) if leads else None
        sites.append(SiteWeights(weight, own_router, first, followers=int(leads), follows=routed and not normed))
        first += len(sections)
    return LayerWeights(_ones(shape.hidden), _ones(shape.hidden), *sites)


def _matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02


def _ones(width: int) -> Tensor:
    return torch.ones(width, device="cuda", dtype=torch.bfloat16)


def _router(columns: int, heads: int) -> RouterWeights:
    hidden, scores = _ROUTER_HIDDEN, 3 * heads

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, device="cuda")

    return pack_router(
        draw(hidden, columns) / columns**0.5, draw(hidden), draw(hidden), draw(scores, hidden), draw(scores), heads
    )


def _rotary(room: int, head_dim: int) -> Tensor:
    half = torch.arange(head_dim // 2, device="cuda")
    angles = torch.arange(room, device="cuda")[:, None] * 500000.0 ** (-half / (head_dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1).float().contiguous()
