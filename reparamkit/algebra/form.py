"""A form: what a value is as a function of some sources, ``sum over sources of Op(source) + bias``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import FreeSize, NotFusable
from ..reasons import Kind, Reason
from .add import add
from .border import hits, windowed
from .compose import compose
from .operator import Link, Operator, Role, closed, dropped, identity, pin, with_rank, zeros
from .relink import densify, extended
from .size import ONE, Pin, Size, Symbol, fixed, joined_pins, present, roots
from .views import Mean, View
from .weight import Computed, One, Spent, Weight

OPEN_SUM = Reason("a sum over an axis whose size is free", Kind.SIZES)
"""Why what sums over a free size is nothing by itself."""
SUM_BROADCASTS = Reason("a sum that broadcasts", Kind.SHAPES)


@dataclass(frozen=True)
class Step:
    """One node on the way from a source to a value.

    views: for a node that only regroups its input, how; such a node can stay around a merged layer.
    is_layer: the node is merged away; a layer may be written in its place.
    """

    node: str
    views: tuple[View, ...] = ()
    is_layer: bool = False

    @property
    def spelled(self) -> bool:
        """Whether the node is the last of several that the step is made of: no call of it is the step."""
        return any(isinstance(view, Mean) and view.spelled for view in self.views)


Trail = tuple[Step, ...]
CONSTANT_FOLD = "constant_fold"
MAX_TRAILS = 12
"""Ways from a source to a value that are remembered; one of them is written."""


@dataclass(frozen=True)
class Term:
    """The part of a form that reads one source.

    trails: the ways through the graph from the source to the value.
    """

    op: Operator
    trails: tuple[Trail, ...] = ((),)

    def with_op(self, op: Operator) -> Term:
        """The same ways, with another operator."""
        return self if op is self.op else Term(op, self.trails)


@dataclass(frozen=True)
class Form:
    """``sum over sources of op(source) + bias``.

    terms: per source (the name of a value) its operator.
    bias: an operator of FREE, DIAGONAL and BORDER links, applied to a tensor of ones of the value's shape; None
        for no bias.
    recent: what was applied since the last `stepped`: views, and None for a layer or a sum.
    times: the free number by which the value is still to be divided, as a sum over an axis of free size is. Such a form
        is of no value by itself: nothing but the division reads it.
    """

    terms: Mapping[str, Term]
    bias: Operator | None = None
    recent: tuple[View | None, ...] = ()
    times: Size = ONE

    @property
    def used(self) -> frozenset[str]:
        """Names of the rules the form is built with."""
        bias = self.bias.via if self.bias is not None else frozenset()
        return frozenset().union(bias, *(term.op.via for term in self.terms.values()))

    @property
    def sample(self) -> Operator:
        """Any of the operators; all have the same value dimensions."""
        return next(iter(self.terms.values())).op

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Size of each dimension of the value."""
        return self.sample.value_sizes

    @property
    def open_rank(self) -> bool:
        """Whether the first dimension stands for any number of dimensions."""
        return self.sample.open_rank

    @property
    def told_rank(self) -> int | None:
        """How many dimensions a value of open rank has, where that is told; None if not."""
        op = self.sample
        symbols = op.links[op.source[0][0]].size.symbols if self.open_rank else ()
        if not symbols or symbols[0].dims is None:
            return None
        _, taken = symbols[0].origin
        assert isinstance(taken, int)
        return symbols[0].dims - taken + len(op.value) - 1

    @property
    def pins(self) -> dict[Symbol, Pin]:
        """The free sizes that its terms fix."""
        return dict(pair for term in self.terms.values() for pair in term.op.pins)

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The free sizes of what it reads that the sizes of its operators depend on."""
        links = (link for term in self.terms.values() for link in term.op.links)
        return tuple(dict.fromkeys(symbol for link in links for symbol in roots(link.size)))

    @property
    def guards(self) -> frozenset[tuple[Symbol, Pin]]:
        """Free sizes that must have the traced value, or be a multiple."""
        return frozenset().union(*(term.op.guards for term in self.terms.values()))

    @property
    def vanishes(self) -> bool:
        """Whether it is a tensor of zeros (and a bias)."""
        return all(term.op.vanishes for term in self.terms.values())

    def mapped(self, change: Callable[[Operator], Operator]) -> Form:
        """Change every operator and the bias in the same way."""
        terms = {s: term.with_op(change(term.op)) for s, term in self.terms.items()}
        bias = None if self.bias is None else change(self.bias)
        same = bias is self.bias and all(terms[s] is term for s, term in self.terms.items())
        return self if same else replace(self, terms=terms, bias=bias)

    def __add__(self, other: Form) -> Form:
        """The form of the sum of two values of one shape."""
        return plus(self, other)

    def made_by(self, law: str) -> Form:
        """The same form, that needs the permission to use `law`."""
        return self.mapped(lambda op: replace(op, via=op.via | {law}))

    def spent(self) -> Form:
        """The same form without its numbers: roles, sizes and trails."""
        return self.mapped(lambda op: op if isinstance(op.weight, One) else replace(op, weight=Spent()))

    def stepped(self, node: str) -> Form:
        """The same form, one node further on every trail; of a sum that is to be divided, the division is the step."""
        if self.times != ONE:
            return self
        views = tuple(view for view in self.recent if view is not None)
        if None in self.recent and views:
            # A layer with views inside cannot be cut open: what is written at it or beyond it reads the source.
            alone = ((Step(node, is_layer=True),),)
            return Form({s: Term(t.op, alone) for s, t in self.terms.items()}, self.bias)
        step = Step(node, views, is_layer=not views)
        terms = {s: Term(t.op, tuple((*trail, step) for trail in t.trails)) for s, t in self.terms.items()}
        return Form(terms, self.bias)


def with_guarded_rank(form: Form, or_more: bool = False) -> Form:
    """The same form, that holds for sources of the traced ranks only, or of at least as many dimensions."""
    terms = {s: replace(t, op=_guarded(t.op, _of_rank(s, len(t.op.source), or_more))) for s, t in form.terms.items()}
    return replace(form, terms=terms)


def _of_rank(source: str, rank: int, or_more: bool) -> tuple[Symbol, Pin]:
    first = Symbol((source, -rank))
    return (first, present(first)) if or_more else (Symbol((source, 0)), rank)


def with_guarded_dim(form: Form, dim: int) -> Form:
    """The same form, that holds for sources that have what dimension `dim` (from the right) of the value is made of."""
    symbols = form.sizes[dim].symbols
    return form.mapped(lambda op: _guarded(op, *((symbol, present(symbol)) for symbol in symbols)))


def _guarded(op: Operator, *guards: tuple[Symbol, Pin]) -> Operator:
    return replace(op, guards=op.guards.union(guards))


def source_form(name: str, sizes: tuple[Size, ...], open_rank: bool = False) -> Form:
    """The form of a value that is taken as it is."""
    return Form({name: Term(identity(sizes, open_rank))})


def apply(form: Form, layer: Callable[[Operator], Operator], trusted: bool = True) -> Form:
    """The form of ``g(value)``; `layer` builds g on the dimensions of an operator's value."""
    terms = {s: t.with_op(_composed(layer, t.op, trusted)) for s, t in form.terms.items()}
    # What is read of a concatenation need not be every part of it.
    read = {s: t for s, t in terms.items() if not t.op.is_zero} or terms
    bias = form.bias
    if bias is not None:
        bias = reduced(_resampled(compose(layer(bias), bias, trusted)))
    return _agreed(replace(form, terms=read, bias=bias, recent=(*form.recent, None)))


def _composed(layer: Callable[[Operator], Operator], op: Operator, trusted: bool) -> Operator:
    made = compose(layer(op), op, trusted)
    return zeros(made) if op.vanishes else made


def _resampled(bias: Operator) -> Operator:
    """A constant stays one, see `Resampling`."""
    if any(link.after for link in bias.links):
        raise NotFusable("a bias that varies along an axis that is resampled", Kind.RESAMPLED)
    return replace(bias, links=tuple(replace(link, maps=()) for link in bias.links))


def plus(f: Form, g: Form) -> Form:
    """The form of the sum of two values of one shape."""
    if f.open_rank == g.open_rank and len(f.sizes) != len(g.sizes) and not f.open_rank:
        raise NotFusable(SUM_BROADCASTS)
    shared = f.terms.keys() & g.terms.keys()
    terms = {**f.terms, **g.terms} | {s: _summed(f.terms[s], g.terms[s]) for s in sorted(shared)}
    made = _agreed(Form(terms, added_bias(f.bias, g.bias), (*f.recent, *g.recent, None)))
    return _without_zeros(made, {s: term for s, term in terms.items() if not term.op.vanishes})


def _summed(f: Term, g: Term) -> Term:
    trails = [term.trails for term in (f, g) if not term.op.vanishes] or [f.trails]
    return Term(add(f.op, g.op), tuple(dict.fromkeys(itertools.chain(*trails)))[:MAX_TRAILS])


def _without_zeros(form: Form, others: Mapping[str, Term]) -> Form:
    """The terms that are more than zeros. others: they, before they shared what is known of sizes."""
    if not others or len(others) == len(form.terms):
        return form
    known = frozenset[tuple[Symbol, Pin]]().union(*(term.op.pins for term in others.values()))
    made = replace(form, terms={s: form.terms[s] for s in others})
    if not made.sample.pins <= known or made.guards != form.guards:
        raise NotFusable("a sum with zeros, whose shape alone tells a size", Kind.SHAPES)
    return made


def added_bias(f: Operator | None, g: Operator | None) -> Operator | None:
    """The sum of two biases."""
    if f is None or g is None:
        return g if f is None else f
    # Groups that do not nest make a matrix of the two vectors, which ones turn back to a vector.
    return replace(reduced(add(f, g)), via=f.via | g.via)


def _agreed(form: Form) -> Form:
    """All terms and the bias must have one shape, and share what is known about free sizes."""
    if form.bias is not None:
        form = replace(form, bias=_in_frame(form.bias, form.sample))
    operators = [*(term.op for term in form.terms.values()), *filter(None, [form.bias])]
    pins = joined_pins(pair for op in operators for pair in op.pins)
    form = form.mapped(lambda op: op if op.pins == pins.items() else pin(op, pins))
    sizes = form.sizes
    for term in form.terms.values():
        if term.op.value_sizes != sizes or term.op.open_rank != form.open_rank:
            raise NotFusable("a sum whose terms may differ in shape: broadcasting is not merged", Kind.SHAPES)
    return form


def _in_frame(bias: Operator, op: Operator) -> Operator:
    """`bias` with as many dimensions in sight as the values it is added to."""
    if not bias.open_rank:
        return bias
    if op.open_rank:
        return with_rank(bias, len(op.value) - 1)
    return closed(bias, len(op.value) - (len(bias.value) - 1))


# --- biases: diagonal operators on a tensor of ones -------------------------------------------------


def as_bias(op: Operator) -> Operator:
    """A bias after a view of its value: it stands on the value's dimensions; links of size 1 that were made on the
    other side go.
    """
    inside = {i for dim in op.value for i in dim}
    while (number := next((i for i in range(len(op.links)) if i not in inside), None)) is not None:
        op = dropped(replace(op, source=tuple(tuple(i for i in dim if i != number) for dim in op.source)), number)
        inside = {i for dim in op.value for i in dim}
    return replace(op, source=op.value)


def reduced(op: Operator) -> Operator:
    """What `op` makes of a tensor of ones: an operator of FREE, DIAGONAL and BORDER links on the value's shape.

    Raises `NotFusable`: what a window makes of ones at the border of an axis of free size depends on that size.
    """
    while (number := _unreadable(op)) is not None:
        op = densify(op, number)
    inside = [i for dim in op.value for i in dim]
    links = tuple(_ones_link(op.links[i]) for i in inside)
    dims = tuple(tuple(inside.index(i) for i in dim) for dim in op.value)
    return replace(op, links=links, source=dims, value=dims, weight=_ones_weight(op, inside))


def _unreadable(op: Operator) -> int | None:
    """A stencil that makes of ones what only a full matrix can tell."""
    for number, link in enumerate(op.links):
        if link.role is Role.STENCIL and _of_ones(link) is None:
            if not link.size.known and link.up > 1:
                raise FreeSize(
                    "zero padding: a bias or shift before a transposed window is another at each position of a stride,"
                    " and at the borders",
                    Kind.BORDER,
                )
            if not link.size.known:
                raise FreeSize(
                    "zero padding: a bias or shift before a padded window makes border values differ, and how depends"
                    " on a size that is free",
                    Kind.BORDER,
                )
            return number
    return None


def _of_ones(link: Link) -> Link | None:
    """What a stencil makes of ones."""
    return windowed(Link(Role.FREE, link.size), link)


def _ones_link(link: Link) -> Link:
    if link.role in (Role.DIAGONAL, Role.OUT):
        return Link(Role.DIAGONAL, link.size_out)
    made = _of_ones(link) if link.role is Role.STENCIL else link
    assert made is not None
    return made if made.low + made.high else Link(Role.FREE, made.size)


def _ones_weight(op: Operator, inside: list[int]) -> Weight:
    """Per leg: IN atoms are summed, taps are summed as far as they read ones."""
    gone = [op.links[i].role is Role.IN or (i in inside and not _ones_link(op.links[i]).has_leg) for i in op.legs]
    summed = tuple(place for place, goes in enumerate(gone) if goes)
    kept = [i for i, goes in zip(op.legs, gone, strict=True) if not goes]
    order = [kept.index(i) for i in inside if i in kept]
    spread = [(place, op.links[i]) for place, i in enumerate(kept) if op.links[i].role is Role.STENCIL]
    pads = [op.links[i].pad for i in inside if i in kept]

    def compute() -> Tensor:
        tensor = op.weight.tensor()
        tensor = tensor.sum(summed) if summed else tensor
        for place, link in spread:
            read = hits(Link(Role.FREE, link.size), link, _ones_link(link))
            tensor = torch.tensordot(tensor.movedim(place, -1), read, dims=1).movedim(-1, place)
        tensor = tensor.permute(order)
        for leg, pad in enumerate(pads):
            tensor = extended(tensor, leg, *pad)
        return tensor

    return Computed(compute)


def repeated_bias(bias: Operator, dim: int, count: int) -> Operator:
    """A bias whose every position along dimension `dim` stands `count` times in a row."""
    atoms = bias.value[dim]
    if not atoms:
        number = len(bias.links)
        dims = tuple((number,) if d == dim % len(bias.value) else atom for d, atom in enumerate(bias.value))
        return replace(bias, links=(*bias.links, Link(Role.FREE, fixed(count))), source=dims, value=dims)
    number, link = atoms[-1], bias.links[atoms[-1]]
    links = list(bias.links)
    links[number] = replace(link, size=link.size * fixed(count), low=link.low * count, high=link.high * count)
    made = replace(bias, links=tuple(links))
    if not link.has_leg:
        return made
    leg = bias.legs.index(number)
    times = [1 if link.role is Role.BORDER and k == link.low else count for k in range(link.leg_size)]
    return replace(made, weight=Computed(lambda: bias.weight.tensor().repeat_interleave(torch.tensor(times), dim=leg)))
