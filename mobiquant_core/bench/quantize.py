"""Slicing and packing a model shard by shard: seconds and the most memory the host ever held."""

import resource
import time
from typing import Any

import torch

from mobiquant_core.bench.random_model import LLAMA_3_8B
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.fast_decode.weights import StepShape
from mobiquant_core.packing import pack
from mobiquant_core.slicing import slice_weight


def layer_sizes(shape: StepShape) -> list[tuple[int, int]]:
    """Rows and columns of the seven linears of a layer."""
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return [
        (width, shape.hidden),
        (kv, shape.hidden),
        (kv, shape.hidden),
        (shape.hidden, width),
        (shape.feed_forward, shape.hidden),
        (shape.feed_forward, shape.hidden),
        (shape.hidden, shape.feed_forward),
    ]


def measure(shape: StepShape = LLAMA_3_8B) -> dict[str, Any]:
    """Every layer of a model of this shape arrives from the host as bf16, is sliced and packed, and goes back."""
    config, weights, packed_bytes = MobiQuantConfig(), 0, 0
    shard = [torch.randn(size).mul_(0.02).bfloat16() for size in layer_sizes(shape)]
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(shape.layers):
        for dense in shard:
            sliced = slice_weight(dense.cuda(), config)
            packed = pack(sliced.codes, sliced.edge, sliced.step, sliced.in_features, config)
            sliced.codes.cpu(), sliced.edge.cpu(), sliced.step.cpu()
            weights += dense.numel()
            packed_bytes += packed.stored_bytes()
    torch.cuda.synchronize()
    return {
        "weights": weights,
        "seconds": time.perf_counter() - started,
        "packed_gigabytes": packed_bytes / 1e9,
        "host_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "device_gigabytes": torch.cuda.max_memory_allocated() / 1e9,
    }
