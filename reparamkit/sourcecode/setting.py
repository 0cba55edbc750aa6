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
    found = (f"{cls.__name__}.{method}" for cls in classes for method, code in _methods(cls) if _sets(code, name))
    return next(found, None)


@once
def _methods(cls: type) -> tuple[tuple[str, CodeType], ...]:
    """The code of the methods and properties of a class; without what only makes a module, and helpers of that."""
    names = [name for base in cls.__mro__ for name in vars(base)]
    found = {name: inspect.getattr_static(cls, name) for name in names}
    own = {name: code for name, each in found.items() for code in _codes(each)}
    making = [code for name, code in own.items() if name in MAKING]
    helpers = {name for code in making for name in names_of(code) if name.startswith("_")}
    return tuple((name, code) for name, code in own.items() if name not in {*MAKING, *helpers})


def _codes(attribute: object) -> Iterator[CodeType]:
    setter = attribute.fset if isinstance(attribute, property) else attribute
    function = inspect.unwrap(setter) if isinstance(setter, FunctionType) else None
    if isinstance(function, FunctionType) and not is_torchs(function):
        yield function.__code__


def _sets(code: CodeType, name: str) -> bool:
    """Whether code, or a function inside it, sets an attribute of this name."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    stored = name in code.co_names and any(
        each.opname == "STORE_ATTR" and each.argval == name for each in dis.get_instructions(code)
    )
    return stored or ("setattr" in code.co_names and name in code.co_consts) or any(_sets(each, name) for each in inner)
