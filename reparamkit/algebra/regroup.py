"""Values with other dimensions: reshaped, permuted, of a rank that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import NotFusable
from ..reasons import Kind, Reason
from .form import Form, as_bias, with_guarded_dim, with_guarded_rank
from .operator import closed, pin, with_rank
from .size import Size, parts, product
from .views import Permute, Reshape, Same, View

NO_RANK = Reason("the rank of this tensor is unknown: pass example_inputs", Kind.SIZES)
"""Why what depends on the number of dimensions is not read."""


def reshape(x: Form, sizes: Sequence[Size], counts: bool = False) -> Form:
    """The value in other dimensions, row-major; see `views.Reshape`."""
    x = _same_numel(x, sizes)
    return _viewed(x, Reshape(x.sizes, tuple(sizes), counts))


def _same_numel(x: Form, sizes: Sequence[Size]) -> Form:
    """A reshape accepts only as many elements as there are: if that fixes one free size, it is fixed; if parts of a
    free size are asked for, it is a multiple.
    """
    x = _in_parts(x, sizes)
    pins = dict(x.sample.pins)
    before, after = product(x.sizes), product(size.substitute(pins) for size in sizes)
    shared = [symbol for symbol in after.symbols if symbol in before.symbols]
    rest = before.divide(Size(1, tuple(shared))) if len(shared) == len(after.symbols) else None
    if rest is None or len(rest.symbols) != 1 or rest.symbols[0].derived or after.factor % rest.factor:
        return x
    found = {rest.symbols[0]: after.factor // rest.factor}
    return x.mapped(lambda op: pin(op, found))


def _in_parts(x: Form, sizes: Sequence[Size]) -> Form:
    pins = {symbol: pin for size in sizes for symbol, pin in parts(size).items()}
    before, after = product(x.sizes), product(sizes)
    same_number = before.substitute(pins) == after.substitute(pins) and before != after
    return x.mapped(lambda op: pin(op, pins, guard=True)) if same_number else x


def permute(x: Form, order: Sequence[int]) -> Form:
    """The value with its dimensions permuted."""
    return _viewed(x, Permute(tuple(order)))


def same(x: Form) -> Form:
    """The value as it is, by a call that stays where it is."""
    return _viewed(x, Same())


def _viewed(x: Form, view: View) -> Form:
    seen = x.mapped(view.on_value)
    bias = None if seen.bias is None else as_bias(seen.bias)
    return replace(seen, bias=bias, recent=(*x.recent, view))


def ranked(x: Form) -> Form:
    """The form itself; refuses one of open rank."""
    if x.open_rank:
        raise NotFusable(NO_RANK)
    return x


def known_rank(x: Form, ranks: Sequence[int], certain: bool = True) -> Form:
    """The form of a value whose rank is one of `ranks`; of an open one, what is told of it, or the lowest it can have.

    certain: the layer itself checks the rank; otherwise a guard does.
    """
    if not x.open_rank:
        if len(x.sizes) not in ranks:
            raise NotFusable(
                f"expected a tensor of rank {' or '.join(map(str, ranks))}, found {len(x.sizes)}", Kind.SHAPES
            )
        return x if certain else with_guarded_rank(x)
    told = x.told_rank
    hidden = [rank - (len(x.sizes) - 1) for rank in ranks if rank >= len(x.sizes) and told in (None, rank)]
    if not hidden:
        raise NotFusable(NO_RANK)
    return x.mapped(lambda op: closed(op, hidden[0], certain))


def told_rank(x: Form) -> Form:
    """A form whose rank is known, if it is told: behind a guard."""
    told = x.told_rank
    return x if told is None or told < len(x.sizes) else known_rank(x, [told], certain=False)


def in_sight(x: Form, trailing: int) -> Form:
    """A form with at least `trailing` dimensions."""
    x = x.mapped(lambda op: with_rank(op, trailing))
    if len(x.sizes) < trailing:
        raise NotFusable(f"needs {trailing} dimensions, found {len(x.sizes)}", Kind.SHAPES)
    return x


def beside(x: Form, shape: Sequence[int]) -> Form:
    """A value that a constant of this shape is spread over. If it may have fewer dimensions, it would be spread itself
    over the ones that the shape begins with, which a guard rules out.
    """
    hidden = x.open_rank and len(shape) > max(1, len(x.sizes) - 1)
    x = in_sight(x, len(shape))
    return with_guarded_dim(x, -len(shape)) if hidden and shape[0] == 1 else x


def with_dim(x: Form, dim: int) -> Form:
    """The form with dimension `dim` in sight."""
    if dim < 0:
        return in_sight(x, -dim)
    if len(x.sizes) <= dim:
        raise NotFusable(f"dimension {dim} of a tensor of unknown rank: pass example_inputs", Kind.SIZES)
    return x
