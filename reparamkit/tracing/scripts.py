"""Functions that were compiled, by torch.jit.script or torch.compile, take no proxies; the Python code that they were
made of does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import fx

from ..running.patches import Function, patched
from ..running.trees import leaves

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


@contextmanager
def compiled_opened() -> Iterator[None]:
    """Inside, a call of what torch.compile made of a function runs the function, also while it is traced."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"), dynamo.config.patch(error_on_nested_fx_trace=False):
        yield
