"""Take values that nothing reads out of the graph, so that they count as nobody's reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from weakref import ref

from torch import Tensor, fx

from ..capture.aliases import MAY_ALIAS, target_name
from ..capture.captured import Captured
from ..layers.registry import Readers
from ..running.trees import leaves
from ..tracing.guards import is_guard
from .arithmetic import is_random
from .counting import checks, reads_rank
from .reading import Reading


def drop_dead(captured: Captured, readers: Readers, reading: Reading) -> None:
    """Erase what only computes a value that is unread. The model's own code goes on doing so where it is not written
    again, of which `captured.unused` is told.
    """
    pure = {*computing(captured, readers, reading), *reading.sizes, *reading.constants}
    calls, unused = Calls(captured), captured.unused
    for node in reversed(captured.graph.nodes):
        writes = node in captured.aliases.writers
        if not node.users and node in pure and not writes and not calls.need(node):
            unused.shapes.update(dict.fromkeys(n for n in node.all_input_nodes if n not in reading.sizes))
            for each in node.all_input_nodes:
                unused.methods.setdefault(each, set()).update(node.meta.get("methods", ()))
            if node.op == "call_module":
                unused.calls.append((ref(captured.module(node)), captured.frame(node)))
            if node not in reading.sizes and node not in reading.constants and not reads_rank(node):
                unused.computes = True
                unused.inputs.update(node.all_input_nodes)
            captured.graph.erase_node(node)
    captured.forget()


class Calls:
    """The calls that code makes, and goes on making, each with all that it is given and returns.

    written: calls (by identity) whose code is made of the graph, and does no more than that says.
    """

    def __init__(self, captured: Captured, written: Collection[int] = ()) -> None:
        self.captured = captured
        left = [frame for frame in captured.frames if id(frame) not in captured.opened]
        self.passed = captured.nodes_in([(f.args, f.kwargs, f.output) for f in left])
        self.given = {f: captured.nodes_in(f.args, f.kwargs) for f in left if id(f) not in written}

    def need(self, node: fx.Node) -> bool:
        """Whether a value is for a call. What a call gets as an argument is needed for the call, even if nothing is
        done with it there; and so is what the call does with it.
        """
        given = self.given.get(self.captured.frame(node), ())
        reads = any(n in given and n.op != "placeholder" for n in node.all_input_nodes)
        return (node in self.passed or reads) and not reads_rank(node)


def handed(captured: Captured) -> set[fx.Node]:
    """Arguments of calls in which nothing reads them: as long as there is the call, they are computed for it."""
    found: set[fx.Node] = set()
    for frame in (frame for frame in captured.frames if id(frame) not in captured.opened):
        made = {node for node in captured.made_in[frame] if node.op.startswith("call")}
        given = captured.nodes_in(frame.args, frame.kwargs) if made else ()
        found |= {node for node in given if made.isdisjoint(node.users)}
    return found


def computing(captured: Captured, readers: Readers, reading: Reading) -> set[fx.Node]:
    """The nodes that compute a value, and do nothing else."""
    # A guard on parameters is none: it holds, as what is merged does not follow them either.
    others = {n for n in captured.graph.nodes if n in reading.sizes or n in reading.constants or is_guard(n.target)}
    pure = {n for n in captured.graph.nodes if reads_rank(n) or _only_computes(n, captured)}
    pure.update(_read_by_kind(captured, readers))
    return (pure.difference(captured.aliases.writers) | reading.read.keys()) - others


def _read_by_kind(captured: Captured, readers: Readers) -> Iterator[fx.Node]:
    """Functions and methods that a reader knows, whether it could read this call or not."""
    calls = (n for n in captured.graph.nodes if n.op in ("call_function", "call_method"))
    return (n for n in calls if readers.of_function(n.target) is not None and not is_random(n))


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
