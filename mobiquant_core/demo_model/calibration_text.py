"""Assembles the small mixed text that calibrates a model which brings no calibration of its own.

It takes training documents only, so nothing here meets the held-out or evaluation text.

    python -m mobiquant_core.demo_model.calibration_text --out assets/calibration/text.txt
"""

import argparse
from pathlib import Path

from mobiquant_core.demo_model.corpus import DOCUMENT_END, data_folder, split_documents

CHARACTERS = {"wikipedia-3.txt.xz": 110_000, "books-0.txt.xz": 60_000, "tinystories-sample.txt.xz": 30_000}
LONGEST_PIECE = 4_000
"""Of a long document only its middle is taken: variety matters more than length."""


def calibration_text() -> str:
    """Pieces of articles, books and stories in turn."""
    piles = [_pieces(shard, size) for shard, size in CHARACTERS.items()]
    rounds = max(len(pile) for pile in piles)
    spaced = [
        (position * rounds / len(pile), number, piece)
        for number, pile in enumerate(piles)
        for position, piece in enumerate(pile)
    ]
    return f"\n{DOCUMENT_END}\n".join(piece for _, _, piece in sorted(spaced)) + "\n"


def _pieces(shard: str, characters: int) -> list[str]:
    pieces: list[str] = []
    for document, held_out in split_documents(data_folder() / shard):
        if characters <= 0:
            break
        if held_out:
            continue
        start = max(0, (len(document) - LONGEST_PIECE) // 2)
        piece = document[start : start + min(LONGEST_PIECE, characters)].strip()
        if piece:
            pieces.append(piece)
            characters -= len(piece)
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(calibration_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
