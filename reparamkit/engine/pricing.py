"""What the nodes of a model cost as they are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx, nn

from ..algebra.form import Form
from ..algebra.operator import Operator, pin, seen_dims, with_rank
from ..algebra.size import Pin, Size, Symbol
from ..capture.captured import Captured
from ..capture.reach import reached
from ..layers.price import Cost, numel
from .counting import reads_number, reads_rank, reads_shape
from .placing import layer_cost, node_cost
from .reading import Reading


@dataclass(eq=False)
class Prices:
    """Of the nodes of a graph, as far as it has been read. passes: nodes that are affine over earlier values only.
    numbers, inside: what was asked before.
    """

    captured: Captured
    reading: Reading
    passes: set[fx.Node] = field(default_factory=set)
    numbers: dict[fx.Node, int] = field(default_factory=dict)
    inside: dict[tuple[fx.Node, frozenset[tuple[Symbol, Pin]]], Cost] = field(default_factory=dict)

    def cost(self, node: fx.Node, form: Form | None = None) -> Cost:
        """The price of a node as it is; nothing if it is not affine, since it stays in every plan. form: its own, where
        more is known of its sizes.
        """
        if node in self.reading.read:
            own = node_cost(self.reading, node, self.stored(node), form)
            return own + Cost(launches=self.reading.arithmetic(node))
        if node in self.reading.sums:
            return layer_cost(self.reading.sums[node], 0)
        if node in self.passes:
            # Affine, but only over earlier values: at least one element-wise pass.
            launches = 1 + self.reading.arithmetic(node)
            return Cost(0, numel(self.reading.shapes[node][0]), self.stored(node), launches)
        return Cost()

    def cost_inside(self, node: fx.Node, pins: Mapping[Symbol, Pin]) -> Cost:
        """The price of a node for the sizes that a merge around it fixes."""
        form = self.reading.read.get(node)
        form = form.mapped(lambda op: _in_sight(op, pins)) if form and pins else None
        known = {s: pins[s] for s in form.symbols if s in pins} if form else {}
        key = node, frozenset(known.items())
        if key not in self.inside:
            self.inside[key] = self.cost(node, form.mapped(lambda op: pin(op, known)) if form and known else None)
        return self.inside[key]

    def stored(self, node: fx.Node) -> int:
        """Numbers in the parameters and buffers a node reads; of those that others read as well, its part."""
        if node not in self.numbers:
            self.numbers[node] = self._count(node)
        return self.numbers[node]

    def repeated(self, nodes: Iterable[fx.Node]) -> int:
        """Numbers of modules that several of these nodes call: each of them counts all, and they are there once."""
        calls = [node for node in nodes if node.op == "call_module"]
        once = {self.captured.module(node): node for node in calls}
        return sum(map(self.stored, calls)) - sum(map(self.stored, once.values()))

    def shift(self, node: fx.Node) -> int:
        """How many of the numbers that a node reads are a bias."""
        form = self.reading.read.get(node)
        if form is None or form.bias is None:
            return 0
        return min(self.stored(node), math.prod(link.leg_size for link in form.bias.links if link.has_leg))

    def staying(self, gone: Set[fx.Node]) -> int:
        """Numbers of which nodes that go were said to read a part, and that stay since others read them."""
        modules = {self.captured.module(node) for node in gone if node.op == "call_module"}
        read = [(node, tensor, count) for node in gone for tensor, count in self._tensors(node)]
        parts = ((self._part(node, tensor, count), self._read_by(tensor)) for node, tensor, count in read)
        return sum(part for part, readers in parts if {*readers} - gone - modules)

    def _count(self, node: fx.Node) -> int:
        return sum(self._part(node, tensor, count) for tensor, count in self._tensors(node))

    def _part(self, node: fx.Node, tensor: Tensor, count: int) -> int:
        """How many of the numbers of a tensor a node counts: those that all its readers count are all there are."""
        readers = self._read_by(tensor)
        reader = self.captured.module(node) if node.op == "call_module" else node
        place = readers.index(reader) if reader in readers else 0
        return count * (place + 1) // max(1, len(readers)) - count * place // max(1, len(readers))

    def _tensors(self, node: fx.Node) -> list[tuple[Tensor, int]]:
        """The parameters and buffers that a node reads, with how many numbers of them. (Tensors that code makes, or
        keeps otherwise, are not stored with the model; as part of a merged layer they would be.)
        """
        if node.op == "call_module":
            module = self.captured.module(node)
            return [(t, t.numel()) for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        read = [(self._parameter(n), self.reading.constants[n].numel()) for n in self._leaves(node)]
        return [(tensor, count) for tensor, count in read if id(tensor) in self._of_model]

    def _parameter(self, leaf: fx.Node) -> Tensor:
        found = self.captured.attribute(leaf)
        assert isinstance(found, Tensor)
        return found

    def _read_by(self, parameter: Tensor) -> list[nn.Module | fx.Node]:
        """The modules that have a parameter, and the nodes that are no parameter arithmetic and read it, or what is
        computed from it.
        """
        owners, leaves = self._readers.get(id(parameter), ({}, {}))
        constants = self.reading.constants.keys()
        below = reached(leaves, lambda n: readers_of(n) if n in constants or n in leaves else [])
        return [*owners, *(n for n in below if n not in constants and n not in leaves)]

    @cached_property
    def _of_model(self) -> set[int]:
        return {id(tensor) for tensor in (*self.captured.root.parameters(), *self.captured.root.buffers())}

    @cached_property
    def _readers(self) -> dict[int, tuple[dict[nn.Module, None], dict[fx.Node, None]]]:
        """Per tensor the modules called that have it, and the nodes that are it, in the order of the code."""
        found: dict[int, tuple[dict[nn.Module, None], dict[fx.Node, None]]] = defaultdict(lambda: ({}, {}))
        for node in self.captured.graph.nodes:
            if node.op == "call_module":
                module = self.captured.module(node)
                for tensor in (*module.parameters(), *module.buffers()):
                    found[id(tensor)][0][module] = None
            elif node.op == "get_attr":
                found[id(self.captured.attribute(node))][1][node] = None
        return found

    def _leaves(self, node: fx.Node) -> set[fx.Node]:
        """The parameters a node reads, each once however often its value is computed from it."""
        constants = self.reading.constants
        found = reached([node], lambda n: [m for m in self.reading.made_of(n) if m in constants])
        return {n for n in found if n.op == "get_attr" and n is not node}

    def weigh(self, name: str) -> int:
        """Numbers stored at the node of this name; the place of a call that was taken apart is not free."""
        node = self.captured.named[name]
        return -1 if node in self.captured.apart else self.stored(node)

    def sizes_of(self, name: str) -> tuple[Size, ...]:
        """The sizes of the value of the node of this name."""
        return self.reading.shapes[self.captured.named[name]][0]


def _in_sight(op: Operator, pins: Iterable[Symbol]) -> Operator:
    """An operator with those dimensions of its source in sight of which these sizes are."""
    if not (op.open_rank and op.source):
        return op
    return with_rank(op, len(op.value) - len(op.source) + seen_dims(op, pins))


def readers_of(node: fx.Node) -> list[fx.Node]:
    """What reads the numbers of a value; its shape is that of another value as well."""
    return [user for user in node.users if not (reads_shape(user) or reads_rank(user) or reads_number(user))]
