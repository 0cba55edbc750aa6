"""What Python's own functions tell of a value, `type`, `len`, `max` and `min`, told of a traced one, wherever a model's
code asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from ..sourcecode.origins import NOT_USERS, package
from .proxies import UNKNOWN, ValueProxy

OTHERS = NOT_USERS | (sys.stdlib_module_names - {"__main__"}) | {"numpy", "sympy", "mpmath"}
"""Packages whose code decides nothing for a model: of Python, and what torch itself uses."""
Names = dict[str, Any]
"""The global names of some code."""


class _Asking(type):
    """What `Kind` does as the class that it is."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and issubclass(type(args[0]), ValueProxy):
            return args[0].kind()
        return type(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, type)


class Kind(type, metaclass=_Asking):
    """`type`, that knows traced values."""


def length(value: Any) -> Any:
    """`len`, whose answer of a traced tensor is a size like others: what is behind it holds for any."""
    size = value.length() if issubclass(type(value), ValueProxy) else None
    return len(value) if size is None else size


def _chosen(choose: Callable[..., Any]) -> Callable[..., Any]:
    """`max` or `min`, which of sizes that nothing is known of yet is a number as its arguments are."""

    def chosen(*values: Any, **how: Any) -> Any:
        traced = next((each for each in values if issubclass(type(each), ValueProxy)), None)
        if len(values) < 2 or how or traced is None or not all(map(_is_number, values)):
            return choose(*values, **how)
        return traced.tracer.create_proxy("call_function", choose, values, {})

    return chosen


def _is_number(value: Any) -> bool:
    """Whether it is a number, or one that is computed of unknown sizes."""
    if issubclass(type(value), ValueProxy):
        return value.value is UNKNOWN and bool(value.is_of_sizes(several=False))
    return type(value) in (int, float)


TOLD = {"type": Kind, "len": length, "max": _chosen(max), "min": _chosen(min)}


@contextmanager
def builtins_told(root: nn.Module) -> Iterator[None]:
    """Inside, the code of a model and what it imports has functions of these names that know traced values."""
    changed = [(names, each) for names in _globals_of(root) for each in TOLD.keys() - names.keys()]
    for names, each in changed:
        names[each] = TOLD[each]
    try:
        yield
    finally:
        for names, each in changed:
            names.pop(each, None)


def _globals_of(root: nn.Module) -> Iterable[Names]:
    """The names of all modules that are neither torch nor Python, and those of forwards that were made elsewhere."""
    imported = (vars(module) for module in list(sys.modules.values()) if isinstance(module, ModuleType))
    # A forward may be hidden: that of a module of which only other methods run.
    forwards = (getattr(module, "forward", None) for module in root.modules())
    functions = (getattr(forward, "__func__", forward) for forward in forwards)
    made = (function.__globals__ for function in functions if isinstance(function, FunctionType))
    return {id(names): names for names in (*imported, *made) if package(names) not in OTHERS}.values()
