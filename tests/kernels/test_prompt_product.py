"""The product for prompts: when it is taken, what the compiler makes of it, and on a Hopper card its results."""

import re
from collections.abc import Callable

import pytest
import torch

from mobiquant_core.bench.kernel import exact, random_packed, relative_error
from mobiquant_core.kernels import gpu, prompt_product


def test_other_types_and_cards_take_dense_weights() -> None:
    packed, x = random_packed((128,), 128, "cpu"), torch.zeros(512, 128)
    assert not prompt_product.takes(x.bfloat16()) and not gpu.whole_prompt(packed, x)


def test_the_product_is_tried_once_and_never_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing, trials = True, []
    monkeypatch.setattr(prompt_product, "_WORKS", {})
    monkeypatch.setattr(prompt_product, "_agrees", lambda device: trials.append(device) is None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    device = torch.device("cuda", 0)
    assert not prompt_product.works(device) and not trials
    capturing = False
    assert prompt_product.works(device)
    capturing = True
    assert prompt_product.works(device) and trials == [device]


@pytest.mark.xdist_group("compiler")
def test_weights_go_to_shared_memory_and_results_to_memory_in_wide_pieces(compiled: Callable) -> None:
    ptx, shared = compiled("prompt_product")
    # What a multiprocessor of compute capability 9.0 has.
    assert shared <= 227 * 1024
    # Four products of 16 columns for each of two stages and four kinds of tiles, and as many for a surplus.
    products = re.findall(r"wgmma\.mma_async\S*m64n(\d+)k16\S*", ptx)
    assert sorted(products, key=int) == ["32"] * 8 + ["64"] * 8 + ["128"] * 8 + ["256"] * 16
    # Sixteen for each depth: 128 rows of a group by 128 threads, eight weights each; no other way through memory.
    wide = re.findall(r"st\.shared\.v4\.b32", ptx)
    assert len(wide) == 4 * 16 and "ld.local" not in ptx
    # Two bytes of a result each, sixteen at once: 128 rows of a tile's tokens by 256 threads.
    results = re.findall(r"st\.global\S*\.v4\.b32", ptx)
    assert len(results) == (288 + 256 + 128 + 64) * 128 // (256 * 8)
    assert not re.findall(r"st\.global\S*\.b16", ptx)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("sections", "width", "shares"),
    [
        ((128,), 128, (1.0,)), ((129,), 1000, (0, 0, 1.0)), ((1000,), 4096, (0.4, 0.3, 0.2, 0.1)),
        ((4096,), 14336, (0.5, 0.5)), ((16, 200), 1032, (0.6, 0.4)), ((144, 256, 130), 640, (0.4, 0.3, 0.2, 0.1)),
        ((4096, 1024, 1024), 4096, (0.25, 0.25, 0.25, 0.25)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("tokens", [49, 300, 512, 2048])
def test_prompts_on_a_gpu(sections: tuple[int, ...], width: int, shares: tuple[float, ...], tokens: int) -> None:
    x = torch.randn(tokens, width, device="cuda").bfloat16()
    if not prompt_product.takes(x):
        pytest.skip("this card takes dense weights")
    packed = random_packed(sections, width, slices=max(2, len(shares)))
    depths = (torch.multinomial(torch.tensor(shares), tokens * len(sections), replacement=True) + 1).to(torch.uint8)
    depths = depths.view(len(sections), tokens).cuda()
    # One section has a single depth: where its tiles are whole, its tokens are not put in order.
    depths[1:2] = len(shares)
    rows = packed.out_features
    gain, shift = torch.rand(4, rows, device="cuda") + 0.5, torch.randn(4, rows, device="cuda")
    bias, truth = torch.randn(rows, device="cuda"), exact(packed, x, depths)
    of_rows = torch.repeat_interleave(depths.long() - 1, torch.tensor(sections, device="cuda"), dim=0).t()
    found = torch.cat(prompt_product.multiply(packed, x, depths), dim=1)
    readout = torch.cat(prompt_product.multiply(packed, x, depths, bias, shift, gain), dim=1)
    expected = truth * gain.gather(0, of_rows) + bias + shift.gather(0, of_rows)
    for y, right in ((found, truth), (readout, expected)):
        for own, own_right in zip(y.split(sections, dim=1), right.split(sections, dim=1), strict=True):
            assert relative_error(own, own_right) < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_product_for_prompts_is_taken_where_it_is_written_for_the_card() -> None:
    x = torch.randn(512, 256, device="cuda").bfloat16()
    packed = random_packed((128,), 256)
    assert gpu.whole_prompt(packed, x) == prompt_product.takes(x)
    assert not gpu.whole_prompt(packed, x[:32])
