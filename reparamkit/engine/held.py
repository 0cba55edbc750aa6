"""Layers that code may reach by objects in which none is replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from ..reasons import Kind, Reason

OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
PLAIN = (str, bytes, bool, int, float, complex, type(None), type, ModuleType, Tensor)
"""What holds no module."""
LEVELS = 4
"""How deep to look: an attribute, an object in it, a list in that, a layer."""


def held_by_objects(root: nn.Module) -> dict[nn.Module, Reason]:
    """Per module that an attribute of some module holds in another object than a list, a tuple or a dictionary, where
    that is, with words.
    """
    found: dict[nn.Module, Reason] = {}
    for path, owner in root.named_modules():
        for name in vars(owner).keys() - OWN:
            where = f"{path}.{name}" if path else name
            why = f"'{where}' holds it in an object of its own, where no layer is replaced: code may call it by that"
            found |= dict.fromkeys(_inside(vars(owner)[name], LEVELS, False), Reason(why, Kind.CODE))
    return found


def _inside(value: Any, levels: int, beyond: bool) -> Iterator[nn.Module]:
    """beyond: whether the value is part of an object that cannot be changed."""
    if isinstance(value, nn.Module):
        yield from [value] if beyond else []
    elif levels and not isinstance(value, PLAIN):
        known = isinstance(value, (list, tuple, dict))
        for part in _parts(value):
            yield from _inside(part, levels - 1, beyond or not known)


def _parts(value: Any) -> Iterable[Any]:
    """What an object is made of, as far as Python code sees; of a function what it brings along."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return value
    return getattr(value, "__dict__", {}).values()
