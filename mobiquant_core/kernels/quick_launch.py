"""Launches a kernel without asking Triton each time which compiled variant the arguments need.

That question takes longer than the launch itself, and a prompt makes hundreds of launches. It knows no kernel.
"""

from functools import cache
from typing import Any

from torch import Tensor

_VARIANTS: dict[tuple[Any, ...], Any] = {}
_LARGEST = 2**31 - 1


def quick_launch(kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], **options: Any) -> None:
    """`kernel[grid](*arguments, **options)`. The arguments are all of them in their order, constants too.

    A variant depends on types, on whether addresses are multiples of 16 bytes, and on most numbers.
    """
    if not hasattr(kernel, "params"):
        # Triton's interpreter, which compiles nothing.
        kernel[grid](*arguments, **options)
        return
    key: list[Any] = [id(kernel)]
    for any_number, argument in zip(_any_number_will_do(kernel), arguments, strict=True):
        if isinstance(argument, Tensor):
            key += (argument.dtype, argument.data_ptr() % 16, argument.get_device())
        elif isinstance(argument, int):
            key.append(argument > _LARGEST if any_number else argument)
        else:
            key.append(_other_trait(argument))
    variant = _VARIANTS.get(tuple(key))
    if variant is None:
        _VARIANTS[tuple(key)] = kernel[grid](*arguments, **options)
    else:
        variant[grid](*arguments)


@cache
def _any_number_will_do(kernel: Any) -> tuple[bool, ...]:
    """Of each parameter: whether the kernel is compiled without regard to its value."""
    return tuple(bool(parameter.do_not_specialize) for parameter in kernel.params)


def _other_trait(argument: Any) -> Any:
    if argument is None or isinstance(argument, float):
        return type(argument)
    # A box of a tensor: its address is a multiple of 16 bytes.
    return argument.base.dtype, *argument.block_shape
