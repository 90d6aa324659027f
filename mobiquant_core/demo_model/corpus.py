"""Reads the training text and splits it into training and held-out documents.

It knows the folder layout of the data and nothing about tokens or models.
"""

import lzma
import os
from collections.abc import Iterator
from pathlib import Path

from mobiquant_core.errors import MobiQuantError

DOCUMENT_END = "<|endoftext|>"
TRAINING_SHARDS = (
    "wikipedia-0.txt.xz",
    "wikipedia-1.txt.xz",
    "wikipedia-2.txt.xz",
    "wikipedia-3.txt.xz",
    "books-0.txt.xz",
    "tinystories-sample.txt.xz",
)
# Every n-th document of a shard is held out: about 1 % of the articles, 4 books, 46 stories.
HELD_OUT_EVERY = {"wikipedia": 100, "books": 90, "tinystories": 50}


def data_folder() -> Path:
    """The folder that holds the text: `MOBIQUANT_DATA`, else `../shared/data` beside the project."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("MOBIQUANT_DATA", default))
    if not folder.is_dir():
        raise MobiQuantError(f"No data folder at {folder}. Set MOBIQUANT_DATA to the folder with the text files.")
    return folder


def read_documents(path: Path) -> Iterator[str]:
    """Yields the documents of one compressed text file, without the separator line."""
    lines: list[str] = []
    with lzma.open(path, "rt", encoding="utf-8") as text:
        for line in text:
            if line.rstrip("\n") == DOCUMENT_END:
                yield "".join(lines)
                lines = []
            else:
                lines.append(line)
    if lines:
        yield "".join(lines)


def split_documents(path: Path) -> Iterator[tuple[str, bool]]:
    """Yields (document, held_out) for one shard; the rule depends on the position in the shard alone."""
    kind = path.name.split("-")[0]
    every = HELD_OUT_EVERY[kind]
    for index, document in enumerate(read_documents(path)):
        if document.strip():
            yield document, index % every == every - 1
