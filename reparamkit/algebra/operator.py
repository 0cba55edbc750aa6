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
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NotFusable
from .size import Pin, Size, Symbol, fixed, hidden_size, joined_pins, open_size, product, stencil_size
from .weight import Computed, Diagonals, One, Ones, Weight

Dims = tuple[tuple[int, ...], ...]
"""Per dimension, the numbers of the links that are its atoms."""


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

NO_MAPS = "an axis that is resampled cannot be split, joined or left out"


@dataclass(frozen=True)
class Resampling:
    """A map along an axis that only a call of its own can compute: each position of the result is a weighted mean of
    positions of the axis, its weights sum to 1. So constants stay, and it commutes with all that is FREE there.

    name: what it does, options included; equal names and sizes do the same. before, after: the sizes.
    taps: multiply-adds per position; 0 for a copy.
    """

    name: tuple[Hashable, ...]
    before: Size
    after: Size
    taps: int = 0

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

    @property
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
        maps, after = (tuple(each.pinned(pins) for each in some) for some in (self.maps, self.after))
        return replace(self, size=self.size.substitute(pins), maps=maps, after=after)


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
    def source_sizes(self) -> tuple[Size, ...]:
        """Size of each dimension of the source."""
        return tuple(product(self.links[i].size_in for i in dim) for dim in self.source)

    @cached_property
    def value_sizes(self) -> tuple[Size, ...]:
        """Size of each dimension of the value."""
        return tuple(product(self.links[i].size_out for i in dim) for dim in self.value)

    @cached_property
    def legs(self) -> tuple[int, ...]:
        """The links that have a leg, in order."""
        return tuple(i for i, link in enumerate(self.links) if link.has_leg)

    @property
    def stored(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.links[i].leg_size for i in self.legs)

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

    def has(self, *roles: Role) -> bool:
        """Whether some link has one of the roles."""
        return any(link.role in roles for link in self.links)


def open_sizes(tensor: str, probably: tuple[int, ...] = (), least: int = 1) -> tuple[Size, ...]:
    """The sizes of a tensor of unknown rank, at least `least`: the first entry stands for all dimensions but the last
    ``least - 1``. probably: the sizes, for prices.
    """
    first = open_size(tensor, least - 1, probably)
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
    rest = op.source[0][0]
    symbol = op.links[rest].size.symbols[0]
    tensor, taken = symbol.origin
    assert isinstance(tensor, str)
    assert isinstance(taken, int)
    links = list(op.links)
    links[rest] = Link(Role.FREE, open_size(tensor, taken + missing, symbol.inside))
    links += [Link(Role.FREE, hidden_size(symbol, -d)) for d in range(taken + missing, taken, -1)]
    extra = tuple((len(op.links) + k,) for k in range(missing))
    wider = replace(
        op,
        links=tuple(links),
        source=(op.source[0], *extra, *op.source[1:]),
        value=(op.value[0], *extra, *op.value[1:]),
    )
    # A pin may be older than the sight of its dimension.
    return pin(wider, dict(op.pins))


def closed(op: Operator, hidden: int, certain: bool = True) -> Operator:
    """`op` once it is known that its open first dimension stands for `hidden` dimensions.

    certain: no guard is needed, since a layer checks the rank.
    """
    rest = op.links[op.source[0][0]].size.symbols[0]
    guards = op.guards if certain else op.guards | {(rest, hidden)}
    op = with_rank(op, len(op.value) - 1 + hidden)
    number = op.source[0][0]
    op = replace(op, source=op.source[1:], value=op.value[1:], open_rank=False, guards=guards)
    return dropped(op, number)


def dropped(op: Operator, number: int) -> Operator:
    """`op` without link `number`, an atom of size 1."""
    if op.links[number].resamples:
        raise NotFusable(NO_MAPS)
    keep = [i for i in range(len(op.links)) if i != number]
    links = tuple(op.links[i] for i in keep)
    weight = op.weight
    if op.links[number].has_leg:
        weight = _without_leg(weight, op.legs.index(number))
    return replace(op, links=links, source=_kept(op.source, keep), value=_kept(op.value, keep), weight=weight)


def _without_leg(weight: Weight, leg: int) -> Weight:
    return Computed(lambda: weight.tensor().squeeze(leg))


# --- structural changes: the same map, described with other links -------------------------------------


def pin(op: Operator, pins: Mapping[Symbol, Pin], guard: bool = False) -> Operator:
    """`op` for inputs in which the given free sizes have the given values, or are the given multiples."""
    guards = op.guards.union(pins.items()) if guard else op.guards
    if op.pins.issuperset(pins.items()):
        return op if guards == op.guards else replace(op, guards=guards)
    known = joined_pins([*op.pins, *pins.items()])
    links = tuple(link.pinned(known) for link in op.links)
    return replace(op, links=links, pins=frozenset(known.items()), guards=guards)


def split(op: Operator, number: int, outer: Size, inner: Size) -> Operator:
    """Split the atom of link `number` in two."""
    link = op.links[number]
    if link.resamples:
        raise NotFusable(NO_MAPS)
    if link.role is Role.BORDER:
        return split(as_diagonal(op, number), number, outer, inner)
    halves = link_halves(link, outer, inner)
    if halves is None:
        # A part of an IN or OUT atom that is no product of two parts.
        return split(widened(op, number), number, outer, inner)
    weight = op.weight
    if link.has_leg:
        weight = _split_leg(weight, op.legs.index(number), *(half.leg_size for half in halves))
    links = (*op.links[:number], *halves, *op.links[number + 1 :])
    return replace(_renumbered(op, number), links=links, weight=weight)


def link_halves(link: Link, outer: Size, inner: Size) -> tuple[Link, Link] | None:
    """A link as an outer and an inner one; None if its part of the axis is no product of two parts.

    Raises `NotFusable` for a stencil.
    """
    if link.role is Role.STENCIL:
        raise NotFusable("a view splits or joins an axis that a convolution or pooling runs along")
    if not link.segmented:
        return link.resized(outer), link.resized(inner)
    step, (low, high) = inner.factor, link.pad if link.role is Role.OUT else link.cut
    if not any(edge % step for edge in (*link.cut, *link.pad)):
        cut, pad = ((a // step, b // step) for a, b in (link.cut, link.pad))
        return replace(link, size=fixed(link.size.factor // step), cut=cut, pad=pad), Link(link.role, inner)
    first, last = low // step, (link.size.factor - high - 1) // step
    if link.role is Role.DIAGONAL or first != last:
        return None
    # The part lies inside one position of the outer atom.
    around = first, link.size.factor // step - first - 1
    inside = low - first * step, (first + 1) * step - (link.size.factor - high)
    return _part(link.role, outer, around), _part(link.role, inner, inside)


def _part(role: Role, size: Size, edges: Edges) -> Link:
    return Link(role, size, pad=edges) if role is Role.OUT else Link(role, size, cut=edges)


def _split_leg(weight: Weight, leg: int, outer: int, inner: int) -> Weight:
    return Computed(lambda: _unflattened(weight.tensor(), leg, outer, inner))


def _unflattened(tensor: Tensor, leg: int, outer: int, inner: int) -> Tensor:
    return tensor.reshape(*tensor.shape[:leg], outer, inner, *tensor.shape[leg + 1 :])


def _renumbered(op: Operator, number: int) -> Operator:
    """`op` with dims in which link `number` has become the links `number` and `number + 1`."""

    def renamed(dims: Dims) -> Dims:
        return tuple(tuple(n for i in dim for n in _after_split(i, number)) for dim in dims)

    return replace(op, source=renamed(op.source), value=renamed(op.value))


def _after_split(i: int, number: int) -> tuple[int, ...]:
    return (i, i + 1) if i == number else (i + (i > number),)


def densify(op: Operator, number: int) -> Operator:
    """Write the axis of link `number` as a full matrix (a pair of an IN and an OUT atom)."""
    link = op.links[number]
    if not link.size.known:
        raise NotFusable(f"needs a fixed size where the size is free: {link.size}")
    if link.role is Role.MEAN:
        return _mean_as_sum(op, number)
    if link.role is Role.BORDER:
        return densify(as_diagonal(op, number), number)
    links = list(op.links)
    size_out = replace(link, after=()).size_out
    links[number : number + 1] = [
        Link(Role.IN, link.size, cut=link.cut, maps=link.maps),
        Link(Role.OUT, size_out, pad=link.pad, after=link.after),
    ]
    dense = replace(_renumbered(op, number), links=tuple(links))
    row = dense.legs.index(number)
    if link.up > 1:
        weight = _spread_matrix(op.weight, op.legs.index(number), link, size_out.factor)
        return replace(
            dense, weight=weight, source=_without(dense.source, number + 1), value=_without(dense.value, number)
        )
    shape = tuple(dense.links[i].leg_size for i in dense.legs)
    weight = Diagonals(
        op.weight,
        op.legs.index(number) if link.has_leg else None,
        link.role is Role.DIAGONAL,
        row,
        row + 1,
        shape,
        link.taps,
        link.stride,
    )
    return replace(dense, weight=weight, source=_without(dense.source, number + 1), value=_without(dense.value, number))


def _spread_matrix(weight: Weight, leg: int, link: Link, size_out: int) -> Weight:
    """The taps of a transposed stencil as a matrix: output j reads input i where ``up * i = stride * j + tap``."""
    size_in = link.size.factor

    def compute() -> Tensor:
        hit = torch.zeros(len(link.taps), size_in, size_out, dtype=torch.float64)
        for number, tap in enumerate(link.taps):
            for j in range(size_out):
                i, rest = divmod(link.stride * j + tap, link.up)
                if rest == 0 and 0 <= i < size_in:
                    hit[number, i, j] = 1
        tensor = weight.tensor()
        made: Tensor = torch.tensordot(tensor.movedim(leg, -1), hit, dims=1)
        return made.movedim((-2, -1), (leg, leg + 1))

    return Computed(compute)


def _without(dims: Dims, number: int) -> Dims:
    return tuple(tuple(i for i in dim if i != number) for dim in dims)


def _mean_as_sum(op: Operator, number: int) -> Operator:
    size = op.links[number].size
    links = list(op.links)
    links[number] = replace(op.links[number], role=Role.IN)
    made = replace(op, links=tuple(links))
    return replace(made, weight=_spread(op.weight, made.legs.index(number), size.factor, 1 / size.factor))


def _spread(weight: Weight, leg: int, size: int, factor: float = 1.0) -> Weight:
    """A new leg along which the weight repeats, times `factor`."""

    def compute() -> Tensor:
        tensor = weight.tensor().unsqueeze(leg)
        return tensor.repeat_interleave(size, dim=leg).mul_(factor)

    return Computed(compute)


def as_diagonal(op: Operator, number: int) -> Operator:
    """FREE or BORDER -> DIAGONAL: the weight repeats along the axis; of a free size raises `NotFusable`."""
    link = op.links[number]
    if not link.size.known or link.size.factor < link.low + link.high:
        raise NotFusable(f"needs a fixed size, larger than the border, where the size is {link.size}")
    inner = op if link.role is Role.BORDER else with_border(op, number, 0, 0)
    links = list(op.links)
    links[number] = Link(Role.DIAGONAL, link.size, maps=link.maps, after=link.after)
    middle = link.size.factor - link.low - link.high
    places = [*range(link.low), *[link.low] * middle, *range(link.low + 1, link.low + 1 + link.high)]
    return replace(op, links=tuple(links), weight=_gathered(inner.weight, inner.legs.index(number), places))


def with_border(op: Operator, number: int, low: int, high: int) -> Operator:
    """FREE or BORDER -> BORDER with `low` and `high` numbers at the ends (no fewer than there are)."""
    link = op.links[number]
    links = list(op.links)
    links[number] = Link(Role.BORDER, link.size, low=low, high=high)
    made = replace(op, links=tuple(links))
    leg = made.legs.index(number)
    inner = op.weight if link.has_leg else _spread(op.weight, leg, 1)
    last = link.low + link.high
    places = [min(k, link.low) for k in range(low)] + [link.low]
    places += [max(last - (high - 1 - k), link.low) for k in range(high)]
    return replace(made, weight=_gathered(inner, leg, places))


def _gathered(weight: Weight, leg: int, places: list[int]) -> Weight:
    """Entry k of the new leg is entry ``places[k]`` of the old one."""
    return Computed(lambda: weight.tensor().index_select(leg, torch.tensor(places)))


def with_taps(op: Operator, number: int, like: Link) -> Operator:
    """FREE or STENCIL -> STENCIL with the taps, stride and c of `like` (a superset of its own taps)."""
    link = op.links[number]
    if link.role is Role.STENCIL and link.taps == like.taps:
        return op
    links = list(op.links)
    links[number] = replace(like, size=link.size, maps=link.maps, after=link.after)
    made = replace(op, links=tuple(links))
    leg = made.legs.index(number)
    positions = [like.taps.index(tap) for tap in link.taps]
    inner = op.weight if link.has_leg else _spread(op.weight, leg, 1)
    return replace(made, weight=_placed(inner, leg, positions, len(like.taps)))


# --- parts of an axis ---------------------------------------------------------------------------------


def as_part(op: Operator, number: int) -> Operator:
    """A stencil of one tap on a fixed size (a crop, zero padding) -> a DIAGONAL of ones between two parts."""
    link = op.links[number]
    (shift,), size, size_out = link.taps, link.size.factor, link.size_out.factor
    first = min(max(0, shift), size)
    length = max(0, min(size, shift + size_out) - first)
    before = min(max(0, -shift), size_out)
    cut, pad = (first, size - first - length), (before, size_out - before - length)
    part = Link(Role.DIAGONAL, link.size, cut=cut, pad=pad, maps=link.maps, after=link.after)
    links = (*op.links[:number], part, *op.links[number + 1 :])
    return replace(op, links=links, weight=_repeated(op.weight, op.legs.index(number), part.leg_size))


def _repeated(weight: Weight, leg: int, times: int) -> Weight:
    """A leg of length 1 made longer."""
    if isinstance(weight, Ones):
        return Ones((*weight.shape[:leg], times, *weight.shape[leg + 1 :]))
    return Computed(lambda: weight.tensor().repeat_interleave(times, dim=leg))


def is_shift(link: Link) -> bool:
    """Whether a link is a stencil that `as_part` takes."""
    return link.role is Role.STENCIL and len(link.taps) == link.stride == link.up == 1 and link.size.known


def widened(op: Operator, number: int, low: int | None = None, high: int | None = None) -> Operator:
    """`op` with `low` and `high` zeros more in its weight along a link (default: so many that the link covers its atom;
    of a DIAGONAL as many as fit on both sides).
    """
    link = op.links[number]
    edges = [e for e, role in ((link.cut, Role.OUT), (link.pad, Role.IN)) if link.role is not role]
    low, high = (min(e[k] for e in edges) if n is None else n for k, n in enumerate((low, high)))
    if (low, high) == WHOLE:
        return op
    leg, weight = op.legs.index(number), op.weight
    wide = Computed(lambda: extended(weight.tensor(), leg, low, high))
    return replace(op, links=_with_edges(op, number, -low, -high), weight=wide)


def extended(tensor: Tensor, dim: int, low: int, high: int) -> Tensor:
    """`tensor` with zeros before and after it along a dimension."""
    return F.pad(tensor.movedim(dim, -1), (low, high)).movedim(-1, dim)


def narrowed(op: Operator, number: int, low: int, high: int) -> Operator:
    """`op` without the first `low` and the last `high` entries of its weight along a link."""
    if (low, high) == WHOLE:
        return op
    leg, weight = op.legs.index(number), op.weight
    links = _with_edges(op, number, low, high)
    if isinstance(weight, Ones):
        ones = Ones((*weight.shape[:leg], links[number].leg_size, *weight.shape[leg + 1 :]))
        return replace(op, links=links, weight=ones)
    narrow = Computed(lambda: weight.tensor().narrow(leg, low, links[number].leg_size).clone())
    return replace(op, links=links, weight=narrow)


def _with_edges(op: Operator, number: int, low: int, high: int) -> tuple[Link, ...]:
    link = op.links[number]
    cut = link.cut if link.role is Role.OUT else (link.cut[0] + low, link.cut[1] + high)
    pad = link.pad if link.role is Role.IN else (link.pad[0] + low, link.pad[1] + high)
    return (*op.links[:number], replace(link, cut=cut, pad=pad), *op.links[number + 1 :])


def paired(op: Operator, number_in: int, number_out: int) -> Operator:
    """An IN and an OUT atom of which one position each is used -> one DIAGONAL atom of which one position is used."""
    link_in, link_out = op.links[number_in], op.links[number_out]
    links = list(op.links)
    links[number_in] = replace(link_in, role=Role.DIAGONAL, pad=link_out.pad, after=link_out.after)
    value = tuple(tuple(number_in if i == number_out else i for i in dim) for dim in op.value)
    return dropped(replace(op, links=tuple(links), value=value), number_out)


def whole(op: Operator) -> Operator:
    """`op` with all zeros written out; a DIAGONAL that moves its axis becomes a matrix."""
    while (number := next((i for i, link in enumerate(op.links) if link.segmented), None)) is not None:
        link = op.links[number]
        moves = link.role is Role.DIAGONAL and link.cut != link.pad
        op = densify(op, number) if moves else widened(op, number)
    return op


def _placed(weight: Weight, leg: int, positions: list[int], length: int) -> Weight:
    def compute() -> Tensor:
        tensor = weight.tensor()
        shape = list(tensor.shape)
        shape[leg] = length
        wide = tensor.new_zeros(shape)
        wide.movedim(leg, 0)[positions] = tensor.movedim(leg, 0)
        return wide

    return Computed(compute)


def merge(op: Operator, numbers: tuple[int, ...]) -> Operator:
    """Join adjacent atoms of one role (all IN or all OUT, of one dimension) to one atom."""
    if any(op.links[i].resamples for i in numbers):
        raise NotFusable(NO_MAPS)
    for number in numbers:
        op = widened(op, number)
    first = numbers[0]
    size = product(op.links[i].size for i in numbers)
    keep = [i for i in range(len(op.links)) if i not in numbers[1:]]
    links = tuple(op.links[i].resized(size) if i == first else op.links[i] for i in keep)
    moved = [op.legs.index(i) for i in numbers]
    return replace(
        op,
        links=links,
        source=_kept(op.source, keep),
        value=_kept(op.value, keep),
        weight=_join_legs(op.weight, moved),
    )


def strided(op: Operator) -> Operator:
    """`op` with one window along an axis that it reads in pieces: by a window along the outer atom and a matrix from
    the inner ones, as a convolution behind a pixel unshuffle does.
    """
    for source, value in zip(op.source, op.value, strict=True):
        outer, inner = source[:1], source[1:]
        roles = {op.links[i].role for i in inner}
        if value == outer and roles == {Role.IN} and _gathers(op.links[outer[0]]):
            return strided(_one_window(op, outer[0], inner))
    return op


def _gathers(link: Link) -> bool:
    return not link.resamples and (link.role is Role.FREE or (link.role is Role.STENCIL and link.up == 1))


def _one_window(op: Operator, outer: int, inner: tuple[int, ...]) -> Operator:
    link, count = op.links[outer], math.prod(op.links[i].leg_size for i in inner)
    op = with_taps(op, outer, replace(link, role=Role.STENCIL))
    taps = tuple(count * tap + k for tap in link.taps for k in range(count))
    window = Link(Role.STENCIL, link.size * fixed(count), taps, count * link.stride, count * link.c)
    keep = [i for i in range(len(op.links)) if i not in inner]
    links = tuple(window if i == outer else op.links[i] for i in keep)
    weight = _join_legs(op.weight, [op.legs.index(i) for i in (outer, *inner)])
    return replace(op, links=links, source=_kept(op.source, keep), value=_kept(op.value, keep), weight=weight)


def _kept(dims: Dims, keep: list[int]) -> Dims:
    return tuple(tuple(keep.index(i) for i in dim if i in keep) for dim in dims)


def _join_legs(weight: Weight, legs: list[int]) -> Weight:
    def compute() -> Tensor:
        tensor = weight.tensor()
        place = sum(leg not in legs for leg in range(legs[0]))
        joined = tensor.movedim(legs, tuple(range(place, place + len(legs))))
        return joined.flatten(place, place + len(legs) - 1)

    return Computed(compute)
