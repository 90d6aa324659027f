"""The bundled model's recipe: documents, held-out rule, windows, tokenizer, and what the files say of themselves."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from mobiquant_core.demo_model import corpus, train
from mobiquant_core.demo_model.tokenizer import encode_shard, train_tokenizer
from mobiquant_core.errors import MobiQuantError

ASSETS = Path(__file__).parents[2] / "assets" / "demo_model"


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "tinystories-sample.txt.xz"
    with lzma.open(path, "wt", encoding="utf-8") as text:
        text.writelines(f"Story {n} is here.\nIt ends.\n<|endoftext|>\n" for n in range(120))
    return path


def test_documents_are_split_at_the_separator_line(shard):
    documents = list(corpus.read_documents(shard))
    assert len(documents) == 120
    assert documents[7] == "Story 7 is here.\nIt ends.\n"


def test_the_held_out_rule_depends_on_the_position_alone(shard):
    held_out = [text for text, kept in corpus.split_documents(shard) if kept]
    assert held_out == ["Story 49 is here.\nIt ends.\n", "Story 99 is here.\nIt ends.\n"]


def test_a_missing_data_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBIQUANT_DATA", str(tmp_path / "absent"))
    with pytest.raises(MobiQuantError, match="absent"):
        corpus.data_folder()


def test_encoded_documents_end_with_the_end_token(shard):
    tokenizer = train_tokenizer(iter(["Story of a tale. It ends."] * 10), vocabulary=300)
    training, held_out, held_out_bytes = encode_shard(tokenizer, shard)
    assert (training == train.END_ID).sum() == 118
    assert (held_out == train.END_ID).sum() == 2
    assert held_out_bytes == len("Story 49 is here.\nIt ends.\n") * 2


def test_every_window_starts_with_bos_and_a_pass_repeats_no_token():
    ids = np.arange(2, 2 + 511 * 9, dtype=np.uint16)
    windows = train.Windows(ids, seed=1, device=torch.device("cpu"))
    batch = windows.next(7)
    assert (batch[:, 0] == train.BOS_ID).all()
    assert batch[:, 1:].unique().numel() == 7 * 511


def test_the_learning_rate_rises_stays_and_ends_at_zero():
    rates = [train.rate_at(progress, 0.02) for progress in (0.0, 0.01, 0.2, 0.4, 0.7, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_the_bundled_tokenizer_puts_bos_first_and_loses_no_byte(tokenizer):
    text = "Grüße, 1998!\n\tTab and 🙂 emoji."
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == train.BOS_ID
    assert tokenizer.decode(ids[1:]) == text


def test_the_bundled_weights_are_whole_and_within_their_limits():
    index = json.loads((ASSETS / "model.safetensors.index.json").read_text())
    sizes = [(ASSETS / name).stat().st_size for name in set(index["weight_map"].values())]
    assert max(sizes) < 30e6
    assert sum(sizes) < 80e6


def test_the_training_log_shows_the_promised_loss_on_held_out_articles():
    log = json.loads((ASSETS / "training_log.json").read_text())["log"]
    losses = [entry["held_out"]["wikipedia"]["loss"] for entry in log]
    assert losses == sorted(losses, reverse=True), "held-out loss falls to the end: no over-fitting"
    assert log[-1]["held_out"]["wikipedia"]["bits_per_byte"] <= 1.20
