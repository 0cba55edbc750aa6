"""What is known of each node of a captured graph: the forms that its value can be computed by, and its sizes.

A value keeps few forms: itself (taken as computed), the cheapest, and the one that reaches back furthest, since
low-rank paths and branches pay only at a later sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ..algebra.form import Form, source_form
from ..algebra.operator import pin
from ..algebra.regroup import told_rank
from ..algebra.size import Pin, Share, Size, Symbol, solved
from ..capture.aliases import MAY_ALIAS, target_name
from ..capture.captured import Captured
from ..layers.wide import computes_weight
from ..reasons import Reason
from .counting import Shape
from .memo import Memo
from .parts import all_parts
from .ranks import certain_rank


@dataclass(frozen=True, eq=False)
class Candidate:
    """A form of a value and the nodes that it replaces."""

    form: Form
    members: frozenset[fx.Node]


@dataclass
class Reading:
    """What is known of each node.

    forms: per value its candidates; the last is the value itself.
    constants: values that depend on parameters only, in float64: tensors, tuples of them, numbers; None for a guard.
    writes: in-place operations on such values, with the value that each writes into.
    sizes: Python numbers (or tuples of them) that are sizes.
    read: nodes that are affine in their inputs, with the form over those inputs. sums: those that sum over a free size.
    moves: nodes that only move numbers, with the number of operations that takes.
    facts: free sizes that a layer has fixed: no input of another size goes on.
    met: free sizes that some call meets as numbers, so that a merge there holds for these numbers only. stuck: those of
        values of which a longer form could not be read. assumed: sizes to try where nothing else can be read.
    reasons: why a node, or a longer form through it, could not be read.
    memo: what earlier readings of the graph found out.
    """

    captured: Captured
    forms: dict[fx.Node, list[Candidate]] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    writes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    sizes: dict[fx.Node, Any] = field(default_factory=dict)
    shapes: dict[fx.Node, Shape] = field(default_factory=dict)
    read: dict[fx.Node, Form] = field(default_factory=dict)
    sums: dict[fx.Node, Form] = field(default_factory=dict)
    moves: dict[fx.Node, int] = field(default_factory=dict)
    facts: dict[Symbol, Pin] = field(default_factory=dict)
    met: dict[Symbol, int] = field(default_factory=dict)
    stuck: set[Symbol] = field(default_factory=set)
    assumed: Mapping[Symbol, int] = field(default_factory=dict)
    reasons: dict[fx.Node, list[Reason]] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo)

    def arithmetic(self, node: fx.Node) -> int:
        """How many operations on parameters only are done for the sake of a node."""
        before: set[fx.Node] = set()
        stack = [node]
        while stack:
            new = [n for n in self.made_of(stack.pop()) if n in self.constants and n not in before]
            before.update(new)
            stack += new
        weight = node.op == "call_module" and computes_weight(self.captured.module(node))
        return weight + sum(n.op.startswith("call") and n not in self.sizes and not self._is_view(n) for n in before)

    def _is_view(self, node: fx.Node) -> bool:
        return target_name(node, self.captured.module) in MAY_ALIAS

    def spend(self) -> None:
        """Let go of the numbers of all forms; what was chosen has its own."""
        self.forms.clear()
        self.read = {node: form.spent() for node, form in self.read.items()}

    def made_of(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads, and what is written into its value."""
        written = (n for w, value in self.writes.items() if value is node for n in w.all_input_nodes if n is not node)
        return [*node.all_input_nodes, *written]

    def learn(self, form: Form) -> None:
        """Keep the sizes that the layers of a form fix; not of one that may be none, where a guard fails."""
        if form.guards:
            return
        self.facts.update((symbol, size) for symbol, size in form.pins.items() if not symbol.stands_for_dims)

    def meet(self, pins: Iterable[tuple[Symbol, Pin]]) -> None:
        """Keep the sizes that were numbers for the example inputs, and are where some call meets them."""
        self.met.update((symbol, pin) for symbol, pin in pins if symbol.traced and pin == symbol.hint)

    @property
    def to_assume(self) -> Mapping[Symbol, int]:
        """What could not be read for all sizes may be for those that a later layer fixes, or meets."""
        known = (*self.facts.items(), *self._solved(), *self._summed())
        later = {s: n for s, n in known if s in self.stuck and isinstance(n, int)}
        return {**later, **self.met} if self.stuck & (self.met.keys() | later.keys()) else {}

    def _solved(self) -> Iterator[tuple[Symbol, int]]:
        """The sizes of what values are read from, where a layer fixes those of the values: 4 channels of x, if its
        channels from the third on are 2.
        """
        forms = {node.name: form for node, form in self.read.items()} if self.stuck else {}
        for symbol, number in self.facts.items():
            name, dim = symbol.origin[:2]
            form = forms.get(name) if isinstance(name, str) else None
            if form is not None and isinstance(number, int) and isinstance(dim, int) and -len(form.sizes) <= dim < 0:
                yield from solved(form.sizes[dim], number).items()

    def _summed(self) -> Iterator[tuple[Symbol, int]]:
        """The sizes of what is split into parts whose sizes layers fix: all of them together."""
        for node in self.shapes if self.stuck else ():
            whole, dim, row = all_parts(node) or (node, 0, [])
            before, *after = [self._told_sizes(each) for each in (whole, *row)]
            if after and all(-len(sizes) <= dim < len(sizes) for sizes in (before, *after)):
                lengths = [sizes[dim] for sizes in after]
                number = sum(size.factor for size in lengths) if all(size.known for size in lengths) else 0
                yield from solved(before[dim], number).items() if number else ()

    def _told_sizes(self, node: fx.Node) -> tuple[Size, ...]:
        """The sizes of a value, of a rank that is told; none if it is not."""
        shape = self.shapes.get(node)
        form = told_rank(source_form(node.name, *shape)) if shape is not None else None
        return () if form is None or form.open_rank else self.informed(form).sizes

    def informed(self, form: Form) -> Form:
        """A form with all that is known of the sizes of what it reads."""
        known = self.known(form)
        return form.mapped(lambda op: pin(op, known)) if known else form

    def known(self, form: Form) -> dict[Symbol, Pin]:
        """What layers have fixed of the sizes of what a form reads."""
        return {s: self.facts[s] for s in form.symbols if s in self.facts} if self.facts else {}

    def shape_of(self, node: fx.Node) -> Shape:
        """The shape of a value. Its rank is known too if calls fail with any other."""
        sizes, open_rank = self.shapes.get(node, ((), True))
        if open_rank and sizes and certain_rank(node) is not None:
            sizes, open_rank = (form := told_rank(source_form(node.name, sizes, True))).sizes, form.open_rank
        return sizes, open_rank

    def told(self, value: Any) -> Any:
        """A number, or several, that code takes of sizes, with all that is known of these."""
        if isinstance(value, tuple):
            return tuple(map(self.told, value))
        return value.substitute(self.facts) if isinstance(value, (Share, Size)) else value

    def sizes_of(self, node: fx.Node) -> tuple[Size, ...]:
        """The sizes of a value, with all that is known of them; none if its rank is open."""
        sizes, open_rank = self.shape_of(node)
        return () if open_rank else tuple(size.substitute(self.facts) for size in sizes)

    def no(self, node: fx.Node, reason: Reason) -> None:
        """Record why `node` is not merged."""
        known = self.reasons.setdefault(node, [])
        if reason not in known:
            known.append(reason)
