"""torch.autograd.Variable(tensor), as old code says it, is the tensor without its history; C code that takes no proxies
makes it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import fx
from torch.autograd.variable import VariableMeta

from ..running.patches import Function, patched


def variables_read() -> AbstractContextManager[None]:
    """Inside, a variable of a traced tensor is traced."""
    return patched(VariableMeta, {"__call__": _variable})


def _variable(make: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    data, *rest = (*args[1:], *([kwargs["data"]] if "data" in kwargs else []), None)
    if not issubclass(type(data), fx.Proxy):
        return make(*args, **kwargs)
    wants_gradient = kwargs.get("requires_grad", rest[0] if len(rest) > 1 else False)
    return data.detach().requires_grad_() if wants_gradient else data.detach()
