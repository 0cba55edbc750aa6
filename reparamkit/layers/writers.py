"""From an operator to the plainest layer that computes it: scale, linear, convolution, grouped convolution.

Structure first: `plan` says what layer it would be and what it costs; `LayerPlan.module` computes the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from torch import nn

from ..algebra.form import as_bias
from ..algebra.operator import Operator, Role, identity
from ..algebra.probe import PROBE
from ..algebra.regroup import NO_RANK
from ..algebra.relink import strided, unmoved, whole
from ..errors import NotFusable
from ..reasons import Kind, Reason
from .convolutions import CONVS, conv_of, padded
from .plans import (
    MIXES_DIMS,
    NOTHING_MIXED,
    Attempt,
    Call,
    LayerPlan,
    Scale,
    broadcast,
    check_passes,
    fill,
    mixing,
    tried,
    uniform,
    vector_along,
)
from .price import Cost, numel
from .shift import Shift

FREE_MATRIX = Reason("a matrix of free size", Kind.SIZES)

F, S, IN, OUT, BORDER = Role.FREE, Role.STENCIL, Role.IN, Role.OUT, Role.BORDER


def plan(op: Operator, bias: Operator | None, uneven: bool = False, transposed: bool = False) -> LayerPlan:
    """The cheapest layer that computes ``op(x) + bias``, or one that computes ``op(x)`` and one that adds the bias.

    uneven: whether zeros may be added to one end of the input by a pass of its own, to spare taps that are zero.
    transposed: whether a transposed convolution may do what a plain one can.
    Raises `NotFusable` if no such layers do on tensors of these dimensions.
    """
    if len(op.source) != len(op.value):
        raise NotFusable("a layer that changes the number of dimensions", Kind.SHAPES)
    if op.resamples:
        return padded(op, bias)
    op = unmoved(strided(whole(op)))
    ranks = tuple(rank for rank in CONVS if len(op.value) - rank == 2 or (op.open_rank and len(op.value) - rank > 2))
    plans = [made for attempt in _attempts(ranks, uneven, transposed) if (made := tried(attempt, op, bias)) is not None]
    if not plans and bias is not None and (beside := tried(_beside, op, bias)) is not None:
        return beside
    if not plans:
        raise NotFusable(_why_not(op, bias))
    # Of equals, a convolution: its result is contiguous, which code behind it may count on.
    return min(plans, key=lambda p: (p.cost.flops, p.cost.stored, p.cost.launches, p.kind == "scale"))


def turned(op: Operator, bias: Operator | None) -> LayerPlan:
    """A layer whose value has the dimensions of its source, in their order, those that it mixes as one; views make of
    them what is wanted.

    Raises `NotFusable` as `plan` does, and where the dimensions are in order.
    """
    joined = _mixed(op)
    op = _as_one(op, joined)
    homes = _homes(op) if op.has(S, IN, OUT) else []
    if not homes or (homes == [[d] for d in range(len(op.source))] and not joined):
        raise NotFusable(MIXES_DIMS)
    made = plan(_regrouped(op, homes), None if bias is None else as_bias(_regrouped(bias, homes)))
    calls, elements = [*_split_up(op, homes)], 0
    order = [d for home in homes for d in home]
    if order != sorted(order):
        if op.open_rank:
            raise NotFusable(NO_RANK)
        # Code behind it may count on numbers in their order.
        calls += [("permute", tuple(order.index(d) for d in range(len(order)))), ("contiguous", ())]
        elements = numel(op.value_sizes)
    return replace(made, cost=made.cost + Cost(0, elements, 0, bool(elements)), calls=tuple(calls), joined=joined)


def joining(op: Operator, bias: Operator | None) -> LayerPlan:
    """As `turned`, of dimensions that are mixed: no layer is between the views that join them."""
    if not _mixed(op):
        raise NotFusable(MIXES_DIMS)
    return turned(op, bias)


def _mixed(op: Operator) -> tuple[int, ...]:
    """The dimensions of the source (from the right) that are summed over together, from the first to the last of them,
    if they are several; none if something else stands between.
    """
    found = [d for d, dim in enumerate(op.source) if any(op.links[i].role is IN for i in dim)]
    within = range(found[0], found[-1] + 1) if len(found) > 1 else range(0)
    # One that is read as a full matrix over everything is no layer that would be cheaper as that.
    alone = PROBE not in op.via and all(op.links[i].role is IN for d in within for i in op.source[d])
    return tuple(d - len(op.source) for d in within) if alone else ()


def _as_one(op: Operator, joined: tuple[int, ...]) -> Operator:
    """An operator that reads dimensions side by side as one."""
    if not joined:
        return op
    first, end = len(op.source) + joined[0], len(op.source) + joined[-1] + 1
    one = tuple(i for dim in op.source[first:end] for i in dim)
    return replace(op, source=(*op.source[:first], one, *op.source[end:]))


def _homes(op: Operator) -> list[list[int]]:
    """For each dimension of the source those of the value that its atoms are in; what is made anew is where something
    is summed.
    """
    place = {i: d for d, dim in enumerate(op.source) for i in dim}
    mixed = {d for i, d in place.items() if op.links[i].role is IN}
    homes: list[list[int]] = [[] for _ in op.source]
    for number, dim in enumerate(op.value):
        found = [*({place[i] for i in dim if i in place} or mixed)]
        if len(found) != 1:
            raise NotFusable(MIXES_DIMS)
        homes[found[0]].append(number)
    if any(len(home) != 1 and {d} != mixed for d, home in enumerate(homes)):
        raise NotFusable(MIXES_DIMS)
    return homes


def _regrouped(op: Operator, homes: list[list[int]]) -> Operator:
    return replace(op, value=tuple(tuple(i for d in home for i in op.value[d]) for home in homes))


def _split_up(op: Operator, homes: list[list[int]]) -> Iterator[Call]:
    """The calls that give each dimension of the value its own."""
    for dim, home in enumerate(homes, start=-len(homes)):
        if not home:
            yield "squeeze", (dim,)
        elif len(home) > 1:
            sizes = [op.value_sizes[d] for d in home]
            if not all(size.known for size in sizes):
                raise NotFusable(FREE_MATRIX)
            yield "unflatten", (dim, tuple(size.factor for size in sizes))


def _why_not(op: Operator, bias: Operator | None) -> Reason:
    """What stands in the way of a single layer."""
    mixed = [d for d, (a, b) in enumerate(zip(op.source, op.value, strict=True)) if a != b]
    if len(mixed) > 1:
        return Reason("no single layer computes this: it mixes several dimensions at once", Kind.SHAPES)
    alone = "no single layer computes this: it is no scale, matrix or convolution of one dimension"
    return Reason(alone, Kind.SHAPES)


AT_BORDERS = Reason(
    "zero padding: a bias or shift before a padded window makes border values differ, which needs a pass of its own",
    Kind.BORDER,
)


IN_PLACES = Reason("the bias would differ from place to place, which needs a pass of its own", Kind.COST)


def _beside(op: Operator, bias: Operator | None) -> LayerPlan:
    """A layer without its bias, and one that adds it."""
    assert bias is not None
    made = plan(op, None)
    shift = tried(_scale, identity(op.value_sizes), bias) or _shift(bias)
    return LayerPlan(
        made.kind,
        made.cost + shift.cost,
        lambda: nn.Sequential(made.build(), shift.build()),
        beside=AT_BORDERS if bias.has(BORDER) else IN_PLACES,
    )


def _shift(bias: Operator) -> LayerPlan:
    """The layer that adds a bias with borders, along whole dimensions."""
    bias = uniform(bias)
    edges = [[bias.links[i] for i in dim if bias.links[i].role is BORDER] for dim in bias.value]
    if any(edge and len(dim) > 1 for edge, dim in zip(edges, bias.value, strict=True)):
        raise NotFusable("a border along part of a dimension", Kind.BORDER)
    if any(link.size.hint < link.low + link.high for edge in edges for link in edge):
        raise NotFusable("zero padding: the map is smaller than its borders", Kind.BORDER)
    if not any(edges):
        raise NotFusable("a bias that differs from place to place, and not at borders", Kind.BORDER)
    first = next(d for d, edge in enumerate(edges) if edge)
    borders = [(edge[0].low, edge[0].high) if edge else (0, 0) for edge in edges[first:]]
    cost = shift_cost(bias) + Cost(0, 0, bias.stored, 0)
    return LayerPlan("shift", cost, lambda: Shift(broadcast(bias), borders))


def shift_cost(bias: Operator) -> Cost:
    """What it costs to add a bias, stretched along each dimension that has borders."""
    elements = numel(bias.value_sizes)
    launches = 1 + sum(any(bias.links[i].role is BORDER for i in dim) for dim in bias.value)
    return Cost(0, elements, 0, launches)


def _scale(op: Operator, bias: Operator | None) -> LayerPlan:
    if op.source != op.value or op.has(S, IN, OUT, Role.MEAN) or (bias is not None and bias.has(BORDER)):
        raise NotFusable("not a scale", Kind.SHAPES)
    op = uniform(op)
    shift = None if bias is None else uniform(bias)
    stored = (0 if op.is_identity else op.stored) + (0 if shift is None else shift.stored)

    def build() -> nn.Module:
        weight = None if op.is_identity else broadcast(op)
        return Scale(weight, None if shift is None else broadcast(shift))

    return LayerPlan("scale", scale_cost(op, bias, stored), build)


def scale_cost(op: Operator, bias: Operator | None, stored: int) -> Cost:
    """What a pass costs that multiplies each number, adds to it, or both."""
    elements = numel(op.value_sizes)
    both = bias is not None and not op.is_identity
    return Cost(0, elements, stored, 1, further=elements if both else 0)


def _linear(op: Operator, bias: Operator | None) -> LayerPlan:
    rank = len(op.value)
    if not op.has(IN, OUT):
        raise NotFusable(NOTHING_MIXED)
    check_passes(op, range(rank - 1), (F,))
    mixed, vector = mixing(op, -1, grouped=False), vector_along(bias, -1)
    rows, columns = mixed.value_sizes[-1].factor, mixed.source_sizes[-1].factor
    if not (mixed.value_sizes[-1].known and mixed.source_sizes[-1].known):
        raise NotFusable(FREE_MATRIX)

    def build() -> nn.Module:
        layer = nn.Linear(columns, rows, bias=vector is not None, device="meta")
        legs = list(mixed.legs)
        order = [legs.index(i) for i in (*mixed.value[-1], *mixed.source[-1])]
        fill(layer, mixed.weight.tensor().permute(order).reshape(rows, columns), vector, rows)
        return layer

    stored = rows * columns + (rows if vector is not None else 0)
    return LayerPlan(
        "linear", Cost(numel(mixed.value_sizes) * columns, 0, stored, 1), build, rows * (vector is not None), checks=-1
    )


@cache
def _attempts(ranks: tuple[int, ...], uneven: bool, transposed: bool) -> tuple[Attempt, ...]:
    """Ways to write an operator as one layer, or as zeros around its input and a layer. ranks: of convolutions that
    take tensors of so many dimensions.
    """
    return _scale, _linear, *(conv_of(rank, uneven, transposed) for rank in ranks)
