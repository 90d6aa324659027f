"""Token files for the calibration study: mixed calibration text, test text by domain, and task items.

It reads the data folder and the bundled tokenizer; the study itself reads only what this writes.

    python -m benchmarks.study_data --tokenizer assets/demo_model --out .carry/study
"""

import argparse
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from mobiquant_core.calibrate.program_text import program_text, sources
from mobiquant_core.demo_model.corpus import TRAINING_SHARDS, data_folder, split_documents

CALIBRATION_TOKENS = {"wikipedia": 2_300_000, "books": 900_000, "tinystories": 400_000}
HELD_OUT_TOKENS = 60_000
SYNTHETIC_TOKENS = 250_000
CODE_TOKENS = 120_000
CODE_FILES = ("argparse", "ast", "calendar", "dataclasses", "difflib", "enum", "fractions", "heapq", "random")
"""Program text of the tests, none of it calibration's; the headers are in a language that calibration never sees."""


def tokens_of(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], limit: int) -> np.ndarray:
    """uint16 ids of some documents, each closed by the end token, up to `limit`."""
    parts, total = [], 0
    for text in texts:
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        parts.append(np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16))
        total += len(parts[-1])
        if total >= limit:
            break
    return np.concatenate(parts)[:limit]


def documents(kind: str, held_out: bool, skip_characters: int = 400_000) -> Iterable[str]:
    """Documents of one kind, a slice of every shard; a book gives its first `skip_characters` only."""
    shards = [name for name in TRAINING_SHARDS if name.startswith(kind)]
    for name in shards:
        for text, is_held_out in split_documents(data_folder() / name):
            if is_held_out == held_out:
                yield text[:skip_characters]


def synthetic(words: list[str], seed: int = 0) -> Iterable[str]:
    """Tables, records, odd capitals and many numbers from ordinary words: text of forms that no test text has."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    while True:
        some = [draw.choice(words) for _ in range(60)]
        record = {word: [draw.randint(0, 9999), draw.random()] for word in some[:20]}
        yield json.dumps(record, indent=draw.choice([1, 2, 4]))
        yield "\n".join(f"{word},{draw.randint(0, 99)},{draw.uniform(0, 9):.3f}" for word in some)
        yield "\n".join(f"<{a.lower()} id={draw.randint(1, 99)}>{b}</{a.lower()}>" for a, b in pairwise(some))
        yield " ".join(draw.choice([a.upper(), a.title(), a.swapcase(), f"[{a}]", f"_{a}_"]) for a in some)
        yield "; ".join(f"{a}({b}, {draw.randint(0, 9)}) = {draw.choice(some)}" for a, b in pairwise(some))


def speech(texts: Iterable[str]) -> Iterable[str]:
    """The paragraphs of books that are spoken: text unlike an encyclopaedia."""
    for text in texts:
        lines = [line for line in text.splitlines() if line.strip().startswith(('"', "\u201c"))]
        yield "\n".join(lines)


def write_tokens(tokenizer: PreTrainedTokenizerFast, out: Path) -> dict[str, int]:
    data = data_folder()
    sets: dict[str, np.ndarray] = {}
    for kind, count in CALIBRATION_TOKENS.items():
        share = 60_000 if kind == "books" else 400_000
        sets[f"calibration-{kind}"] = tokens_of(tokenizer, documents(kind, False, share), count)
        sets[f"test-{kind}"] = tokens_of(tokenizer, documents(kind, True, 60_000), HELD_OUT_TOKENS)
    sets["calibration-wikitext2"] = tokens_of(tokenizer, [(data / "wikitext2-valid.tokens.txt").read_text()], 10**7)
    words = re.findall("[A-Za-z]{3,}", next(iter(documents("books", False))))
    sets["calibration-synthetic"] = tokens_of(tokenizer, synthetic(words), SYNTHETIC_TOKENS)
    sets["test-dialogue"] = tokens_of(tokenizer, speech(documents("books", True)), HELD_OUT_TOKENS)
    library, headers = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "include"))
    sets["other-code"] = tokens_of(tokenizer, program_text(), CODE_TOKENS)
    sets["test-code"] = tokens_of(tokenizer, sources(library / f"{name}.py" for name in CODE_FILES), HELD_OUT_TOKENS)
    sets["test-headers"] = tokens_of(tokenizer, sources(sorted(headers.glob("*.h"))), HELD_OUT_TOKENS)
    text = (data / "wikitext2-test.raw.txt").read_text(encoding="utf-8")
    sets["test-wikitext2"] = tokens_of(tokenizer, [text], 10**7)[:-1]
    np.savez_compressed(out / "tokens.npz", **sets)  # pyright: ignore[reportArgumentType]
    return {name: len(ids) for name, ids in sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
    sys.stdout.write(json.dumps(write_tokens(tokenizer, arguments.out)) + "\n")


if __name__ == "__main__":
    main()
