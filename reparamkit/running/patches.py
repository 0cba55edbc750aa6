"""Functions of torch that do something else while a forward is traced, in the thread that traces it."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..sourcecode.origins import is_users

Function = Callable[..., Any]
Way = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]
"""What is done instead of a call: gets the function, the arguments and the keyword arguments."""


def patched(owner: Any, ways: Mapping[str, Way]) -> AbstractContextManager[None]:
    """Inside, functions of a class or module go these ways, by name. Other threads call them as they are."""
    return replaced(owner, {name: _in_this_thread(getattr(owner, name), way) for name, way in ways.items()})


@contextmanager
def replaced(owner: Any, functions: Mapping[str, Function]) -> Iterator[None]:
    """Inside, a class or module has these functions, by name, in all threads.

    Traces take turns: of two that overlapped, the first to end would take the patches of the other away.
    """
    before = {name: vars(owner)[name] for name in functions if name in vars(owner)}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name in functions:
            if name in before:
                setattr(owner, name, before[name])
            else:
                # A class has it of its base.
                delattr(owner, name)


def _in_this_thread(function: Function, way: Way) -> Function:
    thread = threading.get_ident()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return way(function, args, kwargs) if threading.get_ident() == thread else function(*args, **kwargs)

    return call


def noting(note: Callable[[str], None]) -> Way:
    """Calls as always, of which `note` gets the name of the function where the user's code makes them."""

    def way(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The frame above is that of the patch, and the one above that is who calls.
        if is_users(sys._getframe(2)):
            note(function.__name__)
        return function(*args, **kwargs)

    return way
