"""Which of the user's code is running, as Python's own frames tell.

begin: the code in which a trace begins; what called that is no part of it. What a value is asked for when the trace is
through runs none of the model's code.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from types import CodeType, FrameType

from torch import nn

from ..sourcecode.origins import first_argument, is_users
from ..sourcecode.parse import once
from .frame import Method


def methods_running(
    frame: FrameType | None, begin: CodeType, called: Collection[nn.Module], model: Collection[nn.Module]
) -> frozenset[Method]:
    """The methods of the model's modules that are running; forward only where it is called as a method, and not by a
    call of the module. called: the modules whose calls are running. (A module that code makes is none of the model's.)
    """
    found = set[Method]()
    while frame is not None and frame.f_code is not begin:
        # What torch's code does is said by the user's code that overrides it, or calls it.
        owner = first_argument(frame) if is_users(frame) else None
        if isinstance(owner, nn.Module) and owner in model:
            name = _method_of(type(owner), frame.f_code)
            found |= {(owner, name)} if name and (name != "forward" or owner not in called) else set()
        frame = frame.f_back
    return frozenset() if frame is None else frozenset(found)


def _method_of(cls: type, code: CodeType) -> str:
    """The name of the method of a user's class that code is, or that overrides it; "" if it is none."""
    is_named = _is_users(getattr(cls, code.co_name, None))
    return code.co_name if is_named else _names_of_methods(cls).get(code, "")


@once
def _names_of_methods(cls: type) -> dict[CodeType, str]:
    """What a class calls the code of its methods, which may have been written under another name."""
    found = [(name, method) for base in cls.__mro__[::-1] for name, method in vars(base).items() if _is_users(method)]
    return {method.__code__: name for name, method in found}


def code_running(frame: FrameType | None, begin: CodeType, call: CodeType) -> list[FrameType]:
    """The user's code that is running, from the innermost to what the call of a module (by the code `call`) runs."""
    found = list[FrameType]()
    while frame is not None and frame.f_code is not begin and not (found and frame.f_code is call):
        if is_users(frame):
            found.append(frame)
        frame = frame.f_back
    return [] if frame is None else found


def _is_users(method: object) -> bool:
    return inspect.isfunction(method) and not str(method.__module__).startswith("torch.")


def outside(frame: FrameType) -> FrameType:
    """The innermost frame of code that is not ours."""
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(__name__.partition(".")[0]):
        frame = frame.f_back
    return frame
