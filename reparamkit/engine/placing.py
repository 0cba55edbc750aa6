"""Where a form can be written: on which way from source to value, in the place of which node, as which layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from ..algebra.form import OPEN_SUM, Form, Step, Trail, as_bias
from ..algebra.operator import Operator, Role
from ..algebra.probe import PROBE
from ..algebra.segments import parts_of
from ..algebra.size import ONE, Pin, Size, Symbol, fixed, free_size
from ..algebra.views import BEHIND_VIEW, Crop, Mean, Resampled, View
from ..capture.captured import Captured
from ..errors import NotFusable
from ..layers.convolutions import is_convolution, is_transposed, multiply_adds, padding_cost, uneven_cost
from ..layers.parts import rescaled
from ..layers.plans import LayerPlan
from ..layers.price import Cost, numel
from ..layers.writers import joining, scale_cost, shift_cost, turned
from ..reasons import Kind, Reason
from .identities import computes_the_same, does_nothing
from .reading import Reading


@dataclass(frozen=True, eq=False)
class Placement:
    """One term of a form, as it will be written.

    source: name of the value that is read. trail: the way whose views are kept.
    position: the step whose place the layer takes; None if only views are left. cost: of the layer and of these views.
    """

    source: str
    trail: Trail
    position: int | None
    layer: LayerPlan | None
    cost: Cost

    @property
    def anchor(self) -> str | None:
        """The node whose place the layer takes."""
        return None if self.position is None else self.trail[self.position].node

    @property
    def alone(self) -> bool:
        """Whether nothing but a layer is written."""
        kept = any(step.views for number, step in enumerate(self.trail) if number != self.position)
        return self.layer is not None and self.layer.bare and not kept

    @property
    def checked(self) -> int | None:
        """The dimension of the source (from the right) whose size the layer insists on."""
        dim = None if self.layer is None else self.layer.checks
        for view in reversed(_views(self.trail[: self.position])):
            dim = None if dim is None else view.origin(dim)
        return dim


@dataclass(frozen=True, eq=False)
class Placed:
    """A form with a place for each of its terms. cost: of the layers and of what joins them.

    dim: the terms are parts of this dimension (from the right), in this order; None if they are added up.
    guards: free sizes that must have the traced value or be a multiple, but for those that the layers themselves
        insist on.
    """

    form: Form
    terms: tuple[Placement, ...]
    cost: Cost
    dim: int | None = None
    guards: frozenset[tuple[Symbol, Pin]] = frozenset()

    @property
    def rank(self) -> tuple[int, bool]:
        """Of a value whose rank is guarded: how many dimensions it has, and whether there may be more."""
        exact = any(symbol.stands_for_dims for symbol, _ in self.guards)
        return len(self.form.sizes) - (self.form.open_rank and not exact), not exact


Views = tuple[View, ...]
Plan = Callable[[Operator, Operator | None], LayerPlan]
Known = tuple[Operator, Operator | None, Plan, Views, Views]
"""An operator and a bias, how to plan a layer, and the views before and behind it."""
Move = Callable[[View, Operator], Operator]
Moved = dict[tuple[Move, Operator, Views], Operator | Reason]
Weigh = Callable[[str], int]
"""How many numbers the node of a name stores: the merged layer takes the place of the heaviest."""


@dataclass(frozen=True)
class Means:
    """What decides between the ways to write a form. plan: gives the layer of an operator. lean: the fewest numbers are
    wanted, and the fewest operations, before the least work, which depends on sizes. known: what it gave, of operators
    between views, or why nothing: forms have most of their operators in common. moved: what views before and behind
    operators make of these, or why nothing.
    """

    weigh: Weigh
    plan: Plan
    lean: bool = False
    known: dict[Known, LayerPlan | Reason] = field(default_factory=dict)
    moved: Moved = field(default_factory=dict)


SizesOf = Callable[[str], tuple[Size, ...]]
"""The sizes of the value of a name."""


def place(form: Form, means: Means, sizes_of: SizesOf) -> Placed:
    """The cheapest way to write every term.

    Raises `NotFusable` if some term cannot be written as one layer between views.
    """
    if form.times != ONE:
        raise NotFusable(OPEN_SUM)
    if form.vanishes:
        raise NotFusable("a tensor of zeros is no layer", Kind.SHAPES)
    if fixed(0) in form.sizes:
        raise NotFusable("a tensor without numbers is no layer: some dimension has the size 0", Kind.SHAPES)
    parts = parts_of(form)
    made = _added(form, means) if parts is None else _concatenated(form, *parts, means)
    checked = {_size_at(sizes_of(p.source), p.source, p.checked) for p in made.terms if p.checked is not None}
    # A layer checks the size of a dimension, not how many there are.
    own = (g for g in _own_guards(form) if g[0].stands_for_dims or Size(1, (g[0],)) not in checked)
    return replace(made, guards=frozenset(own) | frozenset(_of_joined(form, made.terms, sizes_of)))


def _of_joined(form: Form, terms: Iterable[Placement], sizes_of: SizesOf) -> Iterator[tuple[Symbol, Pin]]:
    """The sizes of dimensions that a layer reads as one."""
    for term in terms:
        for dim in term.layer.joined if term.layer is not None else ():
            symbols = _size_at(sizes_of(term.source), term.source, dim).symbols
            yield from ((symbol, form.pins[symbol]) for symbol in symbols if symbol in form.pins)


def _size_at(sizes: tuple[Size, ...], source: str, dim: int) -> Size:
    """The size of a dimension (from the right) of a value, whose rank may be open."""
    seen = sizes[dim:][:1] if len(sizes) >= -dim else ()
    return next((size for size in seen if not any(s.stands_for_dims for s in size.symbols)), free_size(source, dim))


def _own_guards(form: Form) -> Iterator[tuple[Symbol, Pin]]:
    """The guards of a form, without those that follow from others. Raises `NotFusable` if one is of a size that only
    windows give, which no tensor at hand has.
    """
    given = {symbol: pin for symbol, pin in form.guards if not symbol.derived}
    for symbol, pin in form.guards:
        if symbol in given:
            yield symbol, pin
        elif Size(1, (symbol,)).substitute(given) != (pin if isinstance(pin, Size) else Size(pin)):
            raise NotFusable("a size that a guard must check does not reach the beginning of a merge", Kind.CODE)


def _concatenated(form: Form, dim: int, parts: list[Form], means: Means) -> Placed:
    """Each term fills a part of one dimension."""
    terms = tuple(_term(one, source, one.bias, means) for one in parts for source in one.terms)
    joined = Cost(0, numel(form.sizes), 0, 1)
    return Placed(form, terms, sum((p.cost for p in terms), joined), dim)


def _added(form: Form, means: Means) -> Placed:
    """The terms are added up; the bias goes to the one that takes it at the lowest cost."""
    carried = form.bias is not None and len(form.terms) > 1
    chosen: dict[str, Placement | Reason] = {}
    refused: list[Reason] = []
    for name in sorted(form.terms):
        chosen[name] = found = _tried_term(form, name, None if carried else form.bias, means)
        refused += [found] if isinstance(found, Reason) else []
        if len(refused) > carried:
            # One that cannot be written without the bias may be with it.
            raise NotFusable(refused[0])
    if carried:
        chosen = _with_carrier(form, chosen, means)
    placed: list[Placement] = []
    for found in chosen.values():
        if isinstance(found, Reason):
            raise NotFusable(found)
        placed.append(found)
    return Placed(form, tuple(placed), _total(form, placed))


def _with_carrier(form: Form, bare: dict[str, Placement | Reason], means: Means) -> dict[str, Placement | Reason]:
    """The placements, of which one has the bias; if none takes it, why."""
    assert form.bias is not None
    least, carried = (0, form.bias.stored), dict[str, Placement | Reason]()
    for name in [name for name, found in bare.items() if isinstance(found, Reason)] or bare:
        carried[name] = _tried_term(form, name, form.bias, means)
        if not isinstance(carried[name], Reason) and _growth(bare[name], carried[name]) == least:
            # No term takes it for less.
            break
    able = [n for n, found in carried.items() if not isinstance(found, Reason)]
    if not able:
        return carried
    carrier = min(able, key=lambda n: _growth(bare[n], carried[n]))
    return bare | {carrier: carried[carrier]}


def _tried_term(form: Form, source: str, bias: Operator | None, means: Means) -> Placement | Reason:
    """The placement of one term, or why there is none."""
    try:
        return _term(form, source, bias, means)
    except NotFusable as no:
        return no.reason


def _growth(bare: Placement | Reason, carried: Placement | Reason) -> tuple[int, int]:
    """What it costs that a term carries the bias; nothing is known of one that cannot be written without."""
    before, after = _cost(bare), _cost(carried)
    return after.flops - before.flops, after.stored - before.stored


def _cost(found: Placement | Reason) -> Cost:
    return Cost() if isinstance(found, Reason) else found.cost


def _total(form: Form, placements: list[Placement]) -> Cost:
    sums = len(placements) - 1
    elements = numel(form.sizes) * sums
    return sum((p.cost for p in placements), Cost(0, elements, 0, sums))


def _term(form: Form, source: str, bias: Operator | None, means: Means) -> Placement:
    op = form.terms[source].op
    trails = form.terms[source].trails
    if bias is None and (way := _viewed(op, trails)) is not None:
        return Placement(source, way, None, None, _kept(op, way, len(way)))
    refused: dict[Known, Reason] = {}

    def placed(ways: Iterable[tuple[Trail, int]], how: Plan = means.plan) -> Iterator[Placement]:
        for way, position in ways:
            key = op, bias, how, _views(way[:position]), _views(way[position + 1 :])
            if key not in means.known:
                means.known[key] = _planned(*key, means)
            layer = means.known[key]
            if isinstance(layer, LayerPlan):
                yield Placement(source, way, position, layer, layer.cost + _kept(op, way, position))
            else:
                refused.setdefault(key, layer)

    ways = [(trail, position) for trail in trails for position in _positions(trail, means.weigh)]
    spare = [trail for trail in trails if any(map(_spare, trail))]
    found = [*placed([*ways, *(_alone(*way) for way in ways if way[0] in spare)])]
    reasons = [*refused.values()]
    # Views that layers between them undo, as those around a concatenation that is summed, go with the layers.
    found = found or [*placed(itertools.starmap(_alone, ways))]
    found = found or [*placed((way for way in ways if not _views(way[0])), turned)]
    found = found or [*placed(itertools.starmap(_alone, ways), joining)]
    if not found:
        raise NotFusable(reasons[-1] if reasons else Reason("no way through the graph to write it on", Kind.SHAPES))
    return min(found, key=lambda p: _rank(p, means))


def _alone(trail: Trail, position: int) -> tuple[Trail, int]:
    """A way on which nothing but the layer at one position of another is left."""
    return (trail[position],), 0


def _viewed(op: Operator, trails: Sequence[Trail]) -> Trail | None:
    """The shortest way whose views alone are the operator; nothing at all for one that does nothing."""
    if not (op.is_identity or op.resamples):
        return None
    found = (trail for trail in sorted(trails, key=len) if _is_viewed(op, trail))
    return next(found, () if op.is_identity and op.source == op.value else None)


def _is_viewed(op: Operator, trail: Trail) -> bool:
    if op.is_identity:
        # What is cropped on the way of an identity is what a layer before it adds, which no view does.
        return not any(isinstance(view, Crop) for view in _views(trail))
    try:
        return _read_before(op, _views(trail), {}).is_identity
    except NotFusable:
        return False


def _kept(op: Operator, trail: Trail, at: int) -> Cost:
    """What the steps cost that stay on the way, before and behind a layer at step `at`."""
    cost = Cost()
    if all(step.is_layer or _step_cost(step, (), ()) == cost for step in trail):
        return cost
    for step in reversed(trail[at + 1 :]):
        after = op
        op, _ = _without(op, None, step.views, {})
        cost += _step_cost(step, op.value_sizes, after.value_sizes)
    for step in trail[:at]:
        before = op
        op = _read_before(op, step.views, {})
        cost += _step_cost(step, before.source_sizes, op.source_sizes)
    return cost


def _step_cost(step: Step, before: tuple[Size, ...], after: tuple[Size, ...]) -> Cost:
    """What a step costs that stays, from a tensor of one shape to one of another; plain views are free."""
    taps = [view.taps for view in step.views if isinstance(view, Resampled)]
    if taps or _copies(step):
        work = math.prod(taps) if taps else 0
        return Cost(work * numel(after), 0 if work else numel(after), 0, 1)
    if any(isinstance(view, Mean) for view in step.views):
        return Cost(0, numel(before), 0, 1)
    return Cost()


def _planned(
    op: Operator, bias: Operator | None, how: Plan, before: Views, after: Views, means: Means
) -> LayerPlan | Reason:
    """The layer between these views, or why there is none."""
    try:
        inner, shift = _without(op, bias, after, means.moved)
        return how(_read_before(inner, before, means.moved), shift)
    except NotFusable as no:
        return no.reason


def _rank(placement: Placement, means: Means) -> tuple[int, int, int, int, int]:
    if placement.layer is None or placement.anchor is None:
        return 0, 0, 0, 0, len(placement.trail)
    cost = placement.cost
    weight = (cost.stored, cost.launches, cost.flops) if means.lean else (cost.flops, cost.stored, cost.launches)
    return *weight, -means.weigh(placement.anchor), len(placement.trail)


def _copies(step: Step) -> bool:
    """Whether a step moves numbers in memory, as a shuffle does; a plain view does not."""
    return sum(not isinstance(view, Crop) for view in step.views) > 1


def _spare(step: Step) -> bool:
    """Whether a layer may do better without a step, that it can do as well: a shuffle, or a crop."""
    return not step.is_layer and (_copies(step) or any(isinstance(view, Crop) for view in step.views))


def _positions(trail: Trail, weigh: Weigh) -> Iterator[int]:
    """The heaviest layer of each stretch between views."""
    for is_layer, stretch in itertools.groupby(enumerate(trail), key=lambda entry: entry[1].is_layer):
        if is_layer:
            yield max(stretch, key=lambda entry: weigh(entry[1].node))[0]


def _read_before(op: Operator, views: Views, known: Moved) -> Operator:
    """The operator that gives `op` when it reads what these views make of the source. known: what was found out."""
    inner = op
    for number, view in enumerate(views):
        inner = _once(known, _read, op, views[: number + 1], view, inner)
    return inner


def _without(op: Operator, bias: Operator | None, after: Views, known: Moved) -> tuple[Operator, Operator | None]:
    """The operator and the bias after which these views give `op` and `bias`. known: what was found out."""
    inner, shift = op, bias
    for number in reversed(range(len(after))):
        view, rest = after[number], after[number:]
        inner = _once(known, _undone, op, rest, view, inner)
        shift = None if bias is None or shift is None else _once(known, _undone_of_bias, bias, rest, view, shift)
    return inner, shift


def _once(known: Moved, move: Move, op: Operator, views: Views, view: View, inner: Operator) -> Operator:
    """An operator with all these views moved. inner: with all but the last, `view`."""
    key = move, op, views
    if key not in known:
        try:
            known[key] = move(view, inner)
        except NotFusable as no:
            known[key] = no.reason
    found = known[key]
    if isinstance(found, Reason):
        raise NotFusable(found)
    return found


def _read(view: View, op: Operator) -> Operator:
    return view.on_source(op)


def _undone(view: View, op: Operator) -> Operator:
    made = view.undone(op)
    if made.source_sizes != op.source_sizes:
        raise NotFusable(BEHIND_VIEW)
    return made


def _undone_of_bias(view: View, bias: Operator) -> Operator:
    return as_bias(view.undone(bias))


def _views(steps: tuple[Step, ...]) -> Views:
    return tuple(view for step in steps for view in step.views)


def node_cost(reading: Reading, node: fx.Node, stored: int = 0, form: Form | None = None) -> Cost:
    """What a node that was read costs over its own inputs, with `stored` numbers; form: for other sizes than it was
    read with.
    """
    form = form or reading.read[node]
    if node in reading.moves:
        launches = reading.moves[node]
        return Cost(0, launches * numel(form.sizes), stored, launches)
    if node.target is rescaled:
        return _part_cost(form, node.args[1], stored)
    if does_nothing(form) and computes_the_same(reading.captured, node):
        return Cost(0, numel(form.sizes), stored, 1)
    kind = _kind(reading.captured, node)
    return layer_cost(form, stored, is_transposed(kind), is_convolution(kind))


def _part_cost(form: Form, span: Any, stored: int) -> Cost:
    """What it costs to scale a part of a value."""
    elements = numel(form.sizes)
    if span is not None:
        dim, first, last = span
        elements = elements * (form.sizes[dim].factor - first - last) // form.sizes[dim].factor
    return Cost(0, elements, stored, 1)


def spreads(captured: Captured, node: fx.Node) -> bool:
    """Whether a node is a transposed convolution."""
    return is_transposed(_kind(captured, node))


def _kind(captured: Captured, node: fx.Node) -> object:
    """The class of the layer, or the function, that a node calls."""
    return type(captured.module(node)) if node.op == "call_module" else node.target


def layer_cost(form: Form, stored: int, transposed: bool = False, convolves: bool = False) -> Cost:
    """What a node costs that computes `form` directly, with `stored` numbers. transposed, convolves: whether it is a
    transposed convolution, and any convolution: one that only scales multiplies and adds all the same.
    """
    op = form.sample
    elements = numel(form.sizes)
    if len(form.terms) > 1:
        return Cost(0, elements * (len(form.terms) - 1), stored, 1)
    steps = {step for term in form.terms.values() for trail in term.trails for step in trail if step.views}
    if steps:
        return sum((_step_cost(step, op.source_sizes, op.value_sizes) for step in steps), Cost(0, 0, stored, 0))
    if PROBE in form.used:
        # Its own cost is unknown; too low a price can only keep it as it is.
        return Cost(0, elements, stored, 1)
    shift = shift_cost(form.bias) if form.bias is not None and _stands_alone(op, form.bias) else Cost()
    if op.has(Role.IN, Role.OUT, Role.STENCIL):
        return Cost(multiply_adds(op, transposed), 0, stored, 1) + padding_cost(op) + uneven_cost(op) + shift
    if shift.launches and op.is_identity:
        return shift + Cost(0, 0, stored, 0)
    if op.is_identity and form.bias is None:
        return Cost(0, 0, stored, 0)
    if convolves:
        return Cost(elements, 0, stored, 1)
    if op.has(Role.MEAN):
        return Cost(0, numel(op.source_sizes), stored, 1)
    return scale_cost(op, form.bias, stored)


def _stands_alone(op: Operator, bias: Operator) -> bool:
    """Whether no layer that computes an operator has this bias as its own: it has borders, or differs along what the
    operator only passes through, or a window reads.
    """
    if bias.has(Role.BORDER):
        return True
    mixes = op.has(Role.IN, Role.OUT, Role.STENCIL)
    passed = [d for d, dim in enumerate(op.value) if all(op.links[i].role in (Role.FREE, Role.STENCIL) for i in dim)]
    return mixes and any(bias.links[i].has_leg and bias.links[i].leg_size > 1 for d in passed for i in bias.value[d])
