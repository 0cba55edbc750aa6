"""Write the sizes of parameters as the numbers that they are, so that nothing is kept for the sake of its size."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..algebra.size import Size
from ..capture.captured import Captured
from .reading import Reading


def fold_sizes(captured: Captured, reading: Reading) -> None:
    """``x[:weight.shape[0]]`` becomes ``x[:8]``, and the reads of the sizes go."""
    known: dict[fx.Node, Any] = {}
    for node in captured.graph.nodes:
        if node in reading.sizes and all(n in known or n.op == "get_attr" for n in node.all_input_nodes):
            value = _numbers(reading.sizes[node])
            known |= {} if value is None else {node: value}
    for node in known:
        for user in [user for user in node.users if user not in known]:
            user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: known.get(n, n))
    passed = captured.passed
    for node in reversed(known):
        if not node.users and node not in passed:
            captured.graph.erase_node(node)
    captured.forget()


def _numbers(size: Any) -> Any:
    """A known size, or a tuple of them, as numbers; else None."""
    if isinstance(size, tuple):
        found = tuple(map(_numbers, size))
        return None if None in found else found
    return size.factor if isinstance(size, Size) and size.known else None
