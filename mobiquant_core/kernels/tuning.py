"""How a product is cut up for a shape and a card: a small table, with a rule for what it does not list.

Nothing is tuned while a user waits; `bench kernel --sweep` measures candidates for this table.
"""

from dataclasses import dataclass, replace

import torch

_WARPS_PER_MULTIPROCESSOR = 11
"""Warps to aim for on each multiprocessor: enough loads under way to keep its share of the memory busy."""

NEVER_LATE = 5
"""A depth that no weight has."""


@dataclass(frozen=True)
class Tuning:
    """How the rows and groups of a product are shared out."""

    tiles: int
    """Tiles of 16 rows in one program."""
    split: int
    """Warps that share the groups of one tile."""
    units: tuple[int, ...]
    """Groups a warp has under way at once, for each depth, up to four tokens."""
    pieces: int = 0
    """Pieces of 4 kB of the first plane that a warp asks for before it knows the depth."""
    held: bool = False
    """Whether a product of one token loads its first step's plane and ranges before its input is there."""
    late: int = NEVER_LATE
    """Depth from which on the next kernel may start only when this one's products are done; before, at once."""
    registers: int | None = None
    """Registers of a thread at most, for one token and from five on: fewer let more warps share a multiprocessor, whose
    four parts have 16,384 each."""


_UNITS = (4, 2, 1, 1)
_MORE = (4, 2, 2, 2)
_IN_STEP: dict[tuple[int, int], Tuning] = {
    (6144, 32): Tuning(1, 4, _MORE, held=True, registers=168),
    (4096, 32): Tuning(1, 8, _UNITS, 1, held=True, registers=96),
    (28672, 32): Tuning(2, 1, _UNITS, 1, held=True, registers=112),
    (4096, 112): Tuning(1, 8, _MORE, 1, held=True, registers=128),
    # The output head of a Llama 3, always read at full depth.
    (128256, 32): Tuning(2, 1, _MORE, 1, held=True, registers=128),
}
"""(rows, groups): what won at one token in whole decode steps on an H200; an H100 has the same chip. Registers: as many
as let all programs of a product run at once, or else the compiler would take a few more and lose two in eight."""
_ALONE: dict[tuple[int, int], Tuning] = {
    (6144, 32): Tuning(1, 4, _MORE, held=True, late=2, registers=128),
    (4096, 32): Tuning(1, 8, _UNITS, 1, held=True, registers=128),
    (28672, 32): Tuning(2, 1, (4, 4, 2, 2), held=True, late=3, registers=128),
    (4096, 112): Tuning(1, 8, _MORE, held=True, registers=128),
}
"""(rows, groups): what won on an H200 where a product of one token stands alone."""
_SPLITS_OF_SEVERAL: dict[tuple[int, int], int] = {(6144, 32): 4, (4096, 32): 8, (28672, 32): 2, (4096, 112): 8}
"""(rows, groups): warps of a tile that won at 8 and 16 tokens of mixed depths on an H100; an H200 has the same chip."""
_HOPPER = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
_AHEAD = 8 * 2**20
"""Bytes of the next gate and up planes that attention asks for in a decode step: what won of 0, 8, 16 and 28 MiB on an
H200."""


def ahead_for(device: torch.device) -> int:
    """Those bytes; none on a card that was not measured, whose L2 cache may be too small to keep them."""
    return _AHEAD if device.type == "cuda" and _card(device)[0] in _HOPPER else 0


def tuning_for(rows: int, groups: int, tokens: int, device: torch.device, *, in_step: bool = False) -> Tuning:
    """The table's entry, or a rule that needs nothing but the number of multiprocessors."""
    name, multiprocessors = ("cpu", 1) if device.type != "cuda" else _card(device)
    if tokens <= 4 and name in _HOPPER and (rows, groups) in _IN_STEP:
        found = _IN_STEP[rows, groups]
        if tokens == 1 and not in_step:
            found = _ALONE.get((rows, groups), found)
        # Several tokens need more registers than one.
        return found if tokens == 1 else replace(found, registers=None)
    tiles = -(-rows // 16)
    split = 1
    while split < 8 and tiles * split < multiprocessors * _WARPS_PER_MULTIPROCESSOR and split * 2 <= groups:
        split *= 2
    if tokens > 4:
        measured = _SPLITS_OF_SEVERAL if name in _HOPPER else {}
        # With four tiles of tokens the compiler would take all registers it can get; with 128 next to nothing spills.
        return Tuning(1, measured.get((rows, groups), split), _UNITS, registers=128)
    # More groups at once than a warp has would only be masked out.
    most = 1 << (-(-groups // split) - 1).bit_length()
    return Tuning(1, split, tuple(min(unit, most) for unit in _UNITS), held=True)


def _card(device: torch.device) -> tuple[str, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count
