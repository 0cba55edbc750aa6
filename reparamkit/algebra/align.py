"""Refine two operators until the atoms of a tensor they share coincide.

Two descriptions of one dimension, say 12 = (4, 3) and 12 = (2, 6), are split to common atoms
(2, 2, 3). Groups that do not nest, (2, 3) and (3, 2), are made dense and joined to one atom of 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import FreeSize, NotFusable
from ..reasons import Kind
from .operator import Atoms, Link, Operator, Role, dropped, pin
from .relink import as_part, densify, is_shift, link_halves, merge, split
from .size import ONE, Pin, Size, Symbol, equal_multiples, product, roots
from .weight import Computed, Weight

Side = Literal["source", "value"]


@dataclass(frozen=True)
class Face:
    """One side of an operator: the tensor it reads (source) or makes (value)."""

    op: Operator
    side: Side

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def dims(self) -> tuple[tuple[int, ...], ...]:
        return self.op.source if self.side == "source" else self.op.value

    def links(self, dim: int) -> list[Link]:
        return [self.op.links[i] for i in self.dims[dim]]

    def sizes(self, dim: int) -> tuple[Size, ...]:
        return self.atoms[dim]

    @property
    def atoms(self) -> Atoms:
        """Sizes of the atoms of each dimension."""
        return self.op.source_atoms if self.side == "source" else self.op.value_atoms

    def split(self, dim: int, at: int, outer: Size) -> Face:
        inner = self.sizes(dim)[at].divide(outer)
        assert inner is not None
        face, number = self, self.dims[dim][at]
        if is_shift(self.op.links[number]):
            face = replace(self, op=as_part(self.op, number))
        link = face.op.links[number]
        if link.role is Role.DIAGONAL and link_halves(link, outer, inner) is None:
            face = replace(face, op=densify(face.op, number))
        return replace(face, op=split(face.op, face.dims[dim][at], outer, inner))

    def with_unit(self, dim: int, at: int) -> Face:
        """Make an axis of size 1 visible as an atom."""
        number = len(self.op.links)
        new = [list(d) for d in self.dims]
        new[dim].insert(at, number)
        dims = tuple(map(tuple, new))
        # The atom is on this side only: as an IN or OUT atom of size 1 it is a full 1x1 matrix.
        role = Role.IN if self.side == "source" else Role.OUT
        weight = _with_unit_leg(self.op)
        op = replace(self.op, links=(*self.op.links, Link(role, ONE)), weight=weight)
        return replace(self, op=replace(op, source=dims) if self.side == "source" else replace(op, value=dims))

    def coarsened(self, dim: int, at: int, count: int) -> Face:
        """Join `count` atoms from `at` on to one dense atom."""
        face = self
        role = Role.IN if self.side == "source" else Role.OUT
        for k in range(at, at + count):
            if face.links(dim)[k].role is not role:
                face = replace(face, op=densify(face.op, face.dims[dim][k]))
        return face if count == 1 else replace(face, op=merge(face.op, face.dims[dim][at : at + count]))

    def without_units(self) -> Face:
        """Forget axes of size 1: in row-major order they have no place of their own."""
        face = self
        while (number := face._unit()) is not None:
            if face.op.links[number].role in (Role.DIAGONAL, Role.STENCIL, Role.BORDER):
                face = replace(face, op=densify(face.op, number))
            else:
                face = face.without_unit(number)
        return face

    def without_unit(self, number: int) -> Face:
        """Forget an atom of size 1; one that a resampling left is a mean over the axis, of which the value has none."""
        link = self.op.links[number]
        if self.side == "source" or link.role is not Role.FREE or not link.maps:
            return replace(self, op=dropped(self.op, number))
        links = [replace(each, role=Role.MEAN) if i == number else each for i, each in enumerate(self.op.links)]
        value = tuple(tuple(i for i in dim if i != number) for dim in self.op.value)
        return replace(self, op=replace(self.op, links=tuple(links), value=value))

    def _unit(self) -> int | None:
        for dim, sizes in zip(self.dims, self.atoms, strict=True):
            if ONE in sizes:
                return dim[sizes.index(ONE)]
        return None

    def pinned(self, pins: Mapping[Symbol, Pin], guard: bool) -> Face:
        return replace(self, op=pin(self.op, pins, guard))


def _with_unit_leg(op: Operator) -> Weight:
    return Computed(lambda: op.weight.tensor().unsqueeze(-1))


def align(a: Face, b: Face, trusted: bool) -> tuple[Face, Face]:
    """Refine both operators so that each dimension of the shared tensor has the same atoms.

    trusted: sizes that meet are equal for every input the model accepts (a layer checks them); otherwise
        one of them may be 1 and broadcast, and a free size that meets a number needs a guard.
    """
    if a.rank != b.rank:
        raise NotFusable(f"tensors of rank {a.rank} and {b.rank} meet: broadcasting is not merged", Kind.SHAPES)
    a, b = _share_pins(a, b)
    if a.atoms == b.atoms:
        return a, b
    for dim in range(a.rank):
        at = 0
        while at < max(len(a.dims[dim]), len(b.dims[dim])):
            a, b, at = _step(a, b, dim, at, trusted)
    return a, b


def _share_pins(a: Face, b: Face) -> tuple[Face, Face]:
    pins_a, pins_b = dict(a.op.pins), dict(b.op.pins)
    if pins_a != pins_b:
        a, b = a.pinned(pins_b, guard=False), b.pinned(pins_a, guard=False)
    return a, b


def _step(a: Face, b: Face, dim: int, at: int, trusted: bool) -> tuple[Face, Face, int]:
    """Make atom `at` of dimension `dim` agree, or bring it nearer to that."""
    sizes_a, sizes_b = a.sizes(dim)[at:], b.sizes(dim)[at:]
    if not sizes_a or not sizes_b:
        return *_unit(a, b, dim, at, trusted), at
    size_a, size_b = sizes_a[0], sizes_b[0]
    if size_a == size_b:
        return a, b, at + 1
    if size_a.divide(size_b) is not None:
        return a.split(dim, at, size_b), b, at
    if size_b.divide(size_a) is not None:
        return a, b.split(dim, at, size_a), at
    if size_a.known and size_b.known:
        return *_coarsen(a, b, dim, at), at
    return *_pin(a, b, dim, at, trusted), at


def _unit(a: Face, b: Face, dim: int, at: int, trusted: bool) -> tuple[Face, Face]:
    """One side has no atom left, the other has: an axis of size 1."""
    short, long = (a, b) if len(a.dims[dim]) <= at else (b, a)
    size = long.sizes(dim)[at]
    number = long.dims[dim][at]
    if size.known and size != ONE:
        raise NotFusable(f"sizes 1 and {size} meet: broadcasting is not merged", Kind.SHAPES)
    if not size.known:
        long = _pinned_unit(long, size, trusted)
    elif long.op.links[number].role is Role.FREE:
        long = long.without_unit(number)
    else:
        short = short.with_unit(dim, at)
    return (short, long) if len(a.dims[dim]) <= at else (long, short)


def _pinned_unit(face: Face, size: Size, trusted: bool) -> Face:
    """An atom beside which the other tensor has size 1."""
    if trusted and len(size.symbols) == 1 and size.factor == 1 and not size.symbols[0].derived:
        # Guarded, as an axis of size 1 leaves nothing in the merged layer that would insist on it.
        return face.pinned({size.symbols[0]: 1}, guard=True)
    pins = traced_pins([size])
    if size.hint != 1:
        raise FreeSize(f"sizes 1 and {size.hint} meet: broadcasting is not merged", Kind.SHAPES)
    return face.pinned(pins, guard=True)


def _coarsen(a: Face, b: Face, dim: int, at: int) -> tuple[Face, Face]:
    """Two plain numbers that do not divide each other."""
    size_a, size_b = a.sizes(dim)[at].factor, b.sizes(dim)[at].factor
    common = math.gcd(size_a, size_b)
    if common > 1:
        return a.split(dim, at, Size(common)), b.split(dim, at, Size(common))
    count_a, count_b = _run(a.sizes(dim)[at:], b.sizes(dim)[at:])
    return a.coarsened(dim, at, count_a), b.coarsened(dim, at, count_b)


def _run(sizes_a: Sequence[Size], sizes_b: Sequence[Size]) -> tuple[int, int]:
    """How many atoms of each side make up the same product."""
    count_a, count_b = 1, 1
    product_a, product_b = sizes_a[0].factor, sizes_b[0].factor
    while product_a != product_b:
        grow_a = product_a < product_b
        rest = sizes_a[count_a:] if grow_a else sizes_b[count_b:]
        if not rest or not rest[0].known:
            raise NotFusable(f"sizes {product_a} and {product_b} meet and do not agree", Kind.SHAPES)
        if grow_a:
            product_a, count_a = product_a * rest[0].factor, count_a + 1
        else:
            product_b, count_b = product_b * rest[0].factor, count_b + 1
    return count_a, count_b


def _pin(a: Face, b: Face, dim: int, at: int, trusted: bool) -> tuple[Face, Face]:
    """A free size meets a number: the layer itself rejects any other, or the traced size is guarded."""
    rest_a, rest_b = a.sizes(dim)[at:], b.sizes(dim)[at:]
    if len(rest_a) == 1 and product(rest_b).known:
        return _pinned_whole(a, dim, product(rest_b).factor, trusted), b
    if len(rest_b) == 1 and product(rest_a).known:
        return a, _pinned_whole(b, dim, product(rest_a).factor, trusted)
    if trusted and (told := _told(product(rest_a), product(rest_b))):
        return a.pinned(told, guard=False), b.pinned(told, guard=False)
    pins = equal_multiples(rest_a[0], rest_b[0]) or traced_pins(rest_a + rest_b)
    return a.pinned(pins, guard=True), b.pinned(pins, guard=True)


def _told(a: Size, b: Size) -> dict[Symbol, Pin]:
    """What a free size is whose product with numbers is a number; nothing if that is not all there is."""
    number, size = (a, b) if a.known else (b, a)
    alone = number.known and len(size.symbols) == 1 and not size.symbols[0].derived
    return {size.symbols[0]: number.factor // size.factor} if alone and number.factor % size.factor == 0 else {}


def _pinned_whole(face: Face, dim: int, number: int, trusted: bool) -> Face:
    """The last atom of a dimension makes up what is left of it, which has `number` positions."""
    size, link = face.sizes(dim)[-1], face.links(dim)[-1]
    if len(size.symbols) == 1 and size.factor == 1 and not size.symbols[0].derived:
        if not trusted and size.traced and size.hint != number:
            raise _meeting(size, number)
        return face.pinned({size.symbols[0]: number}, guard=not trusted)
    if trusted and link.role is Role.FREE and not link.resamples:
        links = list(face.op.links)
        links[face.dims[dim][-1]] = link.resized(Size(number))
        return replace(face, op=replace(face.op, links=tuple(links)))
    pins = traced_pins([size])
    if size.hint != number:
        raise _meeting(size, number)
    return face.pinned(pins, guard=True)


def _meeting(size: Size, number: int) -> NotFusable:
    return NotFusable(f"sizes {size.hint} and {number} meet: broadcasting is not merged", Kind.SHAPES)


def traced_pins(sizes: Sequence[Size]) -> dict[Symbol, Pin]:
    """What the free symbols of these sizes were for the example inputs.

    Raises `FreeSize` if there were none.
    """
    symbols = set().union(*(roots(size) for size in sizes))
    if not all(symbol.traced for symbol in symbols):
        raise FreeSize("depends on a size that is unknown: pass example_inputs")
    return {symbol: symbol.hint for symbol in symbols}
