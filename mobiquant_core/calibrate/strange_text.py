"""Windows that no corpus has, made from ordinary ones: what routers learn must hold on text of every kind.

Single tokens mislead a router on text unlike its own; these keep the tokens and change what they tell. Each function
takes one window [tokens]; the first position stays, it begins every text. It knows token ids, nothing of a model.
"""

import torch
from jaxtyping import Int
from torch import Tensor

REPLACED_SHARE, ENCIPHERED_SHARE = 0.25, 0.6
_PHRASES, _LONGEST_PHRASE = 40, 7
_SPECIAL = 2
"""Ids below are marks of beginning and end."""


def with_replaced(
    window: Int[Tensor, " tokens"], vocabulary: int, generator: torch.Generator
) -> Int[Tensor, " tokens"]:
    """A share of the tokens replaced by any others: noise."""
    chosen = torch.rand(window.shape, generator=generator) < REPLACED_SHARE
    chosen[0] = False
    return torch.where(chosen, torch.randint(_SPECIAL, vocabulary, window.shape, generator=generator), window)


def enciphered(window: Int[Tensor, " tokens"], generator: torch.Generator) -> Int[Tensor, " tokens"]:
    """A share of the window's words change places with each other throughout: what follows what is left to context."""
    words = window[1:].unique()
    chosen = words[torch.rand(words.shape, generator=generator) < ENCIPHERED_SHARE]
    key = torch.arange(int(window.max()) + 1)
    key[chosen] = chosen[torch.randperm(len(chosen), generator=generator)]
    return torch.cat([window[:1], key[window[1:]]])


def collage(window: Int[Tensor, " tokens"], generator: torch.Generator) -> Int[Tensor, " tokens"]:
    """Some phrases of the window in any order, a few of them again and again: repetition, as in lists and programs."""
    tokens = len(window)
    lengths = torch.randint(1, min(_LONGEST_PHRASE, tokens - 1) + 1, (_PHRASES,), generator=generator)
    starts = 1 + (torch.rand(_PHRASES, generator=generator) * (tokens - lengths)).long()
    phrases = [window[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    often = 1 / torch.arange(1, _PHRASES + 1)
    drawn = torch.multinomial(often, tokens, replacement=True, generator=generator).tolist()
    return torch.cat([window[:1], *(phrases[place] for place in drawn)])[:tokens]
