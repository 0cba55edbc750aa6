"""Let code that reads a size read it from the earliest value that has it, so that no layer is kept for its shape."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..algebra.operator import Operator, Role
from ..algebra.size import Size
from ..capture.aliases import target_of
from ..capture.captured import Captured
from ..capture.reach import reached
from ..tracing.frame import Frame
from ..tracing.guards import expect
from .absorb import scales
from .counting import OpenShape, Shape, calculated, reads_rank
from .reading import Reading

Place = tuple[fx.Node, int | None]
"""A value and a dimension of it; None: their number is meant."""
SHAPE_ARGUMENTS = frozenset({"reshape", "view", "expand", "unflatten"})
"""Calls that take a tuple of sizes."""


def read_early(captured: Captured, reading: Reading) -> None:
    """Rewrite the size reads of a graph: ``conv(x).shape[0]`` becomes ``x.shape[0]``.

    The sizes are equal for every input, or nothing is changed. The new node's "also" lists the (tensor, dimension)
    pairs at which the code read it, for methods that do not see the earlier value. `captured.unused` is told of the
    values whose sizes the user's own code still reads.
    """
    _Sizes(captured, reading).run()
    captured.forget()


@dataclass(eq=False)
class _Sizes:
    captured: Captured
    reading: Reading
    made: dict[tuple[fx.Node, int | None, Frame], fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = {node: k for k, node in enumerate(self.captured.graph.nodes)}
        self.passed = self.captured.passed
        self.own = _grouped((node, self.captured.frame(node)) for node in self.order)
        self.below = _grouped((f.output, f.parent) for f in self.captured.frames)
        self.begins: dict[Frame, int] = {}
        for node, k in self.order.items():
            for call in self.captured.frame(node).stack:
                self.begins.setdefault(call, k)

    def run(self) -> None:
        for node in list(self.captured.graph.nodes):
            if node.target is expect and not node.all_input_nodes:
                # A number that is known for all inputs needs no check.
                self.captured.graph.erase_node(node)
            elif not node.users:
                continue
            elif not node.all_input_nodes:
                if node not in self.passed:
                    self._fold(node)
            elif (value := _wanted(node, self.reading)) is not None:
                self._redirect(node, value)
        # Of a shape whose sizes are not all there to read, those that are have been made for nothing.
        for read in self.made.values():
            if not read.users:
                self.captured.graph.erase_node(read)

    # --- where a size can be read ----------------------------------------------------------------

    def _expressed(self, value: Any, node: fx.Node) -> Any:
        """A number, a node, or a tuple of them, that has the value; None if only this node has it."""
        if isinstance(value, tuple):
            parts = [self._expressed(part, node) for part in value]
            return None if None in parts or not _takes_tuple(node) else tuple(parts)
        if isinstance(value, Size) and value.known:
            return None if self._may_vary(node, value) else value.factor
        tensor = _tensor(node, self.reading)
        places, (sizes, open_rank) = self._seen(value, node, tensor), self.reading.shape_of(tensor)
        if not places or not (isinstance(value, _Rank) or (value in sizes and not open_rank)):
            return None
        read = self._read(*places.pop(), node)
        dim = None if isinstance(value, _Rank) else sizes.index(value)
        read.meta["also"] += [(tensor, dim), *places]
        return read

    def _may_vary(self, node: fx.Node, size: Size) -> bool:
        """Whether a number that was a literal when it was traced is what code around this call made of a size; not if
        it is that of a weight.
        """
        decided = self.captured.decided_outside(node, self.captured.frame(node))
        return decided and not self._is_made(_tensor(node, self.reading), size)

    def _is_made(self, tensor: fx.Node, size: Size) -> bool:
        """Whether a layer gives every dimension of this size, for inputs of any size."""
        form = self.reading.read.get(tensor)
        return form is not None and bool(form.terms) and all(_makes(term.op, size) for term in form.terms.values())

    def _seen(self, value: Any, node: fx.Node, tensor: fx.Node) -> list[Place]:
        """The values that have a size, from the innermost call that sees one on. The last is where to read it: the
        first that stays, or the only one, which may merge into the next, if none does: a later one that stays, or one
        that the tensor is computed from, as others may be of no further use, or the last of its shape that is computed
        of the tensor, which a merge of all of them gives. None, if the tensor itself stays.
        """
        affine = self.reading.read
        calls = reversed(self.captured.frame(node).stack)
        places = [place for call in calls for place in self._places(value, call, self.order[tensor])]
        stays = next((k for k, (other, _) in enumerate(places) if other not in affine), None)
        if stays is not None:
            return places[: stays + 1]
        if self._stays(tensor):
            return []
        later, made = self._later(value, node, tensor)
        if later:
            return later[:1]
        used = reached([tensor], lambda n: n.all_input_nodes) if len(places) > 1 else []
        return ([place for place in places if place[0] in used] or places)[:1] or made[-1:]

    def _stays(self, value: fx.Node) -> bool:
        """Whether a value is not affine, or read by what is not: a merge may give it, and does not swallow it."""
        known = self.reading.read.keys() | self.reading.sizes.keys()
        return value not in self.reading.read or any(user not in known for user in value.users)

    def _later(self, value: Any, node: fx.Node, tensor: fx.Node) -> tuple[list[Place], list[Place]]:
        """The values with this size that the code computes after the tensor, and before it uses the size: those that
        stay, and if there are none those that are computed of the tensor and have its shape.
        """
        frame, end = self.captured.frame(node), min(self.order[user] for user in node.users)
        places = [place for place in self._places(value, frame, end) if self.order[place[0]] > self.order[tensor]]
        stays = [place for place in places if self._stays(place[0])]
        made = reached([tensor], lambda n: n.users) if places and not stays else []
        shape = self.reading.shape_of(tensor)
        return stays, [place for place in places if place[0] in made and self.reading.shape_of(place[0]) == shape]

    def _places(self, value: Any, frame: Frame, end: int) -> Iterator[Place]:
        """Values with this size that a call sees before position `end`."""
        for other in self._visible(frame):
            if self.order[other] >= end:
                break
            sizes, open_rank = self.reading.shape_of(other)
            if isinstance(value, _Rank):
                if _rank(self.reading.shapes[other]) == value:
                    yield other, None
            elif value in sizes and not open_rank:
                yield other, sizes.index(value)

    def _visible(self, frame: Frame) -> list[fx.Node]:
        """Values that the code of a call can see, in program order."""
        nodes = self.captured.nodes_in(frame.args, frame.kwargs, self.below.get(frame, []), self.own.get(frame, []))
        # What nothing reads has left the graph, though a call still returns it.
        found = nodes.intersection(self.order, self.reading.shapes)
        return sorted((n for n in found if n.op != "get_attr"), key=self.order.__getitem__)

    def _read(self, other: fx.Node, dim: int | None, like: fx.Node) -> fx.Node:
        # One call cannot read what another call has read.
        home = self._home(other, like)
        key = other, dim, home
        if key not in self.made:
            graph = self.captured.graph
            # An argument may be written to before the call that reads its size begins.
            inside = home in self.captured.frame(other).stack
            with graph.inserting_after(other) if inside else graph.inserting_before(like):
                read = size_of(graph, other, dim)
            read.meta = {**like.meta, "frame": home, "also": []}
            read.meta.pop("val", None)
            value = other.meta.get("val")
            if isinstance(value, torch.Tensor):
                read.meta["val"] = value.dim() if dim is None else value.shape[dim]
            self.made[key] = read
        return self.made[key]

    def _home(self, other: fx.Node, like: fx.Node) -> Frame:
        """The innermost call around the read that sees the value."""
        return next(f for f in reversed(self.captured.frame(like).stack) if other in self._visible(f))

    def _fold(self, node: fx.Node) -> None:
        """Arithmetic of numbers that were sizes."""
        number = calculated(node, node.args)
        if number is not None:
            _replace(node, number)
            self.captured.graph.erase_node(node)

    def _redirect(self, node: fx.Node, value: Any) -> None:
        found = self._expressed(value, node)
        if found is None or (node in self.passed and not self._hands_on(node, found)):
            return
        _replace(node, found)
        tensor = _tensor(node, self.reading)
        self._left_unused(tensor, value)
        while node is not tensor and not node.users and node not in self.passed:
            before = node.all_input_nodes[0]
            self.captured.graph.erase_node(node)
            node = before

    def _left_unused(self, tensor: fx.Node, value: Any) -> None:
        """The code of the model still reads the value from a tensor, if it stays."""
        if isinstance(value, _Rank):
            self.captured.unused.ranks.add(tensor)
        else:
            self.captured.unused.shapes[tensor] = self.reading.shapes[tensor]

    def _hands_on(self, node: fx.Node, found: Any) -> bool:
        """Let calls take and return another node in the place of one, if the code that made it has that one in time."""
        if not isinstance(found, fx.Node) or self.captured.frame(found) is not self.captured.frame(node):
            return False
        given = (f for f in self.captured.frames if node in self.captured.nodes_in(f.args, f.kwargs))
        read = self.order[found.all_input_nodes[0]]
        if any(self.begins.get(call, 0) <= read for call in given):
            return False
        self.captured.hand_on({node: found})
        self.passed = self.passed - {node} | {found}
        return True


def _grouped(pairs: Iterable[tuple[Any, Frame | None]]) -> dict[Frame | None, list[Any]]:
    found: dict[Frame | None, list[Any]] = {}
    for what, frame in pairs:
        found.setdefault(frame, []).append(what)
    return found


def size_of(graph: fx.Graph, tensor: fx.Node, dim: int | None) -> fx.Node:
    """A node for the size of a dimension, or (None) for the number of dimensions."""
    return graph.call_method("dim", (tensor,)) if dim is None else graph.call_method("size", (tensor, dim))


@dataclass(frozen=True)
class _Rank:
    """A number of dimensions: of an open tensor so many more, or a number."""

    tensor: object
    more: int


def _rank(shape: Shape) -> _Rank:
    sizes, open_rank = shape
    if not open_rank:
        return _Rank(None, len(sizes))
    tensor, taken = sizes[0].symbols[0].origin
    assert isinstance(taken, int)
    return _Rank(tensor, len(sizes) - 1 - taken)


def _replace(node: fx.Node, found: Any) -> None:
    """Let every reader of a node have a number, another node, or a tuple of them."""
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: found if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: found if n is node else n)


def _makes(op: Operator, size: Size) -> bool:
    dims = [dim for dim, each in zip(op.value, op.value_sizes, strict=True) if each == size]
    return bool(dims) and all(op.links[i].role is Role.OUT for dim in dims for i in dim)


def _wanted(node: fx.Node, reading: Reading) -> Any:
    """What a node that reads a shape (or one entry of it) gives, if it is known; else None."""
    source = node.all_input_nodes[0]
    if source in reading.shapes and reads_rank(node):
        return _rank(reading.shapes[source])
    value = reading.sizes.get(node)
    simple = isinstance(value, Size) or (isinstance(value, tuple) and all(isinstance(s, Size) for s in value))
    if not (simple and _is_read(node, reading)):
        return None
    # Where a shape is given, what a layer fixes is not told: which value has that shape is seen by its sizes.
    return reading.told(value) if _is_factor(node, reading) else value


def _is_factor(number: fx.Node, reading: Reading) -> bool:
    """Whether values are multiplied by a number, or by what code makes of it, and nothing else is done with it."""
    return all(scales(reading, user) or (user in reading.sizes and _is_factor(user, reading)) for user in number.users)


def _is_read(node: fx.Node, reading: Reading) -> bool:
    """A shape, or an entry of one; not arithmetic with sizes."""
    inputs = node.all_input_nodes
    if len(inputs) == 1 and inputs[0] not in reading.shapes:
        return isinstance(reading.sizes.get(inputs[0]), (tuple, OpenShape)) and _is_read(inputs[0], reading)
    return len(inputs) == 1


def _tensor(node: fx.Node, reading: Reading) -> fx.Node:
    """The tensor whose shape is read."""
    source = node.all_input_nodes[0]
    return source if source in reading.shapes else _tensor(source, reading)


def _takes_tuple(node: fx.Node) -> bool:
    """Whether every reader of a shape only passes it on to a reshape, or compares it."""
    others = [user for user in node.users if user.target not in (operator.eq, operator.ne)]
    return all(target_of(user) in SHAPE_ARGUMENTS and user.args[0] is not node for user in others)
