"""Functions that were compiled by torch.jit.script take no proxies; the Python code that they were made of does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx

from .patches import Function, patched
from .trees import leaves

SOURCE = "_torchdynamo_inline"
"""Where torch keeps the function that a script was made of."""


def scripts_opened() -> AbstractContextManager[None]:
    """Inside, a call of a scripted function with a proxy among its arguments runs what it was made of."""
    return patched(torch.jit.ScriptFunction, {"__call__": _opened})


def _opened(call: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    script, *given = args
    plain = getattr(script, SOURCE, None)
    traced = any(issubclass(type(leaf), fx.Proxy) for leaf in leaves((given, kwargs)))
    return plain(*given, **kwargs) if traced and plain is not None else call(*args, **kwargs)
