"""Which lists of its own parts a forward asks torch for while it is traced: what it finds there is in no graph."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

LISTS = ("modules", "named_modules", "parameters", "named_parameters", "buffers", "named_buffers", "state_dict")


@contextmanager
def lists_noted(noted: set[str]) -> Iterator[None]:
    """Inside, `noted` receives the methods of LISTS that are called by code that is neither torch's nor ours."""
    before = {name: getattr(nn.Module, name) for name in LISTS}
    # Another thread may trace as well.
    own = {name: getattr(method, "taken_from", method) for name, method in before.items()}
    for name, method in own.items():
        setattr(nn.Module, name, _noting(method, noted))
    try:
        yield
    finally:
        for name, method in own.items():
            setattr(nn.Module, name, method)


def _noting(method: Callable[..., Any], noted: set[str]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__")).partition(".")[0]
        if caller not in ("torch", __name__.partition(".")[0]):
            noted.add(method.__name__)
        return method(*args, **kwargs)

    call.taken_from = method  # type: ignore[attr-defined]
    return call
