"""Which values share memory, and what writing into one of them does to the others.

A graph with in-place operations runs its nodes in program order, so as it stands it is correct. Reading it
as formulas needs more: after a write every alias has another value. `Aliases` answers which writes are
harmless (nothing else reads the old memory) and which values must be left alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import networkx as nx
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ..running.memory import memory
from ..running.trees import leaves
from ..sourcecode.writes import in_place, may_write

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
        "section",
        "even_part",
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
LOOKUPS = frozenset({"embedding", "embedding_bag"})
"""Functions that write into the table they are given, if its rows have a largest norm."""


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
    yield from _renormed(node) if name in LOOKUPS else ()
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


def _renormed(node: fx.Node) -> Iterator[fx.Node]:
    """The table whose rows a lookup scales to a largest norm."""
    given = dict(zip(("input", "weight", "", "max_norm"), node.args, strict=False)) | node.kwargs
    table = given.get("weight")
    if given.get("max_norm") is not None and isinstance(table, fx.Node):
        yield table


@dataclass(frozen=True)
class _Memory:
    """Of one node: what it writes into, what its value may be in the memory of, and where its value is known to lie."""

    written: tuple[fx.Node, ...]
    views: tuple[fx.Node, ...]
    places: tuple[int, ...]


class Aliases:
    """The alias classes of a graph and its writes, in program order. known: what is known of some of its nodes."""

    def __init__(self, graph: fx.Graph, module_of: ModuleOf, known: Mapping[fx.Node, _Memory] = MappingProxyType({})):
        self._graph, self._module_of = graph, module_of
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self._memory = {n: known[n] if n in known else _memory_of(n, module_of) for n in self.order}
        self.writers = [node for node, own in self._memory.items() if own.written]

    @cached_property
    def _classes(self) -> dict[fx.Node, set[fx.Node]]:
        """Of the nodes that share memory with others."""
        return {node: part for part in self._sharing(self._memory) for node in part}

    def _sharing(self, nodes: Iterable[fx.Node]) -> Iterator[set[fx.Node]]:
        """Those of some nodes that share memory among themselves."""
        first: dict[int, fx.Node] = {}
        shared = nx.Graph()
        for node in nodes:
            own = self._memory[node]
            same = (first.setdefault(place, node) for place in own.places)
            shared.add_edges_from((node, other) for other in (*own.written, *own.views, *same))
        yield from nx.connected_components(shared)

    def around(self, node: fx.Node) -> set[fx.Node]:
        """The values that may share memory with a node, and what reads them."""
        return self.of(node).union(*(name.users for name in self.of(node)))

    def changed(self, nodes: Set[fx.Node]) -> Aliases:
        """Those of the graph as it is now, where only these nodes are others than they were."""
        return Aliases(self._graph, self._module_of, {n: m for n, m in self._memory.items() if n not in nodes})

    def written(self, writer: fx.Node) -> fx.Node:
        """The value that an in-place operation writes into."""
        return next(written_by(writer, self._module_of))

    def of(self, node: fx.Node) -> set[fx.Node]:
        """The values that may share memory with `node`, itself included."""
        return self._classes.get(node, {node})

    def since(self, writer: fx.Node) -> set[fx.Node]:
        """The names of the memory that a write gives and that come after it."""
        return {n for n in self.of(writer) if self.order[n] >= self.order[writer]}

    def writes_between(self, node: fx.Node, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """Writes into the memory of `node`, after it was made, from `start` on and before `end`."""
        first, last = self.order[start], self.order[end]
        found = [w for w in self.writers if first <= self.order[w] < last and w in self.of(node) and w is not node]
        return [w for w in found if not self.passes_by(w, node)]

    def passes_by(self, writer: fx.Node, node: fx.Node) -> bool:
        """Whether a write is known to leave a value as it is, though their memory is one."""
        whole = self.written(writer)
        assigns = writer.target is operator.setitem or target_of(writer) == ASSIGNS
        return apart(node, whole) or (assigns and _beside_key(node, whole, writer.args[1]))

    def first_reader(self, node: fx.Node, members: Iterable[fx.Node]) -> fx.Node:
        """The first of some nodes to read a value; the value itself if none does."""
        return min((m for m in members if node in m.all_input_nodes), key=self.order.__getitem__, default=node)

    def writes_before(self, reader: fx.Node) -> list[fx.Node]:
        """Writes into what a node reads, after that was made and before it is read."""
        read = [n for n in reader.all_input_nodes if n in self.order]
        if reader not in self.order:
            return []
        return list(dict.fromkeys(w for n in read for w in self.writes_between(n, n, reader)))

    @cached_property
    def barriers(self) -> set[fx.Node]:
        """Values whose memory is written while something else can still see it: left as they are."""
        found: set[fx.Node] = set()
        for writer in self.writers:
            if not self._harmless(writer):
                found |= self.of(writer).difference(*self._apart_before(writer))
        return found

    def _apart_before(self, writer: fx.Node) -> Iterator[set[fx.Node]]:
        """The older values that a write leaves as they are: those that share memory with what is written from later on
        only, and of what code that was not traced may write into, what nothing sees afterwards: another argument may be
        somebody else's.
        """
        written = self._memory[writer].written
        several = writer.meta.get("opaque") and len(written) > 1
        for part in self._parts_before(writer):
            if part.isdisjoint(written) or (several and not any(self._is_seen_after(n, writer) for n in part)):
                yield part

    def _parts_before(self, writer: fx.Node) -> Iterator[set[fx.Node]]:
        """The values older than a write that are of its class, in parts that share memory when it is made."""
        older = {n for n in self.of(writer) if self.order[n] < self.order[writer]}
        shared = list(self._sharing(older))
        yield from (part & older for part in shared)
        yield from ({n} for n in older.difference(*shared))

    def _harmless(self, writer: fx.Node) -> bool:
        """No older name of the memory is read after the write, and it is nobody else's."""
        if writer.target is operator.setitem or "out" in writer.kwargs:
            return False
        older = [n for n in self.of(writer) if self.order[n] < self.order[writer] and self._is_seen_after(n, writer)]
        seen = {n for n in older if not self.passes_by(writer, n)}
        written = self._memory[writer].written
        return not seen or all(seen.isdisjoint(p) for p in self._parts_before(writer) if not p.isdisjoint(written))

    def _is_seen_after(self, node: fx.Node, writer: fx.Node) -> bool:
        """Whether a value is somebody else's as well, or is read after a write."""
        return node.op in ("placeholder", "get_attr") or any(self.order[u] > self.order[writer] for u in node.users)


SPLITS = frozenset({"chunk", "dsplit", "hsplit", "split", "split_with_sizes", "tensor_split", "unbind", "vsplit"})
"""Views of several parts, none of which meets another."""


def apart(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values are known to be different parts of one, whose numbers do not lie on one another."""
    row_a, row_b = list(wholes(a)), list(wholes(b))
    met = next(((i, row_b.index(whole)) for i, whole in enumerate(row_a) if whole in row_b), (0, 0))
    if 0 in met:
        return False
    part_a, part_b = row_a[met[0] - 1], row_b[met[1] - 1]
    return part_a.target is part_b.target and _is_plain(row_a[met[0]]) and _differ(part_a, part_b)


ASSIGNS = "overwrite_"
"""The name of a function that writes its third argument into its first, where its second says."""


def _beside_key(node: fx.Node, whole: fx.Node, key: object) -> bool:
    """Whether a value is known to be a part of another, and none of its numbers are in the part that a key names."""
    row = list(wholes(node))
    part = row[row.index(whole) - 1] if whole in row[1:] else None
    return part is not None and part.target is operator.getitem and _is_plain(whole) and _keys_differ(part.args[1], key)


def wholes(node: fx.Node) -> Iterator[fx.Node]:
    """A value, what it is a view of, or what was written into to make it, and so on."""
    while True:
        yield node
        whole = node.args[0] if node.args and node.op in ("call_function", "call_method") else None
        name = target_of(node)
        if not isinstance(whole, fx.Node) or not (name in MAY_ALIAS or in_place(name)):
            return
        node = whole


def _is_plain(whole: fx.Node) -> bool:
    """Whether no two numbers of a value, or of what its parts are of, are known to share a place."""
    split = target_of(whole) in SPLITS and whole.args
    value = whole.args[0].meta.get("val") if split and isinstance(whole.args[0], fx.Node) else whole.meta.get("val")
    return isinstance(value, Tensor) and value.layout is torch.strided and not _overlaps(value)


def _overlaps(value: Tensor) -> bool:
    """Whether two numbers of a tensor may share a place."""
    span = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride < span:
            return True
        span += stride * (size - 1)
    return False


PARTS = {"part": 4, "chunk": 4, "section": 4, "even_part": 4, "taken": 3, "select": 3}
"""Calls that give one part, with how many arguments: the last is its number."""


def _differ(a: fx.Node, b: fx.Node) -> bool:
    """Whether two calls take different parts of one value."""
    if a.target is operator.getitem:
        return _keys_differ(a.args[1], b.args[1])
    one_kind = a.args[:-1] == b.args[:-1] and not (a.kwargs or b.kwargs)
    return one_kind and PARTS.get(target_of(a)) == len(a.args) and _beside(a.args[-1], b.args[-1])


def _keys_differ(a: object, b: object) -> bool:
    """Whether two keys of one value name parts that do not meet along a dimension, counted from the first."""
    keys = [key if isinstance(key, tuple) else (key,) for key in (a, b)]
    return all(isinstance(k, (int, slice)) for key in keys for k in key) and any(map(_beside, *keys))


def target_of(node: fx.Node) -> str:
    """The plain name of a function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def _beside(a: object, b: object) -> bool:
    """Whether two keys of one dimension name different positions, counted from the begin."""
    ranges = [position_range(key) for key in (a, b)]
    return None not in ranges and (ranges[0][1] <= ranges[1][0] or ranges[1][1] <= ranges[0][0])  # type: ignore[index]


def position_range(key: object) -> tuple[float, float] | None:
    """The first position that a key of one dimension names, and that behind the last; None if they are not known."""
    if type(key) is int and key >= 0:
        return key, key + 1
    if not isinstance(key, slice) or key.step not in (None, 1):
        return None
    start, stop = key.start or 0, math.inf if key.stop is None else key.stop
    known = all(type(n) is int or n == math.inf for n in (start, stop)) and start >= 0 and stop >= 0
    return (start, stop) if known else None


def _may_share(node: fx.Node, module_of: ModuleOf) -> Iterator[fx.Node]:
    """The arguments whose memory the value of a node may be in, as far as its name tells."""
    if not node.op.startswith("call") or not node.all_input_nodes or _is_number(node):
        return
    if node.meta.get("opaque"):
        yield from (each for each in node.all_input_nodes if not _is_number(each))
    elif target_name(node, module_of) in MAY_ALIAS | MAY_COMPUTE and not _contracts(node):
        yield node.all_input_nodes[0]


def _contracts(node: fx.Node) -> bool:
    """Whether a node computes products of several tensors; of one alone, the same call may be a view."""
    return target_of(node) == "einsum" and len(node.all_input_nodes) > 1


def _is_number(node: fx.Node) -> bool:
    """Whether the value of a node is known to be a number, or several, as a size is: it is in no tensor's memory."""
    value = node.meta.get("val")
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(isinstance(each, (int, float)) for each in numbers)


def _memory_of(node: fx.Node, module_of: ModuleOf) -> _Memory:
    tensors = (leaf for leaf in leaves(node.meta.get("val")) if isinstance(leaf, Tensor))
    places = (memory(tensor) for tensor in tensors if tensor.layout is torch.strided)
    return _Memory((*written_by(node, module_of),), (*_may_share(node, module_of),), (*places,))
