"""Launches a kernel without asking Triton each time which compiled variant the arguments need.

That question takes longer than the launch itself, and a prompt makes hundreds of launches. It knows no kernel.
"""

from functools import cache
from typing import Any

from torch import Tensor

_VARIANTS: dict[tuple[Any, ...], Any] = {}
_LARGEST = 2**31 - 1


def quick_launch(kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], **options: Any) -> None:
    """`kernel[grid](*arguments, **options)`. The arguments are all of them in their order, constants too."""
    if not hasattr(kernel, "params"):
        # Triton's interpreter, which compiles nothing.
        kernel[grid](*arguments, **options)
        return
    key = (id(kernel), *(_trait(*pair) for pair in zip(_any_number_will_do(kernel), arguments, strict=True)))
    variant = _VARIANTS.get(key)
    if variant is None:
        _VARIANTS[key] = kernel[grid](*arguments, **options)
    else:
        variant[grid](*arguments)


@cache
def _any_number_will_do(kernel: Any) -> tuple[bool, ...]:
    """Of each parameter: whether the kernel is compiled without regard to its value."""
    return tuple(bool(parameter.do_not_specialize) for parameter in kernel.params)


def _trait(any_number: bool, argument: Any) -> Any:
    """What a variant depends on: types, whether addresses are multiples of 16 bytes, and most numbers."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0, argument.device
    if isinstance(argument, int):
        return argument > _LARGEST if any_number else argument
    if argument is None or isinstance(argument, float):
        return type(argument)
    # A box of a tensor: its address is a multiple of 16 bytes.
    return argument.base.dtype, *argument.block_shape
