"""Trains the byte-level BPE tokenizer of the bundled model and encodes shards to token files.

It knows text and token ids, nothing about the model.

    python -m mobiquant_core.demo_model.tokenizer train  --out FOLDER
    python -m mobiquant_core.demo_model.tokenizer encode --tokenizer FOLDER --out FOLDER [--shards NAME ...]
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mobiquant_core.demo_model.corpus import (
    DOCUMENT_END,
    TRAINING_SHARDS,
    data_folder,
    split_documents,
)

BOS = "<|bos|>"
VOCABULARY = 8192
# Words with their leading space, numbers in runs of up to two digits, punctuation, line ends.
WORD_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
CHARACTERS_PER_SHARD = 30_000_000


def train_tokenizer(documents: Iterator[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts BOS in front of every sequence."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, DOCUMENT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=DOCUMENT_END, model_max_length=2048
    )


def encode_shard(tokenizer: PreTrainedTokenizerFast, path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """(training ids, held-out ids, held-out bytes) of one shard; each document ends with the end token."""
    end_id = tokenizer.eos_token_id
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    held_out_bytes = 0
    documents = split_documents(path)
    while batch := list(itertools.islice(documents, 512)):
        texts = [text for text, _ in batch]
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (text, held_out), encoding in zip(batch, encodings, strict=True):
            parts[held_out].append(np.array([*encoding.ids, end_id], dtype=np.uint16))
            held_out_bytes += len(text.encode("utf-8")) if held_out else 0
    empty = [np.zeros(0, dtype=np.uint16)]
    return np.concatenate(parts[False] or empty), np.concatenate(parts[True] or empty), held_out_bytes


def _training_text() -> Iterator[str]:
    """The head of every shard, training documents only: enough text for a stable vocabulary."""
    for name in TRAINING_SHARDS:
        characters = 0
        for document, held_out in split_documents(data_folder() / name):
            if characters > CHARACTERS_PER_SHARD:
                break
            if not held_out:
                characters += len(document)
                yield document


def _train(out: Path) -> None:
    tokenizer = train_tokenizer(_training_text())
    tokenizer.save_pretrained(out)
    sys.stderr.write(f"tokenizer of {len(tokenizer)} entries in {out}\n")


def _encode(tokenizer_folder: Path, out: Path, shards: list[str]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    out.mkdir(parents=True, exist_ok=True)
    for name in shards:
        training, held_out, held_out_bytes = encode_shard(tokenizer, data_folder() / name)
        stem = name.split(".")[0]
        np.save(out / f"{stem}.train.npy", training)
        np.save(out / f"{stem}.held-out-{held_out_bytes}.npy", held_out)
        sys.stderr.write(f"{stem}: {len(training):,} training and {len(held_out):,} held-out tokens\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "encode"))
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", nargs="+", default=list(TRAINING_SHARDS))
    arguments = parser.parse_args()
    if arguments.action == "train":
        _train(arguments.out)
    else:
        _encode(arguments.tokenizer, arguments.out, arguments.shards)


if __name__ == "__main__":
    main()
