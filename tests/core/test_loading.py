"""Opening a model by name: every way to fail is one clear line, and nothing is read that need not be."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mobiquant_core import hub, loading
from mobiquant_core.calibration import FORMAT_VERSION, load_calibration, save_calibration
from mobiquant_core.checkpoint import save_checkpoint
from mobiquant_core.errors import CheckpointError, ConfigError, PromptError, UnsupportedModelError
from mobiquant_core.hf import CALIBRATION_FILE
from mobiquant_core.loading import load_engine


@pytest.fixture(scope="module")
def plain(make_tiny_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "model"
    make_tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


@pytest.fixture(autouse=True, scope="module")
def quick_calibration(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "CALIBRATION_WINDOWS", 2)
        patch.setattr(loading, "CALIBRATION_WINDOW", 64)
        patch.setenv("MOBIQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def calibrated(plain, quick_calibration, tmp_path_factory):
    """The kept calibration of the plain model; whoever damages it takes a copy."""
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBIQUANT_CACHE", str(folder))
        load_engine(str(plain), device="cpu")
    [kept] = folder.iterdir()
    return kept


def _edit(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_plain_model_is_calibrated_once_and_then_served_from_the_cache(plain, monkeypatch):
    stages = []
    engine = load_engine(str(plain), device="cpu", progress=lambda text, share: stages.append((text, share)))
    assert stages[-1] == ("Ready", 1.0) and all(0 <= share <= 1 for _, share in stages)
    first = [step.columns.token_ids for step in engine.generate([0, 5], budget=3, max_new_tokens=4)]
    monkeypatch.setattr(loading, "calibrate", lambda *_, **__: pytest.fail("calibrated again"))
    again = load_engine(str(plain), device="cpu")
    assert [step.columns.token_ids for step in again.generate([0, 5], budget=3, max_new_tokens=4)] == first
    assert again.reference is not None


def _damaged(path, reason):
    if reason == "bytes":
        path.write_bytes(path.read_bytes()[:200])
        return
    calibration = load_calibration(path)
    if reason == "router":
        calibration.routers = {name: value[..., :-1] for name, value in calibration.routers.items()}
    elif reason == "names":
        calibration.routers = {}
    else:
        calibration.score_quantiles = {name: value[:-1] for name, value in calibration.score_quantiles.items()}
    save_calibration(calibration, path)


@pytest.mark.parametrize(
    ("reason", "keep_reference"), [("bytes", True), ("router", False), ("names", True), ("quantiles", False)]
)
def test_a_kept_calibration_that_does_not_fit_is_made_again(
    plain, calibrated, monkeypatch, tmp_path, reason, keep_reference
):
    monkeypatch.setenv("MOBIQUANT_CACHE", str(tmp_path))
    kept = Path(shutil.copy(calibrated, tmp_path))
    assert f"-v{FORMAT_VERSION}-" in kept.name
    _damaged(kept, reason)
    stages = []
    engine = load_engine(
        str(plain), device="cpu", keep_reference=keep_reference, progress=lambda text, _: stages.append(text)
    )
    assert len([stage for stage in stages if "calibrating again" in stage]) == 1
    assert len(list(engine.generate([0, 5], budget=3, max_new_tokens=2))) > 1
    assert load_calibration(kept).router_kind == "sketch"


def test_a_model_s_own_calibration_that_does_not_fit_is_an_error(copied, calibrated):
    shutil.copy(calibrated, copied / CALIBRATION_FILE)
    _damaged(copied / CALIBRATION_FILE, "names")
    with pytest.raises(CheckpointError):
        load_engine(str(copied), device="cpu")


def test_the_reference_shares_its_tensors_with_the_quantized_copy(plain):
    engine = load_engine(str(plain), device="cpu")
    assert engine.reference.model.embed_tokens.weight is engine.quantized.model.model.embed_tokens.weight
    assert (
        engine.quantized.originals[0].data_ptr() == engine.reference.model.layers[0].self_attn.q_proj.weight.data_ptr()
    )


def test_a_checkpoint_is_opened_with_its_calibration(plain, tmp_path):
    engine = load_engine(str(plain), device="cpu", keep_reference=False)
    save_checkpoint(engine.quantized, engine.tokenizer, tmp_path / "saved")
    again = load_engine(str(tmp_path / "saved"), device="cpu")
    runs = [list(one.generate([0, 5, 9], budget=3.2, max_new_tokens=6, seed=3)) for one in (engine, again)]
    assert [step.columns.token_ids for step in runs[0]] == [step.columns.token_ids for step in runs[1]]
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        load_engine(str(tmp_path / "saved"), device="cpu")


@pytest.mark.parametrize(
    "name", ["", "  ", "/no/such/folder", "../up/and/away", "a\0b", "https://example.org/x", "x" * 500]
)
def test_names_that_lead_nowhere_are_one_clear_line(name):
    with pytest.raises(UnsupportedModelError) as caught:
        load_engine(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_hub_id_offline_says_so_at_once(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(UnsupportedModelError, match="cannot be reached"):
        load_engine("nobody/no-such-model")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        load_engine(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="model_type"):
        load_engine(str(tmp_path))


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "t5", "../llama", ""])
def test_an_unsupported_architecture_is_refused_before_weights_are_read(copied, model_type):
    for file in copied.glob("*.safetensors"):
        file.unlink()
    _edit(copied, model_type=model_type)
    with pytest.raises(UnsupportedModelError, match=r"Supported: llama"):
        load_engine(str(copied))


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 5000, '{"a":' * 9 + "1" + "}" * 9, " " * 300_000]
)
def test_a_damaged_config_is_refused(copied, content):
    (copied / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_engine(str(copied))


def test_truncated_padded_and_foreign_weights_are_refused(copied):
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    size = len(whole)
    for damaged in (
        b"",
        whole[:7],
        whole[:100],
        whole[: size // 2],
        whole[:-1],
        whole + b"x",
        b"\xff" * 64,
        b"PK" + whole,
    ):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_engine(str(copied))
    file.unlink()
    (copied / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_engine(str(copied))


def test_weights_that_do_not_fit_the_config_are_refused(copied):
    _edit(copied, num_hidden_layers=3, layer_types=None)
    with pytest.raises(CheckpointError, match="missing keys"):
        load_engine(str(copied))


def test_other_quantizations_and_code_are_not_followed(copied):
    _edit(copied, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModelError, match="gptq"):
        load_engine(str(copied))
    (copied / "evil.py").write_text("raise SystemExit('ran')")
    _edit(
        copied,
        quantization_config=None,
        auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
        _attn_implementation_internal="somebody/kernel",
    )
    assert load_engine(str(copied), device="cpu").reference is not None


def test_a_full_disk_keeps_the_engine_and_drops_the_cache(plain, monkeypatch, tmp_path):
    monkeypatch.setenv("MOBIQUANT_CACHE", str(tmp_path / "other"))

    def full(*_):
        raise CheckpointError("No space left")

    monkeypatch.setattr(loading, "save_calibration", full)
    stages = []
    load_engine(str(plain), device="cpu", progress=lambda text, _: stages.append(text))
    assert any("could not be kept" in stage for stage in stages)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "nonsense"])
def test_unknown_devices_are_refused(device):
    with pytest.raises(ConfigError):
        load_engine("demo", device=device)


def _device_with(monkeypatch, free: float) -> SimpleNamespace:
    """A model of a billion weights on a GPU that has `free` gigabytes left."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * 1e9), int(24e9)))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    weight = torch.empty(1_000_000_000, device="meta")
    return SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, parameters=lambda: iter([weight]))


def test_full_precision_is_kept_where_a_device_has_room_for_it(monkeypatch):
    plain = SimpleNamespace(input_scales=None)
    assert loading._has_room_for_both(_device_with(monkeypatch, 3.5), plain)
    with pytest.warns(UserWarning, match=r"3\.2 GB are needed, 3\.0 GB are free"):
        assert not loading._has_room_for_both(_device_with(monkeypatch, 3.0), plain)
    # Scales that are folded into the weights leave nothing that the two could share.
    with pytest.warns(UserWarning, match=r"5\.2 GB are needed"):
        assert not loading._has_room_for_both(_device_with(monkeypatch, 3.5), SimpleNamespace(input_scales={"a": 1}))


def test_without_room_a_model_is_served_without_its_full_precision(plain, monkeypatch):
    monkeypatch.setattr(loading, "_has_room_for_both", lambda *_: False)
    engine = load_engine(str(plain), device="cpu")
    assert engine.reference is None and list(engine.generate([0, 5], budget=3, max_new_tokens=2))
    with pytest.raises(PromptError, match="room for both"):
        engine.reference_model()


@pytest.mark.parametrize("stage", ["load_model", "calibrate", "quantize_model"])
def test_memory_that_runs_out_is_one_line_with_a_next_step(plain, monkeypatch, tmp_path, stage):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setenv("MOBIQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, stage, out_of_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24e9))
    with pytest.raises(UnsupportedModelError, match=r"does not fit on cpu, which has 24 GB.*--device cpu"):
        load_engine(str(plain), device="cpu")
