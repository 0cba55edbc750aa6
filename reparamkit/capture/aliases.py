"""Which values share memory, and what writing into one of them does to the others.

A graph with in-place operations runs its nodes in program order, so as it stands it is correct. Reading it
as formulas needs more: after a write every alias has another value. `Aliases` answers which writes are
harmless (nothing else reads the old memory) and which values must be left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ..sourcecode.writes import IN_PLACE, in_place, may_write
from .trees import leaves

IN_PLACE_FUNCTIONS = frozenset(getattr(operator, name) for name in IN_PLACE)
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
        "alphadropout",
        "featurealphadropout",
        "as_strided",
        "as_tensor",
        "asarray",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "broadcast_tensors",
        "broadcast_to",
        "imag",
        "part",
        "taken",
        "split_with_sizes",
        "unsafe_chunk",
        "unsafe_split",
        "view_as_complex",
        "view_as_real",
    ]
)
"""Views, and what may return its argument as it is."""
MAY_COMPUTE = frozenset({"einsum", "sum_to_size"})
"""What may be a view, or compute something."""
STATISTICS = frozenset({"batch_norm", "instance_norm"})
"""Functions that write into the statistics they are given, if they use those of the batch."""


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
    return any(True for _ in written_by(node, module_of))


def written_by(node: fx.Node, module_of: ModuleOf) -> Iterator[fx.Node]:
    """The arguments that a node writes into, as far as its name tells, or what it did to values that are known."""
    if not node.op.startswith("call") or not node.all_input_nodes:
        return
    yield from _seen_to_be_written(node)
    if node.op == "call_module":
        yield from _written_by_module(node, module_of(node))
        return
    name = target_name(node, module_of)
    outs = [leaf for leaf in leaves(node.kwargs.get("out")) if isinstance(leaf, fx.Node)]
    yield from outs
    yield from _statistics(node) if name in STATISTICS else ()
    if (in_place(name) or node.kwargs.get("inplace")) and not outs:
        yield node.all_input_nodes[0]


def _seen_to_be_written(node: fx.Node) -> list[fx.Node]:
    """The arguments that were written into when the node ran on values that are known."""
    inputs, seen = node.all_input_nodes, node.meta.get("writes", [])
    if len(inputs) != len(seen):
        return inputs if any(seen) else []
    return [n for n, written in zip(inputs, seen, strict=True) if written]


def _written_by_module(node: fx.Node, module: nn.Module) -> Iterator[fx.Node]:
    if node.meta.get("opaque"):
        yield from node.all_input_nodes if may_write(module) else ()
    elif getattr(module, "inplace", False):
        yield node.all_input_nodes[0]


def _statistics(node: fx.Node) -> Iterator[fx.Node]:
    """What a norm that uses the statistics of the batch writes into."""
    names = {"training", "use_input_stats"} & node.kwargs.keys()
    flag = node.args[5] if len(node.args) > 5 else any(node.kwargs[name] for name in names)
    first = 1 if getattr(node.target, "__module__", "") == functional.__name__ else 3
    running = (*node.args[first : first + 2], node.kwargs.get("running_mean"), node.kwargs.get("running_var"))
    yield from (each for each in running if flag and isinstance(each, fx.Node))


class Aliases:
    """The alias classes of a graph and its writes, in program order."""

    def __init__(self, graph: fx.Graph, module_of: ModuleOf) -> None:
        self._module_of = module_of
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.writers = [node for node in graph.nodes if writes(node, module_of)]
        self._memory = nx.Graph()
        self._memory.add_nodes_from(self.order)
        self._memory.add_edges_from((node, other) for node in self.writers for other in written_by(node, module_of))
        self._memory.add_edges_from((node, other) for node in graph.nodes for other in _may_share(node, module_of))
        self._memory.add_edges_from(_sharing(graph))
        self._classes: dict[fx.Node, set[fx.Node]] = {
            n: part for part in nx.connected_components(self._memory) for n in part
        }
        self.barriers = self._barriers()

    def written(self, writer: fx.Node) -> fx.Node:
        """The value that an in-place operation writes into."""
        return next(written_by(writer, self._module_of))

    def of(self, node: fx.Node) -> set[fx.Node]:
        """The values that may share memory with `node`, itself included."""
        return self._classes[node]

    def writes_between(self, node: fx.Node, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """Writes into the memory of `node`, after it was made, from `start` on and before `end`."""
        first, last = self.order[start], self.order[end]
        return [w for w in self.writers if first <= self.order[w] < last and w in self.of(node) and w is not node]

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


def _may_share(node: fx.Node, module_of: ModuleOf) -> Iterator[fx.Node]:
    """The arguments whose memory the value of a node may be in, as far as its name tells."""
    if not node.op.startswith("call") or not node.all_input_nodes or _is_number(node):
        return
    if node.meta.get("opaque"):
        yield from (each for each in node.all_input_nodes if not _is_number(each))
    elif target_name(node, module_of) in MAY_ALIAS | MAY_COMPUTE:
        yield node.all_input_nodes[0]


def _is_number(node: fx.Node) -> bool:
    """Whether the value of a node is known to be a number, or several, as a size is: it is in no tensor's memory."""
    value = node.meta.get("val")
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(isinstance(each, (int, float)) for each in numbers)


def _sharing(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pairs of nodes whose values, where they are known, share memory."""
    first: dict[int, fx.Node] = {}
    for node in graph.nodes:
        for leaf in leaves(node.meta.get("val")):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                yield first.setdefault(leaf.untyped_storage()._cdata, node), node
