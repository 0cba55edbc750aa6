"""Methods of tensors that code calls as functions, which C code refuses where a proxy is given."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, fx

from ..running.patches import Function, patched


def unbound_taken(names: Iterable[str]) -> AbstractContextManager[None]:
    """Inside, these methods of tensors are those of a proxy where they are called as functions of one."""
    return patched(Tensor, dict.fromkeys(names, _of_proxy))


def _of_proxy(method: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and issubclass(type(args[0]), fx.Proxy):
        return getattr(args[0], method.__name__)(*args[1:], **kwargs)
    return method(*args, **kwargs)
