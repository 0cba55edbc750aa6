"""Functions of torch that take plain numbers only are called with traced ones in another way while a forward is traced.

``torch.zeros(b, c, h, w)``: C code takes several sizes for one argument only where the first is a plain number, so they
are handed on as one tuple. ``torch._check(b == c)``: what it is asked is decided.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

VARIADIC = ("zeros", "ones", "empty", "rand", "randn")
"""Functions of torch that take a shape as several arguments. (Those of tensors are calls of methods.)"""


@contextmanager
def traced_numbers_taken() -> Iterator[None]:
    """Inside, these functions take traced numbers. Calls without any, in all threads, are what they were."""
    ways = {**dict.fromkeys(VARIADIC, _together), "_check_with": _decided}
    before = {name: getattr(torch, name) for name in ways}
    own = {function: getattr(function, "taken_from", function) for function in before.values()}
    for name, function in before.items():
        setattr(torch, name, ways[name](own[function]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(torch, name, own[function])


def _decided(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def call(error_type: Any, cond: Any, message: Any) -> None:
        check(error_type, bool(cond) if isinstance(cond, fx.Proxy) else cond, message)

    call.taken_from = check  # type: ignore[attr-defined]
    return call


def _together(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        several = len(args) > 1 and any(isinstance(size, fx.Proxy) for size in args)
        return function(args, **kwargs) if several else function(*args, **kwargs)

    call.taken_from = function  # type: ignore[attr-defined]
    return call
