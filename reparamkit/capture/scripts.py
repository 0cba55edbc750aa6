"""Functions that were compiled by torch.jit.script take no proxies; the Python code that they were made of does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from .trees import leaves

SOURCE = "_torchdynamo_inline"
"""Where torch keeps the function that a script was made of."""


@contextmanager
def scripts_opened() -> Iterator[None]:
    """Inside, a call of a scripted function with a proxy among its arguments runs what it was made of."""
    scripted: Any = torch.jit.ScriptFunction
    before = vars(scripted)["__call__"]

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        traced = any(issubclass(type(leaf), fx.Proxy) for leaf in leaves((args, kwargs)))
        plain = getattr(function, SOURCE, None)
        return plain(*args, **kwargs) if traced and plain is not None else before(function, *args, **kwargs)

    scripted.__call__ = call
    try:
        yield
    finally:
        scripted.__call__ = before
