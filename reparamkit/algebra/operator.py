"""The one operator: a linear map from a source tensor to a value, described axis by axis.

Every dimension of source and value is a tuple of *atoms* (sub-axes, outermost first), so reshape and
permute only regroup atoms. A `Link` says what the operator does along one atom:

    FREE      passes through; the weight does not see it           batch, pixels of a 1x1
    DIAGONAL  passes through; the weight is indexed by it          batch-norm channel, groups
    STENCIL   output i reads input stride*i + taps, zero outside   convolution, pooling
    IN, OUT   full matrix from all IN atoms to all OUT atoms       channels of a conv, token mixing
    MEAN      average over an axis of any size                     global average pool
    BORDER    of a bias: passes through; a number per position     a shift behind zero padding
              near either end, and one for all between

The weight has one leg per link that is not FREE or MEAN, in the order of the links.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from ..errors import NotFusable
from ..reasons import Kind, Reason
from .size import Pin, Size, Symbol, fixed, hidden_size, joined_pins, least, open_size, product, stencil_size
from .weight import Computed, One, Weight, Zeros

Dims = tuple[tuple[int, ...], ...]
"""Per dimension, the numbers of the links that are its atoms."""
Atoms = tuple[tuple[Size, ...], ...]
"""Per dimension, the sizes of its atoms."""


class Role(Enum):
    """What an operator does along one atom; see the module docstring."""

    FREE = "free"
    DIAGONAL = "diagonal"
    STENCIL = "stencil"
    IN = "in"
    OUT = "out"
    MEAN = "mean"
    BORDER = "border"


Edges = tuple[int, int]
"""Numbers of positions at the begin and at the end of an axis."""
WHOLE: Edges = (0, 0)

FLIP = ("flip",)
"""The name of the map that gives the positions of an axis last to first."""
NO_MAPS = Reason("an axis that is resampled cannot be split, joined or left out", Kind.RESAMPLED)


@dataclass(frozen=True)
class Resampling:
    """A map along an axis that only a call of its own can compute: each position of the result is a weighted mean of
    positions of the axis, its weights sum to 1. So constants stay, and it commutes with all that is FREE there.

    name: what it does, options included; equal names and sizes do the same. before, after: the sizes.
    taps: multiply-adds per position; 0 for a copy. around: how many positions it puts before and behind the axis, which
    it leaves as it is; None if it does more. mode: which ones; behind more of one mode there is the axis behind fewer.
    """

    name: tuple[Hashable, ...]
    before: Size
    after: Size
    taps: int = 0
    around: Edges | None = None
    mode: str = ""

    def pinned(self, pins: Mapping[Symbol, Pin]) -> Resampling:
        """With what is known of its sizes."""
        return replace(self, before=self.before.substitute(pins), after=self.after.substitute(pins))


THROUGH = frozenset({Role.FREE, Role.DIAGONAL, Role.STENCIL, Role.BORDER})
"""Roles whose atom is in the source and in the value."""


@dataclass(frozen=True)
class Link:
    """One atom and its role.

    size: of the atom in the source (OUT: in the value), behind `maps`.
    maps: resamplings of the atom of the source, in order, before anything else. after: of the atom of the value, after
        everything else; a FREE link has none, as they are the same.
    taps: offsets of a STENCIL, ascending; an output has ``(up * size + c) // stride + 1`` positions.
    up: of a transposed convolution: ``up - 1`` zeros stand after each sample, and then comes the stencil.
    cut: how many positions at its begin and end a DIAGONAL or IN atom of fixed size does not read, as of a tensor
        that was split. pad: how many a DIAGONAL or OUT atom leaves zero, as in a part of a concatenation.
    low, high: of a BORDER: how many positions at the beginning and at the end have a number of their own; no size is
        meant that is less than their sum.
    """

    role: Role
    size: Size
    taps: tuple[int, ...] = (0,)
    stride: int = 1
    c: int = -1
    up: int = 1
    cut: Edges = WHOLE
    pad: Edges = WHOLE
    low: int = 0
    high: int = 0
    maps: tuple[Resampling, ...] = ()
    after: tuple[Resampling, ...] = ()

    @property
    def resamples(self) -> bool:
        """Whether the atom is resampled."""
        return bool(self.maps or self.after)

    @property
    def size_in(self) -> Size:
        """Size of the atom in the source."""
        return self.maps[0].before if self.maps else self.size

    @property
    def through(self) -> bool:
        """Whether the atom is in the source and in the value."""
        return self.role in THROUGH

    @cached_property
    def size_out(self) -> Size:
        """Size of the atom in the value."""
        if self.after:
            return self.after[-1].after
        if self.role is Role.DIAGONAL and self.segmented:
            return fixed(self.leg_size + sum(self.pad))
        if self.shape_preserving:
            return self.size
        return stencil_size(self.size * fixed(self.up), self.stride, self.c)

    @property
    def reach(self) -> int | None:
        """The greatest c that gives as many outputs for every size, the last window then ends where the last stride
        does; None if that depends on the size.
        """
        if self.stride > 1 and (self.up > 1 or not (self.size.known or self.size.factor % self.stride == 0)):
            return None
        return self.c + self.stride - 1 - (self.size.factor + self.c) % self.stride

    @property
    def segmented(self) -> bool:
        """Whether the link reads or fills only a part of its atom."""
        return (self.cut, self.pad) != (WHOLE, WHOLE)

    @property
    def shape_preserving(self) -> bool:
        """Whether the value's atom has the source atom's size for every input."""
        return (self.stride, self.c, self.up) == (1, -1, 1) and not self.segmented

    @property
    def has_leg(self) -> bool:
        """Whether the weight is indexed by this link."""
        return self.role not in (Role.FREE, Role.MEAN)

    @property
    def leg_size(self) -> int:
        """Length of the weight's leg."""
        if self.role is Role.STENCIL:
            return len(self.taps)
        if self.role is Role.BORDER:
            return self.low + 1 + self.high
        return self.size.factor - sum(self.pad if self.role is Role.OUT else self.cut)

    def resized(self, size: Size) -> Link:
        """The same link on an atom of another size."""
        return replace(self, size=size)

    def pinned(self, pins: Mapping[Symbol, Pin]) -> Link:
        """The same link, with what is known of its sizes."""
        size = self.size.substitute(pins)
        if size is self.size and not self.resamples:
            return self
        maps, after = (tuple(each.pinned(pins) for each in some) for some in (self.maps, self.after))
        return replace(self, size=size, maps=maps, after=after)


@dataclass(frozen=True, eq=False)
class Operator:
    """A linear map between two tensors.

    links: one per atom.
    source, value: per dimension of the tensor, the links that are its atoms, outermost first.
    open_rank: the first dimension stands for any number of leading dimensions.
    pins: what is known of sizes that were free; each is checked by a weight, or by a guard.
    guards: what needs a check at run time: pins, and the number of dimensions that an open first dimension
        (its symbol) stood for.
    via: names of the laws it was made by.
    """

    links: tuple[Link, ...]
    source: Dims
    value: Dims
    weight: Weight
    open_rank: bool = False
    pins: frozenset[tuple[Symbol, Pin]] = frozenset()
    guards: frozenset[tuple[Symbol, Pin]] = frozenset()
    via: frozenset[str] = frozenset()

    @cached_property
    def source_atoms(self) -> Atoms:
        """Size of each atom of each dimension of the source."""
        return tuple(tuple(self.links[i].size_in for i in dim) for dim in self.source)

    @cached_property
    def value_atoms(self) -> Atoms:
        """Size of each atom of each dimension of the value."""
        return tuple(tuple(self.links[i].size_out for i in dim) for dim in self.value)

    @cached_property
    def source_sizes(self) -> tuple[Size, ...]:
        """Size of each dimension of the source."""
        return tuple(map(product, self.source_atoms))

    @property
    def smallest(self) -> Iterator[tuple[Symbol, int]]:
        """Free sizes of the source, with what they have to be at least for each window to fit."""
        for link in self.links:
            yield from least(link.size, -(link.c // link.up) if link.role is Role.STENCIL else 1).items()

    @cached_property
    def value_sizes(self) -> tuple[Size, ...]:
        """Size of each dimension of the value."""
        return tuple(map(product, self.value_atoms))

    @cached_property
    def legs(self) -> tuple[int, ...]:
        """The links that have a leg, in order."""
        return tuple(i for i, link in enumerate(self.links) if link.has_leg)

    @property
    def stored(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.links[i].leg_size for i in self.legs)

    @property
    def rest(self) -> Symbol:
        """Of an operator of open rank: what stands for all dimensions of the source that are not seen, as one."""
        return self.links[self.source[0][0]].size.symbols[0]

    @property
    def is_identity(self) -> bool:
        """Whether the operator is a view: no link has a leg, none averages, and there is no factor."""
        return isinstance(self.weight, One) and all(link.role is Role.FREE and not link.maps for link in self.links)

    @property
    def resamples(self) -> bool:
        """Whether an axis is resampled."""
        return any(link.resamples for link in self.links)

    @property
    def is_zero(self) -> bool:
        """Whether nothing is read: the value is zero for every source."""
        return self.stored == 0

    @property
    def vanishes(self) -> bool:
        """Whether it makes a tensor of zeros, of which only the shape matters."""
        return isinstance(self.weight, Zeros)

    def has(self, *roles: Role) -> bool:
        """Whether some link has one of the roles."""
        return any(link.role in roles for link in self.links)


def zeros(op: Operator) -> Operator:
    """Zeros of the shape that an operator's value has."""
    return replace(op, weight=Zeros(tuple(op.links[i].leg_size for i in op.legs)))


def open_sizes(
    tensor: str, probably: tuple[int, ...] = (), least: int = 1, dims: int | None = None
) -> tuple[Size, ...]:
    """The sizes of a tensor of unknown rank, at least `least`: the first entry stands for all dimensions but the last
    ``least - 1``. probably: the sizes, for prices. dims: how many there are, where that is told.
    """
    first = open_size(tensor, least - 1, probably, dims)
    return first, *(hidden_size(first.symbols[0], -d) for d in range(least - 1, 0, -1))


def identity(sizes: Iterable[Size], open_rank: bool = False) -> Operator:
    """The identity on a tensor of the given sizes."""
    links = tuple(Link(Role.FREE, size) for size in sizes)
    dims = tuple((i,) for i in range(len(links)))
    return Operator(links, dims, dims, One(), open_rank)


def with_rank(op: Operator, trailing: int) -> Operator:
    """`op` with at least `trailing` dimensions after its open first one (if its rank is open)."""
    missing = trailing - (len(op.value) - 1)
    if not op.open_rank or missing <= 0:
        return op
    symbol = op.rest
    tensor, taken = symbol.origin
    assert isinstance(tensor, str)
    assert isinstance(taken, int)
    links = list(op.links)
    links[op.source[0][0]] = Link(Role.FREE, open_size(tensor, taken + missing, symbol.inside, symbol.dims))
    links += [Link(Role.FREE, hidden_size(symbol, -d)) for d in range(taken + missing, taken, -1)]
    extra = tuple((len(op.links) + k,) for k in range(missing))
    # A pin may be older than the sight of its dimension.
    known = dict(op.pins)
    return replace(
        op,
        links=tuple(link.pinned(known) for link in links),
        source=(op.source[0], *extra, *op.source[1:]),
        value=(op.value[0], *extra, *op.value[1:]),
    )


def seen_dims(op: Operator, symbols: Iterable[Symbol]) -> int:
    """How many of the last dimensions of what an operator of open rank reads these are sizes of."""
    tensor = op.rest.origin[0]
    dims = [symbol.origin[1] for symbol in symbols if symbol.origin[0] == tensor]
    return max((-dim for dim in dims if isinstance(dim, int)), default=0)


def closed(op: Operator, hidden: int, certain: bool = True) -> Operator:
    """`op` once it is known that its open first dimension stands for `hidden` dimensions.

    certain: no guard is needed, since a layer checks the rank.
    """
    guards = op.guards if certain else op.guards | {(op.rest, hidden)}
    op = with_rank(op, len(op.value) - 1 + hidden)
    number = op.source[0][0]
    op = replace(op, source=op.source[1:], value=op.value[1:], open_rank=False, guards=guards)
    return dropped(op, number)


def dropped(op: Operator, number: int) -> Operator:
    """`op` without link `number`, an atom of size 1; where that has zeros only, the weight is zeros."""
    if op.links[number].resamples:
        raise NotFusable(NO_MAPS)
    keep = [i for i in range(len(op.links)) if i != number]
    links = tuple(op.links[i] for i in keep)
    weight = op.weight
    if op.links[number].has_leg:
        weight = _without_leg(weight, op.legs.index(number))
    return replace(op, links=links, source=kept(op.source, keep), value=kept(op.value, keep), weight=weight)


def _without_leg(weight: Weight, leg: int) -> Weight:
    return Computed(lambda: weight.tensor().sum(leg))


def pin(op: Operator, pins: Mapping[Symbol, Pin], guard: bool = False) -> Operator:
    """`op` for inputs in which the given free sizes have the given values, or are the given multiples."""
    guards = op.guards.union(pins.items()) if guard else op.guards
    if op.pins.issuperset(pins.items()):
        return op if guards == op.guards else replace(op, guards=guards)
    known = joined_pins([*op.pins, *pins.items()])
    links = tuple(link.pinned(known) for link in op.links)
    return replace(op, links=links, pins=frozenset(known.items()), guards=guards)


def kept(dims: Dims, keep: list[int]) -> Dims:
    """The atoms of dimensions, numbered among the links that are kept."""
    return tuple(tuple(keep.index(i) for i in dim if i in keep) for dim in dims)
