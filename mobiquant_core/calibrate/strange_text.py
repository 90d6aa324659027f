"""Windows that no corpus has, made from ordinary ones: what routers learn must hold on text of every kind.

Single tokens mislead a router on text unlike its own; these keep the tokens and change what they tell. Each function
takes one window [tokens]; the first position stays, it begins every text. It knows token ids, nothing of a model.
"""

import torch
from jaxtyping import Int
from torch import Tensor

REPLACED_SHARE, ENCIPHERED_SHARE = 0.25, 0.6
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
