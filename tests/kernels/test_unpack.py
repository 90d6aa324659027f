"""Planes to dense weights, and tokens sorted by depth."""

import torch

from mobiquant_core.bench.kernel import exact, random_packed
from mobiquant_core.kernels.many_tokens import order_by_depth
from mobiquant_core.kernels.unpack import unpack_depths


def test_only_depths_that_occur_are_written(device: str, asm: bool) -> None:
    packed = random_packed((16, 24), 200, device)
    counts = torch.tensor([0, 3, 0, 1, 0], dtype=torch.int32, device=device)
    out = torch.full((4, 24, 256), float("nan"), dtype=torch.float16, device=device)
    unpack_depths(packed, counts, torch.float16, section=1, out=out, asm=asm)
    assert out[[1, 3]].isnan().all() and not out[[0, 2]].isnan().any()
    for depth in (1, 3):
        depths = torch.tensor([[depth], [depth]], dtype=torch.uint8, device=device).expand(2, 256)
        truth = exact(packed, torch.eye(256, device=device), depths)[:, 16:].t()
        torch.testing.assert_close(out[depth - 1].double(), truth, rtol=1e-3, atol=1e-4)


def test_gain_scales_the_rows_of_its_depth(device: str, asm: bool) -> None:
    packed = random_packed((16,), 128, device)
    counts = torch.tensor([0, 1, 1, 1, 1], dtype=torch.int32, device=device)
    gain = torch.rand(4, 16, device=device) + 0.5
    plain = unpack_depths(packed, counts, torch.float16, asm=asm)
    scaled = unpack_depths(packed, counts, torch.float16, gain=gain, asm=asm)
    torch.testing.assert_close(scaled.float(), plain.float() * gain[..., None], rtol=2e-3, atol=1e-4)


def test_tokens_sorted_by_depth(device: str) -> None:
    depths = torch.randint(1, 5, (1300,), dtype=torch.uint8, device=device)
    order = order_by_depth(depths, 4)
    assert torch.equal(order.tokens.long(), torch.argsort(depths, stable=True))
    assert torch.equal(order.tokens.long()[order.places.long()], torch.arange(1300, device=device))
    counts = torch.bincount(depths, minlength=5)
    assert torch.equal(order.counts.long()[1:], counts[1:])
    assert torch.equal(order.ends.long(), counts[1:].cumsum(0))
