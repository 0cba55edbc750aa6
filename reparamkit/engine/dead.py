"""Take values that nothing reads out of the graph, so that they count as nobody's reader."""

from __future__ import annotations

from torch import Tensor, fx

from ..capture.aliases import MAY_ALIAS, target_name
from ..capture.capture import Captured
from ..capture.guards import is_guard
from ..capture.trees import leaves
from .arithmetic import is_random
from .counting import checks, reads_rank
from .reading import Reading


def drop_dead(captured: Captured, reading: Reading) -> None:
    """Erase what only computes a value that is unread. The model's own code goes on doing so where it is not written
    again: `captured.watched` receives what it reads, `captured.unread` the modules that it calls, and
    `captured.unneeded` the methods that read a value so.
    """
    known = {*reading.read, *reading.sizes, *reading.constants}
    # A guard on parameters holds: what is merged does not follow them either.
    guards = {n for n in captured.graph.nodes if is_guard(n.target) and n not in reading.constants}
    pure = {n for n in captured.graph.nodes if n in known or reads_rank(n) or _only_computes(n, captured)} - guards
    passed = captured.passed
    for node in reversed(captured.graph.nodes):
        # What a call gets as an argument is needed for the call, even if nothing is done with it there.
        frame = captured.frame(node)
        given = {captured.current(leaf) for leaf in leaves((frame.args, frame.kwargs)) if isinstance(leaf, fx.Node)}
        passing = node in passed or any(n in given and n.op != "placeholder" for n in node.all_input_nodes)
        passing &= not reads_rank(node)
        if not node.users and node in pure and not passing and node not in captured.aliases.writers:
            captured.watched.update(dict.fromkeys(n for n in node.all_input_nodes if n not in reading.sizes))
            for each in node.all_input_nodes:
                captured.unneeded.setdefault(each, set()).update(node.meta.get("methods", ()))
            if node.op == "call_module":
                captured.unread.append((id(captured.module(node)), frame))
            captured.graph.erase_node(node)
    captured.forget()


def _only_computes(node: fx.Node, captured: Captured) -> bool:
    """A view, or a function or method of torch that gives tensors, and neither draws random numbers nor checks
    anything.
    """
    if target_name(node, captured.module) in MAY_ALIAS and node.op != "call_module":
        return True
    module = str(getattr(node.target, "__module__", "torch") or "torch").partition(".")[0]
    values = leaves(node.meta.get("val"))
    computes = bool(values) and all(isinstance(v, Tensor) for v in values) and module in ("torch", "_operator")
    return node.op in ("call_function", "call_method") and computes and not is_random(node) and not checks(node)
