"""Cuts a long token sequence into windows that each start with BOS.

It knows ids only; evaluation, calibration and migration share it so that all see text the same way.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def cut_windows(
    ids: Sequence[int], bos: int | None, window: int
) -> tuple[Int[Tensor, "windows window"], Int[Tensor, " rest"]]:
    """Full windows of BOS and window - 1 text tokens in order, and the shorter last window (empty if none is left)."""
    head = [] if bos is None else [bos]
    stride = window - len(head)
    full = len(ids) // stride
    body = torch.tensor(list(ids[: full * stride]), dtype=torch.long).view(full, stride)
    start = torch.tensor(head, dtype=torch.long)
    rest = torch.tensor(list(ids[full * stride :]), dtype=torch.long)
    return torch.cat([start.expand(full, -1), body], dim=1), torch.cat([start, rest]) if len(rest) else rest
