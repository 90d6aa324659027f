"""Prompts of mixed depths without copies around the product, against float64."""

import pytest
import torch

from mobiquant_core.bench.kernel import exact, random_packed, relative_error
from mobiquant_core.kernels.grouped_gemm import multiply_dense, multiply_planes, sorted_inputs
from mobiquant_core.kernels.many_tokens import order_by_depth
from mobiquant_core.kernels.unpack import unpack_depths


@pytest.mark.parametrize("road", ["dense", "planes", "planes by descriptor"])
@pytest.mark.parametrize(("sections", "width", "depths"), [
    ((32,), 256, [1, 2, 3, 4] * 10),
    ((16, 24), 200, [3] * 20),
    ((40,), 128, [4, 1, 4] + [2] * 37),
])  # fmt: skip
def test_prompts(road: str, sections: tuple[int, ...], width: int, depths: list[int], device: str, asm: bool) -> None:
    torch.manual_seed(0)
    packed, last = random_packed(sections, width, device), len(sections) - 1
    chosen = torch.tensor(depths, dtype=torch.uint8, device=device)
    x = torch.randn(len(depths), width, device=device).half()
    rows = sections[last]
    bias, shift, gain = (torch.randn(*size, device=device) for size in ((rows,), (4, rows), (4, rows)))
    order = order_by_depth(chosen, 4)
    if road == "dense":
        dense = unpack_depths(packed, order.counts, x.dtype, last, gain, asm=asm)
        padded = torch.nn.functional.pad(x, (0, dense.shape[-1] - width))
        y = multiply_dense(padded, dense, order.tokens, order.ends, bias, shift, block=(16, 16, 4, 2))
    else:
        inputs = sorted_inputs(x, order.tokens, packed.groups)
        y = multiply_planes(packed, inputs, order.tokens, order.ends, bias, shift, gain, last, (16, 32, 4, 2),
                            tma=road != "planes")  # fmt: skip
    picked = chosen.long() - 1
    truth = exact(packed, x, chosen.expand(len(sections), -1))[:, -rows:] * gain[picked] + bias + shift[picked]
    assert relative_error(y, truth) < 2e-3
