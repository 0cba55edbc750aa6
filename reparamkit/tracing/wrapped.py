"""Functions that torch.fx.wrap names are for a tracer that cannot go through them: they are code as any other."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

from torch import fx

from ..running.patches import Function, patched


def wraps_opened() -> AbstractContextManager[None]:
    """Inside, a trace goes through functions of Python that torch.fx.wrap names, where each is one node otherwise."""
    return patched(fx._symbolic_trace, {"_create_wrapped_func": _plain})


def _plain(wrap: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    (function,) = args
    return function if isinstance(function, FunctionType) else wrap(function)
