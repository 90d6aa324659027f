"""`bench` without a GPU: one clear line."""

import json

import pytest
import torch

from mobiquant_core.__main__ import main
from mobiquant_core.cli.bench import _table


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("subject", ["kernel", "decode", "prefill", "quantize"])
def test_without_a_gpu(subject: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", subject, "--json"]) == 2
    captured = capsys.readouterr()
    assert "no CUDA device" in json.loads(captured.out)["error"]
    assert captured.err.count("\n") == 1


def test_table_lines_up() -> None:
    header, first, second = _table([{"shape": "o", "time": 3.14159}, {"shape": "down"}])
    assert len(header) == len(first) == len(second)
    assert "3.142" in first and "down" in second
