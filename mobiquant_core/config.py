"""The quantizer's settings: which slices a weight is cut into, and over which groups.

It does not know budgets or policies; those are arguments of a call.
"""

from dataclasses import dataclass
from itertools import accumulate

from mobiquant_core.errors import ConfigError

MAX_TOTAL_BITS = 8


@dataclass(frozen=True)
class MobiQuantConfig:
    """Slice widths in bits, base slice first, and the group size along the input dimension."""

    slice_bits: tuple[int, ...] = (2, 2, 2, 2)
    group_size: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "slice_bits", tuple(self.slice_bits))
        widths = self.slice_bits
        if not widths or any(not isinstance(b, int) or b < 1 for b in widths) or sum(widths) > MAX_TOTAL_BITS:
            raise ConfigError(
                f"slice_bits={widths} cannot be used: give one or more whole numbers that sum to at most "
                f"{MAX_TOTAL_BITS}, for example (2, 2, 2, 2)."
            )
        if not isinstance(self.group_size, int) or self.group_size < 16 or self.group_size % 16:
            raise ConfigError(f"group_size={self.group_size} cannot be used: give a multiple of 16, for example 128.")

    @property
    def depths(self) -> int:
        """How many slices there are; depth k means the first k of them."""
        return len(self.slice_bits)

    @property
    def total_bits(self) -> int:
        return sum(self.slice_bits)

    def bits(self, depth: int) -> int:
        """Bits per weight that the first `depth` slices hold."""
        return self.bits_by_depth[depth - 1]

    @property
    def bits_by_depth(self) -> tuple[int, ...]:
        """Cumulative bits: (2, 4, 6, 8) for four 2-bit slices."""
        return tuple(accumulate(self.slice_bits))
