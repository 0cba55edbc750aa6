"""Constants that take sizes from a value: zeros to begin a sum with, a parameter that is spread over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..errors import NotFusable
from ..reasons import Kind, Reason
from .add import ZEROS_BROADCAST
from .build import added, biased
from .form import Form, apply
from .laws import CHAIN
from .operator import Link, Operator, Role, pin, zeros
from .size import ONE, Size, window_of
from .weight import One

CONSTANT_BROADCASTS = Reason("a value and a constant that may differ in shape: broadcasting is not merged", Kind.SHAPES)


def spread(like: Form, sizes: Sequence[Size], constant: Tensor | None = None) -> Form:
    """A constant that broadcasts to these sizes, which are numbers or those of a value; None: zeros.

    like: the value, as it is.
    Raises `NotFusable`: a free size is none of the value's, nor that of a window over it.
    """
    made = like.mapped(lambda op: zeros(_resized(op, sizes)))
    made = made if constant is None else added(made, constant)
    return replace(made, recent=(None,))


def _resized(below: Operator, sizes: Sequence[Size]) -> Operator:
    """An operator that makes a tensor of these sizes; what it does with the numbers is of no matter."""
    left = dict(enumerate(below.value_sizes))
    links: list[Link] = []
    source: list[tuple[int, ...]] = [()] * len(left)
    value: list[tuple[int, ...]] = []
    for size in sizes:
        value.append(() if size == ONE else (len(links),))
        if size.known:
            links += [] if size == ONE else [Link(Role.OUT, size)]
            continue
        dim, link = _taken(left, size)
        source[dim] = (len(links),)
        links.append(link)
        del left[dim]
    for dim, size in left.items():
        source[dim] = (len(links),)
        links.append(Link(Role.MEAN, size))
    return replace(below, links=tuple(links), source=tuple(source), value=tuple(value), weight=One())


def _taken(left: dict[int, Size], size: Size) -> tuple[int, Link]:
    """The dimension that has a free size, or of which a window makes it."""
    for dim, own in left.items():
        if own == size:
            return dim, Link(Role.FREE, size)
    inner = window_of(size)
    for dim, own in left.items():
        if inner is not None and inner[0] == own:
            return dim, Link(Role.STENCIL, own, stride=inner[1], c=inner[2])
    raise NotFusable("a constant whose size is free, and none of the value that it is read from", Kind.SIZES)


def multiplied(x: Form, constant: Form) -> Form:
    """The product of a value and a constant that `spread` made."""
    x = _told(x, constant)
    factor = _on(x, constant)
    if factor is None:
        raise NotFusable("a product with zeros", Kind.SHAPES)
    return apply(x, lambda below: _stretched(factor, below), trusted=False)


def shifted(x: Form, constant: Form) -> Form:
    """The sum of a value and a constant that `spread` made, which broadcasts to it."""
    x = _told(x, constant)
    field = _on(x, constant)
    if field is None:
        raise NotFusable(ZEROS_BROADCAST)
    return biased(x, _stretched(field, x.sample)).made_by(CHAIN)


def broadcasts(constant: Form, x: Form) -> bool:
    """Whether a constant that `spread` made may broadcast to a value of as many dimensions."""
    same_rank = len(constant.sizes) == len(x.sizes) and not x.open_rank
    return constant.vanishes and not x.vanishes and same_rank and constant.sizes != x.sizes


def _told(x: Form, constant: Form) -> Form:
    """The value, with what the constant tells of its sizes and ranks behind guards."""
    told = dict(constant.sample.pins)
    known = x.mapped(lambda op: pin(op, told, guard=True) if told.items() - op.pins else op)
    return known.mapped(lambda op: replace(op, guards=op.guards | constant.guards))


def _on(x: Form, constant: Form) -> Operator | None:
    """The constant as a bias of the value. A number is guarded where the size of the other is free."""
    pins = dict(x.sample.pins)
    sizes = [size.substitute(pins) for size in constant.sizes]
    apart = [a not in (b, ONE) and a.known == b.known for a, b in zip(sizes, x.sizes, strict=False)]
    if x.open_rank or len(sizes) != len(x.sizes) or any(apart):
        raise NotFusable(CONSTANT_BROADCASTS)
    return None if constant.bias is None else pin(constant.bias, pins)


def _stretched(bias: Operator, below: Operator) -> Operator:
    """A bias on the dimensions of below's value, all positions alike where it has but one."""
    links, dims = list(bias.links), list(bias.value)
    for d, atoms in enumerate(below.value):
        if not dims[d]:
            dims[d] = tuple(range(len(links), len(links) + len(atoms)))
            links += [Link(Role.FREE, below.links[i].size_out) for i in atoms]
    return replace(bias, links=tuple(links), source=tuple(dims), value=tuple(dims))
