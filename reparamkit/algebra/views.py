"""Views: reshape and permute regroup the atoms of a tensor; they are not operators.

Each view can be applied to either side of an operator, and undone on its value, so that a layer can be
written at any point between the views of a path.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from ..errors import NotFusable
from ..reasons import Kind, Reason
from .align import Face, Side
from .operator import NO_MAPS, Dims, Link, Operator, Resampling, Role
from .size import ONE, Size, product

BEHIND_VIEW = Reason("a layer that changes the dimensions behind a view", Kind.SHAPES)
BEFORE_VIEW = Reason("a layer that changes the number of dimensions before a view", Kind.SHAPES)
UNFOLLOWED = Reason("a reshape whose sizes cannot be followed", Kind.SIZES)


class View(ABC):
    """A step of a path that can stay as it is when the layers around it are merged."""

    def origin(self, dim: int) -> int | None:
        """The dimension that is dimension `dim` of the result, both from the right; None if no single one is."""
        return None

    @abstractmethod
    def on_value(self, op: Operator) -> Operator:
        """`op`, then this view."""

    @abstractmethod
    def undone(self, op: Operator) -> Operator:
        """The operator after which this view gives `op`."""

    @abstractmethod
    def on_source(self, op: Operator) -> Operator:
        """The operator that gives `op` when it reads this view of the source."""


@final
@dataclass(frozen=True)
class Reshape(View):
    """From sizes `before` to sizes `after`, in row-major order.

    counts: whether the call counts dimensions, as flatten and squeeze do. If it only moves those of size 1, or joins
    some, it does so for layers around it that have other sizes, too.
    """

    before: tuple[Size, ...]
    after: tuple[Size, ...]
    counts: bool = False

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # What views make of operators is looked up by them.
        return hash((self.before, self.after, self.counts))

    def on_value(self, op: Operator) -> Operator:
        return _regrouped(op, "value", self.after)

    def undone(self, op: Operator) -> Operator:
        return self._on(op, "value", self.after, self.before)

    def on_source(self, op: Operator) -> Operator:
        return self._on(op, "source", self.before, self.after)

    def _on(self, op: Operator, side: Side, old: tuple[Size, ...], new: tuple[Size, ...]) -> Operator:
        pins = dict(op.pins)
        old, new = (tuple(size.substitute(pins) for size in sizes) for sizes in (old, new))
        if self.counts and _without_ones(old) == _without_ones(new):
            return _with_ones(op, side, old, new)
        if self.counts and side == "source" and op.source_sizes != old and (run := _joined(old, new)) is not None:
            return _with_joined(op, *run, len(old))
        if side == "value" and op.value_sizes != old:
            new = self._split(op.value_sizes, old, new)
        return _regrouped(op, side, new)

    def _split(self, found: tuple[Size, ...], old: tuple[Size, ...], new: tuple[Size, ...]) -> tuple[Size, ...]:
        """`found` where `old` was, with the dimension that the call joined as those of `new`."""
        run = _joined(new, old) if self.counts and len(found) == len(old) else None
        if run is None or found[run[0]] != old[run[0]]:
            raise NotFusable(BEHIND_VIEW)
        first, end = run
        return (*found[:first], *new[first:end], *found[first + 1 :])


@final
@dataclass(frozen=True)
class Same(View):
    """The value as it is, whatever its rank."""

    def origin(self, dim: int) -> int:
        return dim

    def on_value(self, op: Operator) -> Operator:
        return op

    def undone(self, op: Operator) -> Operator:
        return op

    def on_source(self, op: Operator) -> Operator:
        return op


@final
@dataclass(frozen=True)
class Permute(View):
    """Dimension ``order[d]`` becomes dimension ``d``."""

    order: tuple[int, ...]

    def origin(self, dim: int) -> int:
        return self.order[dim] - len(self.order)

    def on_value(self, op: Operator) -> Operator:
        return replace(op, value=tuple(op.value[d] for d in self.order))

    def undone(self, op: Operator) -> Operator:
        if len(op.value) != len(self.order):
            raise NotFusable("a layer that changes the number of dimensions behind a view", Kind.SHAPES)
        return replace(op, value=tuple(op.value[self.order.index(d)] for d in range(len(self.order))))

    def on_source(self, op: Operator) -> Operator:
        if len(op.source) != len(self.order):
            raise NotFusable(BEFORE_VIEW)
        return replace(op, source=tuple(op.source[d] for d in self.order))


@final
@dataclass(frozen=True)
class Mean(View):
    """The average over whole dimensions, numbered from the right; it commutes with layers that do not see them.

    spelled: whether code has it in several calls, as ``x.sum(1) / x.size(1)``.
    """

    dims: tuple[int, ...]
    keepdim: bool
    spelled: bool = False

    def on_value(self, op: Operator) -> Operator:
        raise NotImplementedError("an average is composed as an operator, see build.mean")

    def undone(self, op: Operator) -> Operator:
        raise NotFusable("a layer before an average is not cheaper than one after it", Kind.COST)

    def on_source(self, op: Operator) -> Operator:
        rank = len(op.source)
        gone = {d % rank for d in self.dims}
        averaged = [i for d in gone for i in op.source[d]]
        if any(op.links[i].role is not Role.MEAN or op.links[i].maps for i in averaged):
            raise NotFusable("the layers around an average see the averaged axes", Kind.SHAPES)
        keep = [i for i in range(len(op.links)) if i not in averaged]
        source = tuple(
            tuple(keep.index(i) for i in dim if i in keep)
            for d, dim in enumerate(op.source)
            if self.keepdim or d not in gone
        )
        value = tuple(tuple(keep.index(i) for i in dim) for dim in op.value)
        return replace(op, links=tuple(op.links[i] for i in keep), source=source, value=value)


@final
@dataclass(frozen=True)
class Crop(View):
    """The value without its first `first` and last `last` positions along dimension `dim` (from the right).

    size: of the dimension before.
    """

    dim: int
    first: int
    last: int
    size: Size

    def origin(self, dim: int) -> int | None:
        return None if dim == self.dim else dim

    def on_value(self, op: Operator) -> Operator:
        raise NotImplementedError("a crop is composed as an operator, see build.cropped")

    def undone(self, op: Operator) -> Operator:
        atoms = _atoms(op.value, self.dim)
        if len(atoms) != 1 or op.links[atoms[0]].role not in (Role.STENCIL, Role.FREE):
            raise NotFusable("a layer that goes differently about the positions that are cropped", Kind.SHAPES)
        links = list(op.links)
        links[atoms[0]] = self._longer(links[atoms[0]])
        if links[atoms[0]].size_out != self.size.substitute(dict(op.pins)):
            raise NotFusable(BEHIND_VIEW)
        return replace(op, links=tuple(links))

    def _longer(self, link: Link) -> Link:
        """With more positions at both ends: position i behind the crop is position ``i + first`` before it."""
        if link.role is Role.FREE:
            return link.resized(self.size)
        moved = tuple(tap - link.stride * self.first for tap in link.taps)
        return replace(link, taps=moved, c=link.c + link.stride * (self.first + self.last))

    def on_source(self, op: Operator) -> Operator:
        raise NotFusable("a layer behind a crop reads what is left", Kind.SHAPES)


@final
@dataclass(frozen=True)
class Resampled(View):
    """Some dimensions (from the right), each resampled."""

    maps: tuple[tuple[int, Resampling], ...]

    @property
    def taps(self) -> int:
        """Multiply-adds per number of the result; 0 for a copy."""
        return math.prod(each.taps for _, each in self.maps)

    def origin(self, dim: int) -> int | None:
        return None if dim in dict(self.maps) else dim

    def on_value(self, op: Operator) -> Operator:
        raise NotImplementedError("a resampling is composed as an operator, see build.resampled")

    def undone(self, op: Operator) -> Operator:
        """Of a bias, a constant along these dimensions, too."""
        links = list(op.links)
        for dim, each in self.maps:
            number = _only(_atoms(op.value, dim))
            links[number] = _before(links[number], each.pinned(dict(op.pins)))
        return replace(op, links=tuple(links))

    def on_source(self, op: Operator) -> Operator:
        links = list(op.links)
        for dim, each in self.maps:
            number = _only(_atoms(op.source, dim))
            if links[number].maps[:1] != (each.pinned(dict(op.pins)),):
                raise NotFusable("a layer before a resampling that does not commute with it", Kind.RESAMPLED)
            links[number] = replace(links[number], maps=links[number].maps[1:])
        return replace(op, links=tuple(links))


def _before(link: Link, last: Resampling) -> Link:
    """A link without its last resampling; a constant, which has none left, was one before it too."""
    maps = link.maps if link.role is Role.FREE else link.after
    if maps[-1:] != (last,) and (maps or link.role is not Role.FREE):
        raise NotFusable("a layer behind a resampling runs or varies along the axis", Kind.RESAMPLED)
    if link.role is Role.FREE:
        return replace(link, size=last.before, maps=maps[:-1])
    return replace(link, after=maps[:-1])


def _atoms(dims: Dims, dim: int) -> tuple[int, ...]:
    """The atoms of a dimension (from the right), if there is one."""
    if len(dims) < -dim:
        raise NotFusable("a layer that changes the number of dimensions beside a view", Kind.SHAPES)
    return dims[dim]


def _only(atoms: tuple[int, ...]) -> int:
    if len(atoms) != 1:
        raise NotFusable(NO_MAPS)
    return atoms[0]


def _without_ones(sizes: tuple[Size, ...]) -> list[Size]:
    return [size for size in sizes if size != ONE]


def _with_ones(op: Operator, side: Side, old: tuple[Size, ...], new: tuple[Size, ...]) -> Operator:
    """The dimensions of one side, those of size 1 of `old` left out and those of `new` put in."""
    face = Face(op, side).without_units()
    if len(face.dims) != len(old) or any(dim for dim, size in zip(face.dims, old, strict=True) if size == ONE):
        raise NotFusable(UNFOLLOWED)
    kept = iter([dim for dim, size in zip(face.dims, old, strict=True) if size != ONE])
    dims = tuple(() if size == ONE else next(kept) for size in new)
    return replace(face.op, source=dims) if side == "source" else replace(face.op, value=dims)


def _joined(old: tuple[Size, ...], new: tuple[Size, ...]) -> tuple[int, int] | None:
    """The dimensions of `old`, from the first to before the last, that are one of `new`, all others as they are."""
    count = len(old) - len(new) + 1
    ends = ((d, d + count) for d in range(len(new)) if count > 1)
    return next((e for e in ends if (*old[: e[0]], product(old[slice(*e)]), *old[e[1] :]) == new), None)


def _with_joined(op: Operator, first: int, end: int, rank: int) -> Operator:
    """An operator that reads some dimensions of its source as one."""
    if op.open_rank or len(op.source) != rank:
        raise NotFusable(BEFORE_VIEW)
    joined = tuple(i for dim in op.source[first:end] for i in dim)
    return replace(op, source=(*op.source[:first], joined, *op.source[end:]))


def _regrouped(op: Operator, side: Side, sizes: tuple[Size, ...]) -> Operator:
    """Regroup the atoms of one side to dimensions of the given sizes."""
    pins = dict(op.pins)
    wanted = [size.substitute(pins) for size in sizes]
    face = _one_dim(Face(op, side)).without_units()
    bounds = [0]
    for size in wanted:
        face, end = _taken(face, bounds[-1], size)
        bounds.append(end)
    atoms = face.dims[0]
    if bounds[-1] != len(atoms):
        raise NotFusable(UNFOLLOWED)
    dims = tuple(tuple(atoms[a:b]) for a, b in itertools.pairwise(bounds))
    return replace(face.op, source=dims) if side == "source" else replace(face.op, value=dims)


def _one_dim(face: Face) -> Face:
    if face.op.open_rank:
        raise NotFusable("a reshape of a tensor of unknown rank: pass example_inputs", Kind.SIZES)
    flat = (tuple(i for dim in face.dims for i in dim),)
    op = replace(face.op, source=flat) if face.side == "source" else replace(face.op, value=flat)
    return replace(face, op=op)


def _taken(face: Face, at: int, size: Size) -> tuple[Face, int]:
    """Split atoms from `at` on so that some of them make up `size`."""
    while size != ONE:
        sizes = face.sizes(0)
        if at == len(sizes):
            raise NotFusable(UNFOLLOWED)
        rest = size.divide(sizes[at])
        if rest is not None:
            size, at = rest, at + 1
            continue
        face = face.split(0, at, _common(sizes[at], size))
    return face, at


def _common(atom: Size, size: Size) -> Size:
    """The outer part of `atom` that belongs to a dimension of `size`."""
    if atom.divide(size) is not None:
        return size
    common = math.gcd(atom.factor, size.factor)
    if not (atom.known and size.known) or common == 1:
        raise NotFusable("a reshape that regroups free sizes, or sizes that do not nest", Kind.SIZES)
    return Size(common)
