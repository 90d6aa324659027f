"""The command line as a person meets it: one JSON object last, exit status 0, 2 or 1, never a traceback."""

import json
import subprocess
import sys

import pytest

from mobiquant_core import __main__, loading
from mobiquant_core.trace_file import load_trace

TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(scope="module")
def folder(make_tiny_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    make_tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch, folder):
    monkeypatch.setattr(loading, "CALIBRATION_WINDOWS", 2)
    monkeypatch.setattr(loading, "CALIBRATION_WINDOW", 64)
    monkeypatch.setenv("MOBIQUANT_CACHE", str(folder / "cache"))


def _run(capsys, *arguments):
    status = __main__.main([str(argument) for argument in arguments])
    written = capsys.readouterr()
    return status, json.loads(written.out.splitlines()[-1]), written.err


def test_generate(capsys, folder):
    asked = ("generate", folder / "model", "--prompt", "Hello", "--bits", 3, "--max-new-tokens", 6, "--json")
    status, data, _ = _run(capsys, *asked)
    assert status == 0 and data["tokens"] == 6 and data["requested_bits"] == 3
    assert len(data["token_bits"]) == 6 + data["prompt_tokens"]
    assert _run(capsys, *asked)[1]["text"] == data["text"]


def test_evaluate_trace_migrate_and_info(capsys, folder):
    common = (folder / "model", "--text", folder / "text.txt", "--json")
    status, data, _ = _run(
        capsys,
        "evaluate",
        *common,
        "--bits",
        2.5,
        8,
        "--policy",
        "router",
        "uniform",
        "--max-tokens",
        200,
        "--window",
        64,
    )
    assert status == 0 and len(data["rows"]) == 4 and data["reference_perplexity"] > 1
    assert data["rows"][0].keys() == {"policy", "bits", "measured_bits", "perplexity", "ratio", "tokens"}
    out = folder / "run.json"
    status, data, _ = _run(capsys, "trace", *common, "--bits", 4, "--out", out, "--errors", "--reference")
    assert status == 0 and load_trace(out).tokens == data["tokens"]
    assert load_trace(out).columns.errors is not None
    status, data, _ = _run(capsys, "migrate", *common, "--max-tokens", 60, "--out", folder / "m.json")
    assert status == 0 and len(data["linears"]) == 14 and 0.05 < data["chance_overlap"] < 0.15
    assert json.loads((folder / "m.json").read_text()) == data
    status, data, _ = _run(capsys, "info", folder / "model", "--json")
    assert status == 0 and data["bytes_read_per_token"] == sorted(data["bytes_read_per_token"])


def test_quantize_writes_what_generate_opens(capsys, folder):
    out = folder / "sliced"
    status, data, _ = _run(
        capsys, "quantize", folder / "model", "--out", out, "--text", folder / "text.txt", "--router", "none",
        "--calibrate", "none", "--json",
    )  # fmt: skip
    assert status == 0 and data["linears"] == 14
    status, data, _ = _run(
        capsys, "generate", out, "--prompt", "Hi", "--bits", 2.5, "--policy", "uniform", "--max-new-tokens", 2, "--json"
    )
    assert status == 0 and data["tokens"] == 2
    status, data, _ = _run(capsys, "quantize", out, "--out", folder / "twice", "--json")
    assert status == 2 and "already" in data["error"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("generate", "MODEL", "--prompt", "x", "--bits", "nan"), "not a number"),
        (("generate", "MODEL", "--prompt", "x", "--bits", "9"), "outside 2 to 8"),
        (("generate", "MODEL", "--prompt", " ", "--bits", "3"), "empty"),
        (("generate", "/no/model", "--prompt", "x", "--bits", "3"), "not found"),
        (("evaluate", "MODEL", "--text", "/no/text", "--bits", "3"), "could not be read"),
        (("trace", "MODEL", "--prompt", "x", "--bits", "3", "--out", "/dev/null/run.json"), "could not be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, folder, arguments, part):
    status, data, errors = _run(capsys, *(folder / "model" if a == "MODEL" else a for a in arguments), "--json")
    assert status == 2 and part in data["error"]
    assert "Traceback" not in errors and part in errors.splitlines()[-1]


def test_a_fault_of_ours_is_status_1(capsys, monkeypatch, folder):
    monkeypatch.setattr(loading, "load_tokenizer", lambda _: 1 / 0)
    status, data, _ = _run(capsys, "info", folder / "model", "--json")
    assert status == 1 and "ZeroDivisionError" in data["error"]


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "mobiquant_core", "generate", "/no/model", "--prompt", "x", "--bits", "3", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "not found" in json.loads(done.stdout)["error"] and "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "-m", "mobiquant_core", "sing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
