"""Statistics of a decode step against torch's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mobiquant_core.kernels.step_statistics import LogitStatistics, residual_statistics


@pytest.mark.parametrize("width", [3, 64, 1000])
def test_magnitudes_of_the_residual_stream(width: int, device: str) -> None:
    torch.manual_seed(width)
    residuals = torch.randn(3, width, device=device) * torch.tensor([[1.0], [1e4], [1e-6]], device=device)
    residuals[0, 1] = residuals[0, 0]  # a tie must not be counted twice
    residuals[1, 2] = 0
    out = torch.zeros(3, 4, device=device)
    residual_statistics(residuals, out)
    magnitude = residuals.abs()
    assert torch.equal(out[:, :3], magnitude.topk(3, dim=-1).values)
    assert torch.equal(out[:, 3], magnitude.median(dim=-1).values)


@pytest.mark.parametrize("vocabulary", [7, 48, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_likeliest_tokens_and_normalizer(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(vocabulary)
    logits = (torch.randperm(vocabulary, device=device) * (16 / vocabulary) - 4).to(dtype)
    statistics = LogitStatistics(vocabulary, 5, torch.device(device))
    copy, out = torch.zeros(vocabulary, device=device), torch.zeros(statistics.numbers, device=device)
    statistics.take(logits, copy, out)
    values, _ = logits.float().topk(5)
    assert torch.equal(copy, logits.float())
    torch.testing.assert_close(out[0], logits.float().logsumexp(0))
    assert torch.equal(out[1:6], values)
    ids = out[6:].long()
    assert torch.equal(logits.float()[ids], values) and len(set(ids.tolist())) == 5


def test_fewer_tokens_than_a_block_beside_a_full_one(device: str) -> None:
    logits = torch.arange(2049.0, device=device)
    statistics = LogitStatistics(2049, 5, torch.device(device))
    copy, out = torch.zeros(2049, device=device), torch.zeros(statistics.numbers, device=device)
    statistics.take(logits, copy, out)
    assert out[6:].tolist() == [2048, 2047, 2046, 2045, 2044]


_COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mobiquant_core.kernels import step_statistics as kernels

for capability in (80, 90):
    for kernel, pointers, number, constants, warps in (
        (kernels.residual_kernel, {"p_h": "*fp32", "p_out": "*fp32"}, "width", {"BLOCK": 8192}, 16),
        (kernels.logits_kernel, {"p_logits": "*bf16", "p_copy": "*fp32", "p_sums": "*fp32", "p_values": "*fp32",
                                 "p_ids": "*i32"}, "vocabulary", {"TOP": 5, "BLOCK": 2048}, 8),
        (kernels.merge_kernel, {"p_sums": "*fp32", "p_values": "*fp32", "p_ids": "*i32", "p_out": "*fp32"}, "parts",
         {"TOP": 5, "PARTS": 128, "CANDIDATES": 512}, 4),
    ):
        source = ASTSource(
            kernel, {**pointers, number: "i32", **dict.fromkeys(constants, "constexpr")},
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert ".local" not in made.asm["ptx"]
"""


def test_the_kernels_compile_for_old_and_new_cards(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "0", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
