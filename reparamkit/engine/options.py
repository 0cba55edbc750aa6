"""The ways to have each value of a graph, and what each costs: as it is computed, or by a merge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from ..capture.captured import Captured
from ..layers.price import OBJECTIVES, Cost
from ..reasons import Kind, Reason
from .dead import handed
from .methods import hidden_methods, is_private
from .placing import Placed
from .pricing import Prices, readers_of
from .reading import Reading
from .site import Merge, Rejected, Site

WORTH = 0.05
"""What each further member of a merge must save, in launches: of two equal merges the smaller one is better."""
KEPT = 0.1
"""What a merge must save more, in launches, if it hides methods of the model: of two that save as many, that is better
which leaves them. (One that saves a launch together with others still saves it.)"""
FLOPS, STORED, OPERATIONS = "FLOPs", "stored numbers", "operations"
MAY_RAISE = {
    "launches": frozenset({FLOPS, STORED}),
    "flops": frozenset({STORED, OPERATIONS}),
    "params": frozenset({OPERATIONS}),
}
"""What an objective may let rise; for others neither FLOPs nor stored numbers."""


def dearer(what: str) -> Reason:
    """The reason that a merge would raise what may not rise. what: its name, and by how much."""
    return Reason(f"the merge would raise {what}", Kind.COST, dearer=True)


@dataclass(eq=False)
class Option:
    """A way to have a value: as computed (no placed form), or by a form. before: what the members cost. parts, price:
    once they were asked for.
    """

    cost: Cost
    sources: tuple[fx.Node, ...]
    members: frozenset[fx.Node] = frozenset()
    placed: Placed | None = None
    before: Cost = field(default_factory=Cost)
    parts: dict[fx.Node, float] | None = None
    price: float | None = None


@dataclass(eq=False)
class Options:
    """Of one graph, as far as it has been read.

    merges: per value. affine: the values that have a form. banned: merges that may not be made. pinned: values that may
    not be inside one. rejected: per value the cheapest merge that is not made. idle: values of merges that would save
    nothing.
    """

    captured: Captured
    reading: Reading
    objective: str
    merges: dict[fx.Node, list[Option]] = field(default_factory=dict)
    affine: set[fx.Node] = field(default_factory=set)
    banned: set[Merge] = field(default_factory=set)
    pinned: set[fx.Node] = field(default_factory=set)
    rejected: dict[fx.Node, Rejected] = field(default_factory=dict)
    idle: set[fx.Node] = field(default_factory=set)
    _totals: dict[fx.Node, float] = field(default_factory=dict)
    _computed: dict[fx.Node, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.score: Callable[[Cost], float] = OBJECTIVES[self.objective]
        self.may_raise: Set[str] = MAY_RAISE.get(self.objective, frozenset())
        self.effort = WORTH * self.score(Cost(launches=1))
        self.hiding = KEPT * self.score(Cost(launches=1))
        self.prices = Prices(self.captured, self.reading)

    def total(self, node: fx.Node) -> float:
        """The least price of having a value by what is allowed, with shared inputs divided among their readers.

        What stays in every plan costs nothing to read, so only the affine part before a value counts.
        """
        if self.must_stay(node):
            return 0.0
        if node not in self._totals:
            self._totals[node] = self.price(self.best(node))
        return self._totals[node]

    def price(self, option: Option) -> float:
        """The price of a way to have a value, with that of what it reads."""
        if option.price is None:
            option.price = self._priced(option)
        return option.price

    def _priced(self, option: Option) -> float:
        """Its own cost, and of every value it reads the part that is read for its sake.

        With these parts a merge is cheaper than its members exactly if its cost is less than theirs, each counted
        as far as it would no longer be needed.
        """
        if option.parts is None:
            option.parts = self._parts(option)
        reading = sum(self.total(s) * part for s, part in option.parts.items())
        own = self.score(option.cost) + self.effort * len(option.members) + self.hiding * self._hides(option)
        return own + reading

    def _hides(self, option: Option) -> bool:
        """Whether a merge joins parts of several calls, and by that hides methods that others may call."""
        calls = {self.captured.frame(member) for member in option.members}
        hidden = hidden_methods(self.captured, option.members) if len(calls) > 1 else ()
        return not all(is_private(name) for _, name in hidden)

    def _parts(self, option: Option) -> dict[fx.Node, float]:
        """How much of the use of each source is by the option; a value with two readers is half for each."""
        if option.placed is None:
            return {s: 1 / max(1, len(readers_of(s))) for s in option.sources}
        order = self.captured.aliases.order
        members = sorted(option.members, key=order.__getitem__, reverse=True)
        parts = {members[0]: 1.0}
        for node in (*members[1:], *option.sources):
            users = readers_of(node)
            parts[node] = sum(parts.get(user, 0.0) for user in users) / max(1, len(users))
        return {s: parts[s] for s in option.sources}

    def best(self, node: fx.Node) -> Option:
        """The cheapest allowed way to have a value."""
        options = [self.as_computed(node)]
        options += [o for o in self.merges.get(node, []) if self._allowed(node, o)]
        return min(options, key=self.price)

    def is_there(self, site: Site, needed: Set[fx.Node]) -> bool:
        """Whether the value of a merge costs nothing as it is computed: a view of values that are needed anyway."""
        option = self.as_computed(site.value)
        others = needed | self.reading.constants.keys() | self.reading.sizes.keys()
        return self.score(option.cost) == 0 and others.issuperset(option.sources)

    def as_computed(self, node: fx.Node) -> Option:
        """A value as the model computes it."""
        if node not in self._computed:
            self._computed[node] = Option(self.prices.cost(node), tuple(node.all_input_nodes))
        return self._computed[node]

    def _allowed(self, node: fx.Node, option: Option) -> bool:
        inside = option.members - {node}
        return (node, option.members) not in self.banned and inside.isdisjoint(self.pinned)

    def through(self, piece: fx.Node, values: Iterable[fx.Node]) -> Iterator[Merge]:
        """The merges of these values that have a piece inside."""
        for node in values:
            yield from ((node, o.members) for o in self.merges.get(node, []) if piece in o.members - {node})

    def drop(self, merges: Collection[Merge]) -> None:
        """Forget merges that cannot be written."""
        for node, _ in merges:
            self.merges[node] = [o for o in self.merges[node] if (node, o.members) not in merges]

    def price_again(self, nodes: Collection[fx.Node]) -> None:
        """Forget the prices of values, in program order, that may have counted on what is not allowed any more."""
        for node in nodes:
            self._totals.pop(node, None)
            for option in itertools.chain(self.merges.get(node, []), [self.as_computed(node)]):
                option.price = None
        for node in nodes:
            self.total(node)

    def reject(self, node: fx.Node, new: Rejected) -> None:
        """Remember the cheapest merge of a value that is not made."""
        known = self.rejected.get(node)
        if known is None or self.score(new.after) < self.score(known.after):
            self.rejected[node] = new

    def must_stay(self, node: fx.Node) -> bool:
        """Outputs, inputs, and everything that is not known to be free of side effects."""
        if node in self.reading.writes:
            return False
        if node.op in ("output", "placeholder") or (not node.users and node.op.startswith("call")):
            return True
        if node in self._handed:
            return True
        return not self.is_inside(node) and node.op != "get_attr"

    def is_inside(self, node: fx.Node) -> bool:
        """Whether a value is affine, a constant or a size: a region of the graph begins and ends at all others."""
        return node in self.affine or node in self.reading.constants or node in self.reading.sizes

    def added_bias(self, placed: Iterable[Placed | None], gone: Iterable[fx.Node]) -> int:
        """Numbers in biases of merged layers, less those that were biases before: a bias added to an existing weight is
        not counted as growth. gone: the members that no longer are.
        """
        return max(0, sum(map(_bias_numbers, placed)) - sum(map(self.prices.shift, gone)))

    @cached_property
    def _handed(self) -> set[fx.Node]:
        return handed(self.captured)


def _bias_numbers(placed: Placed | None) -> int:
    layers = [term.layer for term in placed.terms] if placed else []
    return sum(layer.bias for layer in layers if layer is not None)
