"""Which methods set an attribute when they are called, and not only when a module is made."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType

from .parse import is_torchs, names_of, once

MAKING = ("__init__", "__new__", "__post_init__", "__setstate__")
"""Methods that run before any other does."""


def set_by(classes: Iterable[type], name: str) -> str | None:
    """A method of one of some classes that sets an attribute of this name, of anything; None if there is none."""
    found = (f"{cls.__name__}.{method}" for cls in classes for method, sets in _methods(cls) if name in sets)
    return next(found, None)


@once
def _methods(cls: type) -> tuple[tuple[str, frozenset[str]], ...]:
    """What the methods and properties of a class set, without those that only make a module, and helpers of these."""
    names = [name for base in cls.__mro__ for name in vars(base)]
    found = {name: inspect.getattr_static(cls, name) for name in names}
    own = {name: code for name, each in found.items() for code in _codes(each)}
    making = [code for name, code in own.items() if name in MAKING]
    helpers = {name for code in making for name in names_of(code) if name.startswith("_")}
    return tuple((name, frozenset(_set_in(code))) for name, code in own.items() if name not in {*MAKING, *helpers})


def _codes(attribute: object) -> Iterator[CodeType]:
    setter = attribute.fset if isinstance(attribute, property) else attribute
    function = inspect.unwrap(setter) if isinstance(setter, FunctionType) else None
    if isinstance(function, FunctionType) and not is_torchs(function):
        yield function.__code__


def _set_in(code: CodeType) -> Iterator[str]:
    """The names of the attributes that code, or a function inside it, sets; of setattr() all texts in the code."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR")
    yield from (each for each in code.co_consts if isinstance(each, str) and "setattr" in code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _set_in(inner)
