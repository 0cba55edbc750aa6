"""What was chosen: merges, and the plan that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

from torch import fx, nn

from ..algebra.size import Size, Symbol
from ..layers.price import Cost
from ..reasons import Reason
from .placing import Placed

Merge = tuple[fx.Node, frozenset[fx.Node]]
"""The value and the members of a merge."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """A module that computes a value from `inputs`, as a graph rule built it."""

    inputs: tuple[fx.Node, ...]
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Site:
    """One merge: `members` are replaced, `value` is what they computed.

    rules: that made it. before, after: the price of the members, and of what is written for them.
    placed: the form to write. sizes: those of the values that it reads, and of what other merges give that guards may
        read, by name. replacement: the module to call instead, for a graph rule.
    absorbed: scales among the members in whose place, for all that read them, is the value before; and views of them.
    saved: FLOPs, less those of members that are computed elsewhere too.
    """

    value: fx.Node
    members: frozenset[fx.Node]
    rules: tuple[str, ...]
    before: Cost
    after: Cost
    placed: Placed | None = None
    replacement: Replacement | None = None
    absorbed: frozenset[fx.Node] = frozenset()
    saved: float = 0.0
    sizes: Mapping[str, tuple[Size, ...]] = field(default_factory=dict)

    def readable(self, symbol: Symbol) -> list[tuple[str, int]]:
        """Where a free size can be read: names of values, and dimensions (from the right). First of what is read, which
        stays as long as the merge does.
        """
        name, dim = symbol.origin
        own = [(str(name), dim)] if isinstance(dim, int) else []
        return [*(place for each in self.sizes.items() for place in _places(symbol, *each)), *own]

    @property
    def core(self) -> frozenset[fx.Node]:
        """The members whose code makes way for what is written."""
        return self.members - self.absorbed

    @property
    def has_layer(self) -> bool:
        """Whether a layer with weights is written for it."""
        return self.placed is not None and any(term.layer is not None for term in self.placed.terms)

    @property
    def scales(self) -> frozenset[fx.Node]:
        """The absorbed members that are no views."""
        terms = self.placed.terms if self.placed else ()
        layers = {step.node for term in terms for step in term.trail if step.is_layer}
        return frozenset(node for node in self.absorbed if node.name in layers)

    @property
    def merge(self) -> Merge:
        """What tells it from other merges."""
        return self.value, self.members


def _places(symbol: Symbol, value: str, sizes: tuple[Size, ...]) -> Iterator[tuple[str, int]]:
    """The dimensions of a value of which a symbol is the size, or (from 0 up) how many it has besides those that the
    symbol stands for.
    """
    if not symbol.stands_for_dims:
        yield from ((value, k - len(sizes)) for k, size in enumerate(sizes) if size == Size(1, (symbol,)))
    name, dim = symbol.origin
    for first in (each for each in sizes[0].symbols if each.stands_for_dims) if sizes else ():
        tensor, taken = first.origin
        if tensor == name and isinstance(taken, int) and isinstance(dim, int):
            # It has as many dimensions on the left as that value.
            others = len(sizes) - 1 - taken
            if first == symbol:
                yield value, dim + others
            elif -taken > dim:
                yield value, dim - others


@dataclass(frozen=True, eq=False)
class Rejected:
    """A merge that would be exact and is not made: for its price, its time, or the code around it. before, after: the
    price of the members, and of what would be written for them.
    """

    members: frozenset[fx.Node]
    before: Cost
    after: Cost


@dataclass(frozen=True)
class Plan:
    """What to write. sites: in program order. refusals: per node left as it is, why. before: the price of everything
    affine as it is. rejected: per value the cheapest merge that is not made. idle: values of merges that would save
    nothing. parted: whether several merges are made in the place of one that could not be written into the code as it
    is.
    """

    sites: list[Site]
    refusals: dict[fx.Node, list[Reason]]
    before: Cost
    rejected: Mapping[fx.Node, Rejected]
    idle: Set[fx.Node]
    parted: bool
