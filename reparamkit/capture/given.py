"""What a forward puts into the lists, dictionaries and objects that it is given: whoever calls it sees that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

LEVELS = 4
"""How deep to look: an argument, an object in it, a list in that, a value."""
CLOSED = (str, bytes, bool, int, float, complex, type(None), type, nn.Module)
"""What holds no values, or is looked at otherwise."""


def values_in(given: Any, levels: int = LEVELS) -> Iterator[fx.Node]:
    """The nodes of the traced values in a structure."""
    if issubclass(type(given), fx.Proxy):
        yield given.node
    elif levels and not isinstance(given, CLOSED):
        for part in _parts(given):
            yield from values_in(part, levels - 1)


def _parts(given: Any) -> list[Any]:
    if isinstance(given, dict):
        return list(given.values())
    if isinstance(given, (list, tuple, set, frozenset)):
        return list(given)
    return list(getattr(given, "__dict__", {}).values())
