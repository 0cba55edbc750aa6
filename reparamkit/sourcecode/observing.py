"""Whether code of a model sets hooks of its own, which then see what the modules inside return."""

from __future__ import annotations

from functools import cache
from types import FunctionType

from .parse import names_of

SETTING = frozenset({"register_forward_hook", "register_module_forward_hook"})


@cache
def sets_hooks(function: object) -> bool:
    """Whether a function may set forward hooks, itself, by what decorates it, or by functions of the same file."""
    waiting, seen = [function], set[object]()
    while waiting:
        each = waiting.pop()
        if type(each) is not FunctionType or each in seen or _file(each).startswith("torch."):
            continue
        seen.add(each)
        names = set(names_of(each.__code__))
        if names & SETTING:
            return True
        near = (each.__globals__.get(name) for name in names)
        waiting += [found for found in near if type(found) is FunctionType and _file(found) == _file(each)]
        waiting += [cell.cell_contents for cell in each.__closure__ or () if _is_filled(cell)]
    return False


def _file(function: FunctionType) -> str:
    """The module whose code a function is; a decorator hands on the name of another."""
    return str(function.__globals__.get("__name__"))


def _is_filled(cell: object) -> bool:
    return hasattr(cell, "cell_contents")
