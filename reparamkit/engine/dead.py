"""Take values that nothing reads out of the graph, so that they count as nobody's reader."""

from __future__ import annotations

from ..capture.capture import Captured
from .reading import Reading


def drop_dead(captured: Captured, reading: Reading) -> None:
    """Erase what is affine, a size or a constant, and unread; `captured.watched` receives what it read, since the
    model's own code goes on reading it where it is not written again.
    """
    pure = {*reading.read, *reading.sizes, *reading.constants}
    passed = captured.passed
    for node in reversed(captured.graph.nodes):
        if not node.users and node in pure and node not in passed and node not in captured.aliases.writers:
            captured.watched.update(dict.fromkeys(n for n in node.all_input_nodes if n not in reading.sizes))
            captured.graph.erase_node(node)
    captured.forget()
