"""Functions of torch that take plain numbers or lists only are called with traced ones in another way in a trace.

``torch.zeros(b, c, h, w)``: C code takes several sizes for one argument only where the first is a plain number, so they
are handed on as one tuple. ``torch.cat(x.split(2))``: that of old versions takes no traced list.
``torch._check(b == c)``: what it is asked is decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import handle_torch_function, is_tensor_method_or_property

from ..running.patches import Function, Way, patched
from ..running.trees import leaves

VARIADIC = ("zeros", "ones", "empty", "rand", "randn")
"""Functions of torch that take a shape as several arguments."""
NUMERIC = ("full", "eye", "arange", "linspace")
"""Others that take numbers and no tensor."""
WINDOWS = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
"""Functions whose windows may be sizes: ``F.avg_pool2d(x, x.size()[2:])``."""
JOINING = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
"""Functions that take a list of tensors, which one traced value may stand for: ``torch.cat(x.split(2, 1))``."""
METHODS = {name: getattr(Tensor, name) for name in ("expand", "new_zeros", "new_ones", "new_empty")}
"""Methods that do, of a tensor that is not traced. (Others take a traced number as the first size.)"""


@contextmanager
def traced_numbers_taken() -> Iterator[None]:
    """Inside, these functions take traced numbers. Calls without any are what they were."""
    # torch lists the methods of tensors once, when it first asks what one is: these must not be ours.
    is_tensor_method_or_property(Tensor.add)
    functions: dict[str, Way] = {**dict.fromkeys(VARIADIC, partial(_together, 0)), **dict.fromkeys(NUMERIC, _handed)}
    functions |= {"_check_with": _decided, **dict.fromkeys(JOINING, _joined)}
    methods = dict.fromkeys(METHODS, partial(_together, 1))
    with patched(torch, functions), patched(F, dict.fromkeys(WINDOWS, _handed)), patched(Tensor, methods):
        yield


def plain(function: Any) -> Any:
    """A function as it is outside: torch hands on a method by what its name stands for."""
    own = getattr(function, "__wrapped__", None)
    return own if own in METHODS.values() else function


def _decided(check: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return check(*(bool(each) if isinstance(each, fx.Proxy) else each for each in args), **kwargs)


def _joined(join: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    traced = isinstance(args[0] if args else kwargs.get("tensors"), fx.Proxy)
    return _handed(join, args, kwargs) if traced else join(*args, **kwargs)


def _together(first: int, make: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """first: the number of the argument that begins the shape."""
    sizes = args[first:]
    several = len(sizes) > 1 and any(isinstance(size, fx.Proxy) for size in sizes)
    return _handed(make, (*args[:first], sizes) if several else args, kwargs)


def _handed(make: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Old versions of torch refuse traced values in such places before they ask what a trace makes of them."""
    traced = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)]
    return handle_torch_function(make, traced, *args, **kwargs) if traced else make(*args, **kwargs)
