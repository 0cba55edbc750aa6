"""Segments of an axis: zeros around it, what is cut out of it, and values one after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from ..errors import FreeSize, NotFusable
from ..reasons import Kind, Reason
from .align import traced_pins
from .build import matrix, window
from .builder import Builder
from .compose import compose, without_pad
from .form import Form, apply, plus, reduced
from .laws import DIRECT_SUM
from .operator import WHOLE, Edges, Operator, Role, pin
from .regroup import in_sight, permute
from .size import fixed, joined_pins, whole_multiples
from .views import Crop
from .weight import Computed, One, Ones

MIXES_BATCH = Reason("mixes the samples of a batch", Kind.SHAPES)
TAKES_NOTHING = Reason("a slice that takes nothing", Kind.SHAPES)

D, S, IN, OUT = Role.DIAGONAL, Role.STENCIL, Role.IN, Role.OUT


def padded(x: Form, pads: Sequence[tuple[int, int]]) -> Form:
    """Zeros around the last dimensions; ``pads[d]`` is (low, high), negative to crop."""

    def build(below: Operator) -> Operator:
        made = Builder(below)
        shape: list[int] = []
        for axis, (low, high) in enumerate(pads):
            shape += window(made, axis - len(pads), 1, 1, (low, high), 1)
        return made.done(Ones(tuple(shape)) if shape else One())

    return apply(in_sight(x, len(pads)), build)


def cropped(x: Form, dim: int, start: int, stop: int | None, step: int) -> Form:
    """``x[start:stop:step]`` along dimension `dim` (from the right); negative bounds count from the end.

    Raises `NotFusable`: a bound that counts from the other side than the free size grows, or nothing is left.
    """
    x = in_sight(x, -dim)
    size = x.sizes[dim]
    if not size.known and (start < 0 or (stop is not None and stop >= 0)):
        raise FreeSize("a slice up to a fixed position of a free size")
    n = size.factor if size.known else 0
    first = max(n + start, 0) if start < 0 else start
    last = 0 if stop is None else (stop if stop < 0 else min(stop - n, 0))

    if size.known and first >= n + last:
        raise NotFusable(TAKES_NOTHING)
    if (first, last, step) == (0, 0, 1):
        return permute(x, range(len(x.sizes)))
    view = Crop(dim, first, -last, size) if step == 1 and len(x.sample.value[dim]) == 1 else None
    return replace(apply(x, lambda below: _crop(below, dim, first, last, step)), recent=(*x.recent, view))


def _crop(below: Operator, dim: int, first: int, last: int, step: int = 1) -> Operator:
    """Every `step`-th position of a dimension from `first` on, up to `last`, which counts from the end."""
    made, size = Builder(below), below.value_sizes[dim]
    if size.known and len(below.value[dim]) > 1 and step == 1:
        return _part(below, dim, cut=(first, -last))
    if size.known and len(below.value[dim]) > 1:
        n = size.factor
        kept = torch.eye(n, dtype=torch.float64)[first : n + last : step]
        made.along(dim, made.atom(IN, size), made.atom(OUT, fixed(len(kept))))
        return made.done(Computed(lambda: kept.t().clone().reshape([k for k in (n, len(kept)) if k != 1])))
    atom = made.atom(S, made.size(dim), taps=(first,), stride=step, c=last - first - 1)
    made.through(dim, atom)
    return made.done(Ones((1,) * len(atom)))


def selected(x: Form, dim: int, positions: Sequence[int]) -> Form:
    """These positions of dimension `dim` (from the right), in this order: rows of an identity matrix."""
    x = fixed_dim(in_sight(x, -dim), dim)
    rows = torch.eye(x.sizes[dim].factor, dtype=torch.float64)[list(positions)]
    return matrix(x, rows, dim)


def concatenated(parts: Sequence[Form], dim: int) -> Form:
    """Values one after the other along dimension `dim` (from the right): the sum of each with zeros around it.

    Sizes along that dimension that are free are pinned to those of the example inputs, and guarded.
    """
    pins = joined_pins(pair for x in parts for term in x.terms.values() for pair in term.op.pins)
    known = [in_sight(x, -dim).mapped(lambda op: pin(op, pins)) for x in parts]
    parts = [fixed_dim(x, dim) for x in known]
    sizes = [x.sizes[dim] for x in parts]
    ends = list(itertools.accumulate(size.factor for size in sizes))
    placed = [_surrounded(x, dim, end - n.factor, ends[-1] - end) for x, n, end in zip(parts, sizes, ends, strict=True)]
    try:
        return reduce(plus, placed).made_by(DIRECT_SUM)
    except NotFusable:
        if all(x.sizes == placed[0].sizes for x in placed):
            raise
        raise NotFusable("a concatenation of values whose other sizes may differ", Kind.SHAPES) from None


def fixed_dim(x: Form, dim: int, size: int | None = None) -> Form:
    """A form whose dimension `dim` has a known size.

    size: what it must be, since the call fails otherwise; None: as for the example inputs, behind a guard.
    Raises `NotFusable` for the first dimension, the batch.
    """
    found = x.sizes[dim]
    if found.known:
        return x
    if dim == -len(x.sizes):
        raise NotFusable(MIXES_BATCH)
    if size is not None and found.factor == 1 and len(found.symbols) == 1 and not found.symbols[0].derived:
        return x.mapped(lambda op: pin(op, {found.symbols[0]: size}))
    pins = traced_pins([found])
    return x.mapped(lambda op: pin(op, pins, guard=True))


def in_multiples(x: Form, dim: int, count: int) -> Form:
    """A form whose dimension `dim` is a multiple of `count`, behind a guard if its size is free.

    Raises `NotFusable` if it is not known to be one.
    """
    size = x.sizes[dim]
    pins = whole_multiples(size, count) if size.divide(fixed(count)) is None else {}
    x = x.mapped(lambda op: pin(op, pins, guard=True))
    if x.sizes[dim].divide(fixed(count)) is None:
        raise NotFusable(f"a size that is not known to be a multiple of {count}", Kind.SIZES)
    return x


def _surrounded(x: Form, dim: int, before: int, after: int) -> Form:
    """Zeros before and after a value, which becomes one part of an axis."""
    return apply(x, lambda below: _part(below, dim, pad=(before, after)))


def _part(below: Operator, dim: int, **edges: Edges) -> Operator:
    """A part of a dimension of fixed size, cut out of it (cut), or with zeros around it (pad)."""
    made = Builder(below)
    atom = made.atom(D, made.size(dim), **edges)
    made.through(dim, atom)
    return made.done(Ones((made.links[0].leg_size,)))


def parts_of(form: Form) -> tuple[int, list[Form]] | None:
    """The dimension (from the right) of which each term of a sum fills a part of its own, and the parts in order."""
    fills = [(fill, source) for source, term in form.terms.items() if (fill := _filled(term.op)) is not None]
    if len(fills) < max(2, len(form.terms)) or len({dim for (dim, _, _), _ in fills}) > 1:
        return None
    fills.sort()
    dim, starts, ends = fills[0][0][0], [start for (_, start, _), _ in fills], [end for (_, _, end), _ in fills]
    if starts != [0, *ends[:-1]] or ends[-1] != form.sizes[dim].factor:
        return None
    return dim, [_alone(form, source, *fill) for fill, source in fills]


def _alone(form: Form, source: str, dim: int, start: int, end: int) -> Form:
    """The part of a dimension that one term fills, which has the bias that is added there."""
    term, bias = form.terms[source], form.bias
    if bias is not None:
        bias = reduced(compose(_crop(bias, dim, start, end - form.sizes[dim].factor), bias))
    return Form({source: term.with_op(without_pad(term.op, term.op.value[dim][0]))}, bias)


def _filled(op: Operator) -> tuple[int, int, int] | None:
    """The dimension (from the right) of which only a part is filled, its begin and its end."""
    for dim, (atoms, size) in enumerate(zip(op.value, op.value_sizes, strict=True)):
        if atoms and op.links[atoms[0]].pad != WHOLE and size.known:
            inner = math.prod(op.links[i].size_out.factor for i in atoms[1:])
            before, after = op.links[atoms[0]].pad
            return dim - len(op.value), before * inner, size.factor - after * inner
    return None
