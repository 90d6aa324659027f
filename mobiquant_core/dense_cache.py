"""Dense weights of some (linear, depth) pairs, kept within a byte limit: what makes a CPU without kernels fast.

One cache belongs to one quantized model. It never evicts: decoding visits the layers in a circle, where throwing
out the oldest entry would miss every time.
"""

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor


class DenseCache:
    """Filled first come, first kept; beyond the limit weights are decoded on every call."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.stored_bytes = 0
        self._entries: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._lock = Lock()

    def get(self, key: tuple[int, int, torch.dtype], make: Callable[[], Tensor]) -> Tensor:
        """The entry of (linear index, depth, type), made and kept if there is room."""
        found = self._entries.get(key)
        if found is not None:
            return found
        dense = make().contiguous()
        with self._lock:
            if key not in self._entries and self.stored_bytes + dense.nbytes <= self.limit_bytes:
                self._entries[key] = dense
                self.stored_bytes += dense.nbytes
        return dense

    def __deepcopy__(self, memo: dict[int, object]) -> "DenseCache":
        """A copied model starts with an empty cache: the lock cannot be copied, the weights need not be."""
        return DenseCache(self.limit_bytes)
