"""``torch.zeros(b, c, h, w)`` of traced sizes: C code takes several sizes for one argument only where the first is a
plain number, so while a forward is traced they are handed on as one tuple.
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
def sizes_together() -> Iterator[None]:
    """Inside, these functions take traced sizes one by one. Calls without any, in all threads, are what they were."""
    before = {name: getattr(torch, name) for name in VARIADIC}
    own = {function: getattr(function, "taken_from", function) for function in before.values()}
    for name, function in before.items():
        setattr(torch, name, _together(own[function]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(torch, name, own[function])


def _together(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        several = len(args) > 1 and any(isinstance(size, fx.Proxy) for size in args)
        return function(args, **kwargs) if several else function(*args, **kwargs)

    call.taken_from = function  # type: ignore[attr-defined]
    return call
