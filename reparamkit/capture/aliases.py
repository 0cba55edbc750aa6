"""Which values share memory, and what writing into one of them does to the others.

A graph with in-place operations runs its nodes in program order, so as it stands it is correct. Reading it
as formulas needs more: after a write every alias has another value. `Aliases` answers which writes are
harmless (nothing else reads the old memory) and which values must be left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

import networkx as nx
from torch import fx, nn

IN_PLACE_FUNCTIONS = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem})
MAY_ALIAS = frozenset(
    [
        "reshape",
        "view",
        "flatten",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "getitem",
        "expand",
        "narrow",
        "chunk",
        "split",
        "unflatten",
        "movedim",
        "swapaxes",
        "detach",
        "t",
        "T",
        "mT",
        "to",
        "type",
        "float",
        "unbind",
        "view_as",
        "reshape_as",
        "select",
        "diagonal",
        "dropout",
        "identity",
        "expand_as",
        "swapdims",
        "moveaxis",
        "tensor_split",
        "dsplit",
        "hsplit",
        "vsplit",
        "unfold",
        "real",
        "data",
        "alpha_dropout",
        "feature_dropout",
        "dropout2d",
        "dropout3d",
        "dropout1d",
        "type_as",
        "half",
        "double",
        "bfloat16",
        "cpu",
        "cuda",
        "getattr",
        "positive",
        "pos",
        "squeeze_multiple",
        "adjoint",
        "H",
        "ravel",
    ]
)


ModuleOf = Callable[[fx.Node], nn.Module]
"""The module that a call_module node calls."""


def target_name(node: fx.Node, module_of: ModuleOf) -> str:
    """The plain name of the function, method or module class a node calls."""
    if node.op == "call_module":
        return type(module_of(node)).__name__.lower()
    if node.op == "call_method":
        return str(node.target)
    # Overloads of an ATen operator write or alias as the operator does.
    target = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(target, "__name__", target))


def writes(node: fx.Node, module_of: ModuleOf) -> bool:
    """Whether a node writes into one of its arguments."""
    if not node.op.startswith("call") or not node.all_input_nodes:
        return False
    if node.op == "call_module":
        return bool(getattr(module_of(node), "inplace", False))
    name = target_name(node, module_of)
    in_place = node.target in IN_PLACE_FUNCTIONS or (name.endswith("_") and not name.endswith("__"))
    return in_place or node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None


class Aliases:
    """The alias classes of a graph and its writes, in program order."""

    def __init__(self, graph: fx.Graph, module_of: ModuleOf) -> None:
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.writers = [node for node in graph.nodes if writes(node, module_of)]
        self._memory = nx.Graph()
        self._memory.add_nodes_from(self.order)
        self._memory.add_edges_from((node, self.written(node)) for node in self.writers)
        self._memory.add_edges_from(
            (node, node.all_input_nodes[0])
            for node in graph.nodes
            if node.op.startswith("call") and node.all_input_nodes and target_name(node, module_of) in MAY_ALIAS
        )
        self._classes: dict[fx.Node, set[fx.Node]] = {
            n: part for part in nx.connected_components(self._memory) for n in part
        }
        self.barriers = self._barriers()

    def written(self, writer: fx.Node) -> fx.Node:
        """The value that an in-place operation writes into."""
        out = writer.kwargs.get("out")
        return out if isinstance(out, fx.Node) else writer.all_input_nodes[0]

    def of(self, node: fx.Node) -> set[fx.Node]:
        """The values that may share memory with `node`, itself included."""
        return self._classes[node]

    def writes_between(self, node: fx.Node, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """Writes into the memory of `node` after `start` and before `end`."""
        first, last = self.order[start], self.order[end]
        return [w for w in self.writers if first < self.order[w] < last and w in self.of(node)]

    def first_reader(self, node: fx.Node, members: Iterable[fx.Node]) -> fx.Node:
        """The first of some nodes to read a value; the value itself if none does."""
        return min((m for m in members if node in m.all_input_nodes), key=self.order.__getitem__, default=node)

    def writes_before(self, reader: fx.Node) -> list[fx.Node]:
        """Writes into what a node reads, after that was made and before it is read."""
        read = [n for n in reader.all_input_nodes if n in self.order]
        if reader not in self.order:
            return []
        return list(dict.fromkeys(w for n in read for w in self.writes_between(n, n, reader)))

    def _barriers(self) -> set[fx.Node]:
        """Values whose memory is written while something else can still see it: left as they are."""
        found: set[fx.Node] = set()
        for writer in self.writers:
            if not self._harmless(writer):
                found |= self.of(writer)
        return found

    def _harmless(self, writer: fx.Node) -> bool:
        """No older name of the memory is read after the write, and it is nobody else's."""
        if writer.target is operator.setitem or "out" in writer.kwargs:
            return False
        older = {n for n in self.of(writer) if self.order[n] < self.order[writer]}
        if any(n.op in ("placeholder", "get_attr") for n in older):
            return False
        return all(self.order[user] <= self.order[writer] for n in older for user in n.users)
