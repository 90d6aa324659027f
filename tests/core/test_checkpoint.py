"""Checkpoints: what is saved comes back exactly; a fault leaves the earlier one; damage is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mobiquant_core import atomic
from mobiquant_core.checkpoint import MANIFEST, check_values, save_checkpoint, verify_checkpoint
from mobiquant_core.convert import quantize_model
from mobiquant_core.errors import BudgetError, CheckpointError
from mobiquant_core.hf import budget, load_model, quantized_of
from mobiquant_core.model_folder import inspect_folder

IDS = torch.tensor([[0, 5, 900, 17, 4000]])


@pytest.fixture(scope="module")
def quantized(make_tiny_model):
    return quantize_model(make_tiny_model())


@pytest.fixture
def saved(quantized, tokenizer, tmp_path):
    save_checkpoint(quantized, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_reopening_gives_the_same_logits(quantized, saved):
    verify_checkpoint(saved)
    model = load_model(inspect_folder(saved), torch.float32, torch.device("cpu"))
    check_values(quantized_of(model))
    assert torch.equal(model(IDS).logits, quantized.model(IDS).logits)


def test_transformers_opens_it_in_a_fresh_process_after_one_import(saved):
    code = (
        "import mobiquant_core; from transformers import AutoModelForCausalLM; "
        f"m = AutoModelForCausalLM.from_pretrained({str(saved)!r}); "
        "print(type(m.model.layers[0].mlp.down_proj).__name__, m.mobiquant.linears[0].weight_step.dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MobiLinear", "torch.float16"]


def test_transformers_own_generation_runs_under_a_budget(saved):
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    with budget(model, 2.5, "uniform"):
        first = model.generate(IDS, max_new_tokens=4, do_sample=False)
    with budget(model, 2.5, "uniform"):
        assert torch.equal(first, model.generate(IDS, max_new_tokens=4, do_sample=False))
    with pytest.raises(BudgetError), budget(model, float("nan"), "uniform"):
        pass


def test_a_full_disk_at_any_write_keeps_the_earlier_checkpoint(quantized, tokenizer, saved, monkeypatch):
    before = _snapshot(saved)
    calls = {"made": 0, "fail_at": 0}

    def counted(function):
        def run(*arguments, **options):
            calls["made"] += 1
            if calls["made"] == calls["fail_at"]:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(atomic, "write_synced", counted(atomic.write_synced))
    monkeypatch.setattr(atomic, "sync_path", counted(atomic.sync_path))
    monkeypatch.setattr(tokenizer, "save_pretrained", counted(tokenizer.save_pretrained))
    save_checkpoint(quantized, tokenizer, saved)
    # The last sync comes after the exchange: by then the new checkpoint is complete and in place.
    total = calls["made"] - 1
    assert total > 6
    for fail_at in range(1, total + 1):
        calls.update(made=0, fail_at=fail_at)
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(quantized, tokenizer, saved)
        assert _snapshot(saved) == before
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_killed_save_leaves_a_whole_checkpoint_and_the_next_one_cleans_up(quantized, tokenizer, saved):
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from mobiquant_core import atomic; from pathlib import Path; import os\n"
        "target = Path(sys.argv[1])\n"
        "while True:\n"
        "    with atomic.new_folder(target) as folder:\n"
        "        for path in target.iterdir(): atomic.write_synced(folder / path.name, path.read_bytes())\n"
        "    os.write(1, b'.')\n"
    )
    for delay in (0.0, 0.003, 0.011, 0.02, 0.05):
        child = subprocess.Popen([sys.executable, "-c", code, str(saved)], stdout=subprocess.PIPE)
        child.stdout.read(1)
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        verify_checkpoint(saved)
    save_checkpoint(quantized, tokenizer, saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_truncated_flipped_and_missing_files_are_refused(saved, name):
    path = saved / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            verify_checkpoint(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        verify_checkpoint(saved)


def test_an_extra_file_and_a_manifest_that_points_outside_are_refused(saved):
    (saved / "model-2.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not part"):
        verify_checkpoint(saved)
    (saved / "model-2.safetensors").unlink()
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        verify_checkpoint(saved)


def test_steps_that_are_no_numbers_are_refused(make_tiny_model):
    broken = quantize_model(make_tiny_model())
    broken.linears[3].weight_step.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="o_proj"):
        check_values(broken)


def test_a_foreign_folder_is_never_replaced(quantized, tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="no MoBiQuant checkpoint"):
        save_checkpoint(quantized, tokenizer, tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        save_checkpoint(quantized, tokenizer, tmp_path / "thesis.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_one_clear_line(quantized, tokenizer, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(quantized, tokenizer, tmp_path / "model")
