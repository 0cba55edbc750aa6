"""Writes into a part of a tensor as values: what is read of the tensor afterwards is a value of its own.

``y[:, :4] += z`` changes what every name of y has from there on. Where no name but y itself is read later, this is
``part = y[:, :4] + z; y = overwrite_(y, (:, :4), part)``, in which each name has one value.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..capture.aliases import MAY_ALIAS, apart, target_of, wholes
from ..capture.captured import Captured
from ..layers.overwrite import is_static, overwrite_
from ..running.trees import map_leaves
from ..tracing.evaluate import evaluate_node
from ..tracing.frame import Frame

IN_PLACE = "in place"
"""What the meta of arithmetic has that the code does in place: where."""
OPERATORS: dict[object, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
"""Operators that write into their first operand, and what gives the same in a tensor of its own."""
FILLING = {"fill_": 2, "copy_": 2, "zero_": 1}
"""Methods that assign to all of a tensor, with how many arguments."""
NO_ARITHMETIC = frozenset({torch.Tag.inplace_view, torch.Tag.nondeterministic_seeded})


def plain(target: object) -> Any:
    """What gives the same in a tensor of its own: of ``x.mul_(y)`` that is ``x.mul(y)``; None for what draws numbers or
    makes a view.
    """
    if not isinstance(target, str):
        return OPERATORS.get(target)
    name = target[:-1]
    twin = target.endswith("_") and callable(getattr(Tensor, name, None))
    packet = getattr(torch.ops.aten, target, None) if twin else None
    tags = {tag for each in packet.overloads() for tag in getattr(packet, each).tags} if packet else NO_ARITHMETIC
    return None if tags & NO_ARITHMETIC else name


def note_overwrites(captured: Captured) -> None:
    """Remember of which layers code writes into the value: that stays so where a write is followed, or dropped."""
    written = {node for writer in captured.aliases.writers for node in captured.aliases.of(writer)}
    captured.code.written_over = {str(node.target) for node in written if node.op == "call_module"}


def follow_overwrites(captured: Captured) -> None:
    """Let every write into a part that can be followed give a value."""
    aliases, given = captured.aliases, _follow_from_inputs(captured.graph)
    found = [w for w in aliases.writers if w in aliases.barriers or any(apart(n, w) for n in aliases.of(w))]
    # What is written into parameter arithmetic is followed where that is computed.
    found = [w for w in found if not given.isdisjoint(w.all_input_nodes)]
    _unchain(captured, found)
    for writer in _latest_first(found):
        _Write(captured, writer).follow()


def _latest_first(writers: list[fx.Node]) -> Iterator[fx.Node]:
    """A write can be followed or not by what comes after it; of ``y[key] += z`` the sum comes before it is assigned."""
    done: set[fx.Node] = set()
    for writer in reversed(writers):
        value = writer.args[2] if writer.target is operator.setitem else None
        pair = [each for each in (value, writer) if each in writers and each not in done]
        done.update(pair)  # type: ignore[arg-type]
        yield from pair  # type: ignore[misc]


def _first(writer: fx.Node) -> Any:
    """What it writes into; None for a module that may write and gets all by name."""
    return writer.args[0] if writer.args else None


def _unchain(captured: Captured, writers: list[fx.Node]) -> None:
    """Let ``x.mul_(a).add_(b)`` be ``x.mul_(a); x.add_(b)``: what a write gives is what it writes into."""
    for writer in writers:
        first = _first(writer)
        if isinstance(first, fx.Node) and first in writers and (plain(first.target) or first.target in FILLING):
            whole = first.args[0]
            assert isinstance(whole, fx.Node)
            captured.hand_on({first: whole})
            first.replace_all_uses_with(whole)
            captured.forget()


def _follow_from_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The values that depend on an input of the model."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


class _Write:
    """One write: the views that lead to what it writes into, the innermost first."""

    def __init__(self, captured: Captured, writer: fx.Node) -> None:
        self.captured, self.writer = captured, writer
        self.aliases = captured.aliases
        self.now = self.aliases.order.get(writer, -1)
        self.row: list[fx.Node] = []

    def follow(self) -> None:
        """Replace it, if all that is read of the memory later is a name in the row, or a part beside it."""
        self.row = _row(_first(self.writer))
        if self.now < 0 or not self.row or not self._hands_on():
            return
        around = self.aliases.around(self.writer)
        if (new := self._replaced()) is not None:
            self._put_back(new)
            self.captured.forget()
            self.captured.aliases = self.aliases.changed(around)

    def _replaced(self) -> fx.Node | None:
        """The value that is there after the write, in the place of the write; None if it cannot be followed."""
        if not self._owns():
            return None
        if self.writer.target is operator.setitem and not self._reads_itself(self.writer.args[2]):
            return self._assigned(*self.writer.args[1:])
        if self._fills_part():
            key, self.row = self.row[0].args[1], self.row[1:]
            return self._assigned(key, self._filling)
        return self._computed() if self._is_arithmetic() and self._stays_apart() else None

    def _fills_part(self) -> bool:
        """Whether it assigns to all of a part, which by its own name nothing reads later."""
        fills = FILLING.get(str(self.writer.target)) == len(self.writer.args) and not self.writer.kwargs
        unread = not (self.writer.users or self._later(self.row[0]))
        return fills and len(self.row) > 1 and unread and not self._reads_itself(self._filling)

    @property
    def _filling(self) -> Any:
        """What is assigned to all of it."""
        return self.writer.args[1] if len(self.writer.args) > 1 else 0

    def _reads_itself(self, value: Any) -> bool:
        """Whether what is assigned may lie where it is written, and not in its very place."""
        if not isinstance(value, fx.Node) or value not in self.aliases.of(self.writer) or self._is_in_place(value):
            return False
        return not (apart(value, self.row[0]) or self.aliases.passes_by(self.writer, value))

    def _is_in_place(self, value: fx.Node) -> bool:
        """Whether a value was computed in the place that it is assigned to."""
        return value.meta.get(IN_PLACE) == self.row[0] and self.writer.target is operator.setitem

    def _stays_apart(self) -> bool:
        """Whether a value of its own is not seen to be one: nothing is written into it, nor where it would be as long
        as it is read.
        """
        order, names = self.aliases.order, self.aliases.of(self.writer)
        own = [n for n in names if self.writer in wholes(n) or (self._later(n) and self.row[0] in wholes(n))]
        last = max([self.now, *(order[user] for n in own for user in n.users if user in order)])
        later = [w for w in self.aliases.writers if w in names and order[w] > self.now]
        others = [w for w in later if not (self._is_own(w) or self.aliases.passes_by(w, self.row[0]))]
        return all(order[w] > last and w not in own for w in others)

    def _is_own(self, writer: fx.Node) -> bool:
        """Whether a write assigns the value to the place that it is from, as ``y[key] += z`` does."""
        return len(self.row) > 1 and writer.args == (self.row[1], self.row[0].args[1], self.writer)

    def _put_back(self, new: fx.Node) -> None:
        """Each value in what it is a slice of, as far as that, or what it is a slice of itself, is read."""
        for number, (view, whole) in enumerate(itertools.pairwise(self.row), start=1):
            if self._is_assigned(whole, new) or not any(map(self._later, self.row[number:])):
                return
            new = self._inserted(whole, view.args[1], new, passes=0)

    def _is_arithmetic(self) -> bool:
        """Whether a value of its own has the same numbers: it has the dtype and the shape of what is written into."""
        known = [n.meta.get("val") for n in (self.writer, *self.writer.all_input_nodes)]
        others = [a for a in self.writer.args[1:] if not isinstance(a, (int, float))]
        dtypes = {value.dtype for value in known if isinstance(value, Tensor)}
        shapes = {value.shape for value in (known[0], known[1]) if isinstance(value, Tensor)}
        certain = len(known) == len([v for v in known if isinstance(v, Tensor)]) and len(dtypes) == len(shapes) == 1
        return plain(self.writer.target) is not None and not self.writer.kwargs and (certain or not others)

    def _owns(self) -> bool:
        """Whether the forward made the memory, and no name of what is written is read later but those in the row."""
        older = [n for n in self.aliases.of(self.writer) if self.aliases.order[n] < self.now and n not in self.row]
        made = all(n.op not in ("placeholder", "get_attr") for n in (*older, *self.row))
        return made and not any(self._later(n) and not self.aliases.passes_by(self.writer, n) for n in older)

    def _later(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if self.aliases.order.get(user, self.now) > self.now]

    def _hands_on(self) -> bool:
        """Whether every call that got one of the names as an argument was over before the write, or came after it, or
        what is written in it is read in it alone, or in what it returns.
        """
        given = [frame for frame in self.captured.frames if self._is_given(frame)]
        return all(self._begins(f) is not None or self._is_left_to(f) for f in given)

    def _is_left_to(self, frame: Frame) -> bool:
        """Whether the write is in a call, and around the call nothing of it is read later but what the call returns."""
        made, order = set(self.captured.made_in[frame]), self.aliases.order
        names = [n for n in self.aliases.of(self.writer) if n in made or order[n] < self.now]
        around = {n for n in names if not (self.aliases.passes_by(self.writer, n) or made.issuperset(self._later(n)))}
        return self.writer in made and around <= self.captured.nodes_in(frame.output)

    def _is_given(self, frame: Frame) -> bool:
        return not self.captured.nodes_in(frame.args, frame.kwargs).isdisjoint(self.row)

    def _begins(self, frame: Frame) -> bool | None:
        """Whether a call comes after the write; None if it is not known, or the write is in it."""
        places = [self.aliases.order[n] for n in self.captured.made_in[frame] if n in self.aliases.order]
        later = {place > self.now for place in places}
        return later.pop() if len(later) == 1 and self.now not in places else None

    def _is_assigned(self, whole: fx.Node, part: fx.Node) -> bool:
        """Whether the next that is done to a value is to assign the part."""
        later = sorted(self._later(whole), key=self.aliases.order.__getitem__)
        return bool(later) and later[0].target is operator.setitem and later[0].args[::2] == (whole, part)

    def _assigned(self, key: Any, value: Any) -> fx.Node:
        # Python assigns what `y[key] += z` computed in place to the place once more, and torch copies it.
        new = self._inserted(self.row[0], key, value, passes=1)
        self.captured.replaced[self.writer] = new
        self.captured.graph.erase_node(self.writer)
        return new

    def _computed(self) -> fx.Node:
        """The write as plain arithmetic, under its own name."""
        self.writer.target = plain(self.writer.target)
        self.writer.meta.pop("writes", None)
        self.writer.meta[IN_PLACE] = self.row[-1]
        self._rename(self.row[0], self.writer)
        if isinstance(self.writer.meta.get("val"), FakeTensor):
            self.writer.meta["val"] = self.writer.meta["val"].clone()
            self._move_views(self.writer, self.writer.meta["val"].fake_mode)
        return self.writer

    def _move_views(self, node: fx.Node, mode: FakeTensorMode) -> None:
        """The views of a value are in its new memory."""
        for user in node.users:
            if user.args[:1] == (node,) and target_of(user) in MAY_ALIAS and user.op != "call_module":
                user.meta["val"] = evaluate_node(user, self.captured.root, mode)
                self._move_views(user, mode)

    def _inserted(self, whole: fx.Node, key: Any, part: Any, passes: int) -> fx.Node:
        """The whole with the part in its place, which is read as the whole from there on."""
        after = part if isinstance(part, fx.Node) and not part < self.writer else self.writer
        with self.captured.graph.inserting_after(after):
            new = self.captured.graph.call_function(overwrite_, (whole, key, part, passes))
        new.meta = {name: value for name, value in self.writer.meta.items() if name not in ("val", "writes", IN_PLACE)}
        new.meta |= {"val": whole.meta["val"]} if "val" in whole.meta else {}
        self._rename(whole, new)
        return new

    def _rename(self, old: fx.Node, new: fx.Node) -> None:
        later = set(self._later(old)) - {new, self.writer}
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user in later)
        around = self.captured.frame(self.writer).stack

        def renamed(leaf: Any) -> Any:
            return new if self._is(leaf, old) else leaf

        for frame in self.captured.frames:
            if frame in around or (self._is_given(frame) and self._begins(frame)):
                frame.output = map_leaves(renamed, frame.output)
            if frame not in around and self._is_given(frame) and self._begins(frame):
                frame.args, frame.kwargs = map_leaves(renamed, (frame.args, frame.kwargs))

    def _is(self, leaf: Any, node: fx.Node) -> bool:
        return isinstance(leaf, fx.Node) and self.captured.current(leaf) is node


def _row(target: Any) -> list[fx.Node]:
    """A value and what it is a slice of, and so on."""
    row = [target] if isinstance(target, fx.Node) else []
    while row and row[-1].target is operator.getitem and _is_slice(row[-1]):
        row.append(row[-1].args[0])  # type: ignore[arg-type]
    return row


def _is_slice(node: fx.Node) -> bool:
    """Whether a node takes slices of a tensor, with bounds that are known."""
    whole = node.args[0]
    value = whole.meta.get("val") if isinstance(whole, fx.Node) else None
    return isinstance(value, Tensor) and is_static(node.args[1])
