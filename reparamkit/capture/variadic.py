"""Functions of torch that take plain numbers only are called with traced ones in another way while a forward is traced.

``torch.zeros(b, c, h, w)``: C code takes several sizes for one argument only where the first is a plain number, so they
are handed on as one tuple. ``torch._check(b == c)``: what it is asked is decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import is_tensor_method_or_property

from .patches import Function, Way, patched

VARIADIC = ("zeros", "ones", "empty", "rand", "randn")
"""Functions of torch that take a shape as several arguments."""
METHODS = {name: getattr(Tensor, name) for name in ("expand", "new_zeros", "new_ones", "new_empty")}
"""Methods that do, of a tensor that is not traced. (Others take a traced number as the first size.)"""


@contextmanager
def traced_numbers_taken() -> Iterator[None]:
    """Inside, these functions take traced numbers. Calls without any are what they were."""
    # torch lists the methods of tensors once, when it first asks what one is: these must not be ours.
    is_tensor_method_or_property(Tensor.add)
    functions: dict[str, Way] = {**dict.fromkeys(VARIADIC, partial(_together, 0)), "_check_with": _decided}
    with patched(torch, functions), patched(Tensor, dict.fromkeys(METHODS, partial(_together, 1))):
        yield


def plain(function: Any) -> Any:
    """A function as it is outside: torch hands on a method by what its name stands for."""
    own = getattr(function, "__wrapped__", None)
    return own if own in METHODS.values() else function


def _decided(check: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return check(*(bool(each) if isinstance(each, fx.Proxy) else each for each in args), **kwargs)


def _together(first: int, make: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """first: the number of the argument that begins the shape."""
    sizes = args[first:]
    several = len(sizes) > 1 and any(isinstance(size, fx.Proxy) for size in sizes)
    return make(*args[:first], sizes, **kwargs) if several else make(*args, **kwargs)
