"""Functions of torch that take plain numbers only are called with traced ones in another way while a forward is traced.

``torch.zeros(b, c, h, w)``: C code takes several sizes for one argument only where the first is a plain number, so they
are handed on as one tuple. ``torch._check(b == c)``: what it is asked is decided.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx

from .patches import Function, patched

VARIADIC = ("zeros", "ones", "empty", "rand", "randn")
"""Functions of torch that take a shape as several arguments. (Those of tensors are calls of methods.)"""


def traced_numbers_taken() -> AbstractContextManager[None]:
    """Inside, these functions take traced numbers. Calls without any are what they were."""
    return patched(torch, {**dict.fromkeys(VARIADIC, _together), "_check_with": _decided})


def _decided(check: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return check(*(bool(each) if isinstance(each, fx.Proxy) else each for each in args), **kwargs)


def _together(make: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    several = len(args) > 1 and any(isinstance(size, fx.Proxy) for size in args)
    return make(args, **kwargs) if several else make(*args, **kwargs)
