"""Token ids to the text each one adds, also where a character is spread over several tokens.

A token strip needs exactly one text per token. Bytes that are no full character yet are shown as ⟨E2⟩;
the token that completes a character shows it. It knows a tokenizer and nothing about models.
"""

import re
from functools import lru_cache
from typing import Any

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# A character has at most four bytes; more pending tokens than that is invalid text, not an unfinished character.
_MOST_PENDING = 4


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """The fixed table of byte-level BPE: which printable character stands for which byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(value): value for value in plain}
    others = (value for value in range(256) if value not in set(plain))
    return table | {chr(0x100 + index): value for index, value in enumerate(others)}


class TokenTexts:
    """Texts of single tokens of one tokenizer, remembered by id."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._single: dict[int, str] = {}

    def decode(self, ids: list[int]) -> str:
        """The text of a whole sequence, special tokens spelled out."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def single(self, token_id: int) -> str:
        """The text of one token on its own; partial characters as ⟨hex⟩."""
        if token_id not in self._single:
            text = self.decode([token_id])
            token = self.tokenizer.convert_ids_to_tokens(token_id) or ""
            if _REPLACEMENT in text or not text:
                text = self._named_bytes(token)
            elif token.startswith("\u2581") and not text.startswith(" "):
                text = " " + text
            self._single[token_id] = text
        return self._single[token_id]

    def _named_bytes(self, token: str) -> str:
        if match := _BYTE_TOKEN.fullmatch(token):
            return f"⟨{match[1]}⟩"
        table = _bytes_of_characters()
        if token and all(character in table for character in token):
            return "⟨" + " ".join(f"{table[character]:02X}" for character in token) + "⟩"
        return f"⟨{token}⟩"


class TextStream:
    """Incremental detokenization: one text for each token pushed, in order."""

    def __init__(self, texts: TokenTexts) -> None:
        self.texts = texts
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0

    def push(self, token_id: int) -> str:
        """The text this token adds to the ones before; ⟨hex⟩ while a character is unfinished."""
        self._ids.append(token_id)
        before = self.texts.decode(self._ids[self._prefix : self._read])
        after = self.texts.decode(self._ids[self._prefix :])
        pending = len(self._ids) - self._read
        if after.endswith(_REPLACEMENT) and pending <= _MOST_PENDING:
            return self.texts.single(token_id)
        # Only a window of recent ids is decoded, so a long text costs no more per token than a short one.
        self._prefix, self._read = self._read, len(self._ids)
        self._ids, self._prefix, self._read = self._ids[self._prefix :], 0, self._read - self._prefix
        added = after[len(before) :]
        return self.texts.single(token_id) if not added or added.endswith(_REPLACEMENT) else added

    def push_all(self, ids: list[int]) -> list[str]:
        return [self.push(token_id) for token_id in ids]
