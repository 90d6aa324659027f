"""The calibration file: a round trip, and strict reading of what is damaged."""

import pytest
import torch
from safetensors.torch import save_file

from mobiquant_core.calibration import Calibration, load_calibration, save_calibration
from mobiquant_core.config import MobiQuantConfig
from mobiquant_core.errors import CheckpointError


@pytest.fixture
def calibration():
    name, site = "layers.0.self_attn.q_proj", "layers.0.attention_input"
    return Calibration(
        MobiQuantConfig((4, 4), 64),
        router_kind="sketch",
        ranges={name: (-torch.ones(2, 3).half(), torch.ones(2, 3).half())},
        shifts={name: torch.randn(2, 2)},
        gains={name: torch.rand(2, 2)},
        input_scales={site: torch.rand(8)},
        routers={f"{site}.energy": torch.rand(3, 8).half(), f"{site}.offset": torch.rand(3).half()},
        layer_scores=torch.randn(7, 1),
        sensitivity=torch.rand(7),
        norm_quantiles=torch.rand(7, 257),
        score_quantiles={"router": torch.randn(7, 1, 257)},
        spent_bits={"router": {"asked": [5.0], "spent": [5.1]}},
        provenance={"effort": "fast"},
    )


def test_everything_comes_back(calibration, tmp_path):
    path = tmp_path / "calibration.safetensors"
    save_calibration(calibration, path)
    again = load_calibration(path)
    for field in ("config", "router_kind", "spent_bits", "provenance"):
        assert getattr(again, field) == getattr(calibration, field)
    for field in ("layer_scores", "sensitivity", "norm_quantiles"):
        assert torch.equal(getattr(again, field), getattr(calibration, field))
    for field in ("shifts", "gains", "input_scales", "routers", "score_quantiles"):
        expected = getattr(calibration, field)
        assert all(torch.equal(value, expected[name]) for name, value in getattr(again, field).items())
    assert again.ranges.keys() == calibration.ranges.keys()
    assert again.router_state("layers.0.attention_input").keys() == {"energy", "offset"}
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.safetensors"]


def test_a_bare_calibration_comes_back(tmp_path):
    save_calibration(Calibration(MobiQuantConfig()), tmp_path / "c")
    again = load_calibration(tmp_path / "c")
    assert again.ranges is None and again.layer_scores is None and again.routers == {}


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.99])
def test_a_cut_file_is_refused(calibration, tmp_path, keep):
    path = tmp_path / "c"
    save_calibration(calibration, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=str(path)):
        load_calibration(path)


@pytest.mark.parametrize("metadata", [None, {}, {"mobiquant_calibration": "[]"}, {"mobiquant_calibration": "{"}])
def test_foreign_files_are_refused(tmp_path, metadata):
    save_file({"x": torch.zeros(1)}, tmp_path / "c", metadata=metadata)
    with pytest.raises(CheckpointError):
        load_calibration(tmp_path / "c")


def test_numbers_that_are_none_are_refused(calibration, tmp_path):
    calibration.layer_scores[0] = float("nan")
    save_calibration(calibration, tmp_path / "c")
    with pytest.raises(CheckpointError, match="layer_scores"):
        load_calibration(tmp_path / "c")


def test_a_missing_file_and_an_unwritable_place_are_said_plainly(calibration, tmp_path):
    with pytest.raises(CheckpointError, match="no calibration"):
        load_calibration(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        save_calibration(calibration, tmp_path / "file" / "c")
