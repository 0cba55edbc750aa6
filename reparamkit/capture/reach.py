"""Follow a graph from some nodes on, each node once, however many ways lead to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx


def reached(starts: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> list[fx.Node]:
    """Some nodes and all that `step` leads to from them, one way to its end before the next."""
    found: dict[fx.Node, None] = {}
    waiting = [*starts][::-1]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting += [*step(node)][::-1]
    return list(found)
