"""A model whose linears multiply by kernels gives what the definition gives."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.convert import QuantizedModel, quantize_model
from mobiquant_core.kernels import dispatch, gpu
from mobiquant_core.linear import MobiLinear
from mobiquant_core.planes import site_planes, use_kernels
from mobiquant_core.routing import FixedDepth


@pytest.fixture
def quantized(device: str) -> QuantizedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=1,
        intermediate_size=96,
        vocab_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    return quantize_model(LlamaForCausalLM(config).eval().requires_grad_(False).to(device), MobiQuantConfig())


def test_mixed_depths_through_planes(quantized: QuantizedModel, device: str) -> None:
    site = quantized.sites[2]
    linear = site.linears[1]
    linear.gain = torch.nn.Parameter(torch.rand(4, 96, device=device) + 0.5, requires_grad=False)
    linear.shift = torch.nn.Parameter(torch.randn(4, 96, device=device), requires_grad=False)
    x = torch.randn(5, 64, device=device)
    depths = torch.tensor([1, 4, 2, 3, 1], dtype=torch.uint8, device=device)
    codes, before = linear.sliced, linear.at_depths(x, depths)
    site_planes(site)
    torch.testing.assert_close(linear.at_depths(x, depths), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(linear.sliced.codes, codes.codes) and torch.equal(linear.sliced.step, codes.step)
    assert linear.weight.device.type == "cpu"


def test_dense_weight_of_one_depth(quantized: QuantizedModel, device: str) -> None:
    linear = quantized.sites[3].linears[0]
    expected = linear.dense(2)
    site_planes(quantized.sites[3])
    torch.testing.assert_close(linear.dense(2, torch.float16).float(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(linear.dense(2), expected)


def test_linears_of_a_site_share_their_planes(quantized: QuantizedModel) -> None:
    site = quantized.sites[0]
    planes = site_planes(site)
    assert site_planes(site) is planes and planes.sections == (64, 32, 32)
    first = planes.planes.untyped_storage().data_ptr()
    assert all(linear.packed.planes.untyped_storage().data_ptr() == first for linear in site.linears)


def test_more_tokens_than_a_kernel_takes_run_in_pieces(quantized: QuantizedModel, device: str) -> None:
    site = quantized.sites[1]
    linear = site.linears[0]
    x = torch.randn(20, 64, device=device)
    depths = torch.randint(1, 5, (20,), dtype=torch.uint8, device=device)
    before = linear.at_depths(x, depths)
    torch.testing.assert_close(gpu.mixed_linear(site_planes(site), x, depths), before, rtol=1e-4, atol=1e-4)


def test_a_cpu_keeps_the_reference_path_and_says_why(tiny_model: torch.nn.Module) -> None:
    quantized = quantize_model(tiny_model, MobiQuantConfig())
    assert "no CUDA device" in use_kernels(quantized)
    linear = quantized.linears[0]
    assert isinstance(linear, MobiLinear) and linear.packed is None
    with FixedDepth(2), torch.no_grad():
        quantized.model(torch.tensor([[1, 2]]))


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "compute capability 7.5"), ((8, 0), ""), ((8, 9), ""), ((12, 0), "")]
)
def test_old_cards_are_named(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some card")
    _forget_devices()
    if expected:
        with pytest.warns(UserWarning, match="reference path: Some card"):
            assert expected in dispatch.why_no_kernels(torch.device("cuda"), MobiQuantConfig())
    else:
        assert dispatch.why_no_kernels(torch.device("cuda"), MobiQuantConfig()) == ""
    _forget_devices()


def _forget_devices() -> None:
    for answer in (dispatch.why_no_kernels, dispatch.why_no_triton):
        answer.cache_clear()
