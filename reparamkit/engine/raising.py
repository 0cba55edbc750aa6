"""Scales of a part of a value, as scales of the whole: then the layer before the split can absorb them.

``q, k, v = f(x).chunk(3, -1)`` and ``s q``: the rows of f that make q are multiplied by s, at no cost. The mirror image
of `absorb`: there all that read a value take its scale, here what makes it does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from ..algebra.form import as_bias
from ..algebra.operator import Operator
from ..algebra.views import Crop, Permute, Reshape, Same, View
from ..capture.capture import Captured
from ..capture.trees import leaves, map_leaves
from ..errors import NotFusable
from ..layers.parts import rescaled
from ..layers.plans import broadcast, uniform
from .absorb import is_scale
from .pricing import readers_of
from .reading import Reading
from .scope import Scope
from .site import Plan

Prove = Callable[[fx.Node, fx.Node, fx.Node], None]
"""Raises `NotFusable` if two values are not proved to be the same function of a third: the old, the new, the third."""


@dataclass(frozen=True, eq=False)
class Raised:
    """A scale that stands at the whole. part: the value that it scaled. op, target, args, kwargs, val: what it was."""

    scale: fx.Node
    part: fx.Node
    op: str
    target: Any
    args: Any
    kwargs: Any
    val: Any


@dataclass(frozen=True, eq=False)
class Way:
    """From a value that is split to a scale of a part of it: the slice, then views. layer: what makes the value, and
    views of that. args: of `rescaled`.
    """

    scale: fx.Node
    views: tuple[fx.Node, ...]
    layer: frozenset[fx.Node]
    args: tuple[Any, ...]

    @property
    def whole(self) -> fx.Node:
        """The value that is split."""
        return self.views[0].all_input_nodes[0]


def scaled_parts(captured: Captured, scope: Scope, reading: Reading) -> list[Way]:
    """The scales of parts that are not read as they are; of each value one, as the next would scale another."""
    found: list[Way] = []
    seen: set[fx.Node] = set()
    for node in captured.graph.nodes:
        way = None if scope.refusal(node) else _way(captured, reading, node)
        if way is not None and seen.isdisjoint(way.layer):
            found.append(way)
            seen |= way.layer
    return found


def raise_scales(captured: Captured, ways: Collection[Way], prove: Prove) -> list[Raised]:
    """Let these scales scale the whole. The node stays the same, so that whatever refers to the scale still does."""
    raised = [_raise(captured, way) for way in ways if _proved(captured, way, prove)]
    captured.raised.update(each.scale for each in raised)
    captured.forget()
    return raised


def lower_scales(captured: Captured, raised: Collection[Raised]) -> None:
    """Put the scales back that nothing absorbed."""
    left = set(captured.graph.nodes)
    for each in reversed([each for each in raised if each.scale in left]):
        _lower(captured, each)
    captured.raised.clear()
    captured.forget()


def without(plan: Plan, nodes: Collection[fx.Node]) -> Plan:
    """A plan in which these nodes are not settled."""
    return replace(plan, settled={node: shapes for node, shapes in plan.settled.items() if node not in nodes})


# --- which scales ------------------------------------------------------------------------------------


def _way(captured: Captured, reading: Reading, node: fx.Node) -> Way | None:
    """The way to a scale, if what makes the whole may be a layer that can absorb it."""
    if node in captured.apart or not node.users or not is_scale(reading, node) or reading.writes:
        return None
    (name,) = reading.read[node].terms
    views = [captured.named[name]]
    while (found := _views(reading, views[0])) and _is_plain(found):
        views.insert(0, views[0].all_input_nodes[0])
    if not (found and isinstance(crop := found[0], Crop)):
        return None
    whole = views[0].all_input_nodes[0]
    layer = _layer(reading, whole)
    row = [*views, node]
    alone = all(readers_of(a) == [b] for a, b in itertools.pairwise(row)) and _is_plain(found[1:])
    if layer is None or not alone or not crop.size.known or not _are_apart(reading, whole, views[0], crop):
        return None
    try:
        args = _arguments(reading, node, whole, crop, tuple(views))
    except NotFusable:
        return None
    way = Way(node, tuple(views), layer, args)
    return way if _may_move(captured, way) else None


def _arguments(
    reading: Reading, scale: fx.Node, whole: fx.Node, crop: Crop, way: Collection[fx.Node]
) -> tuple[Any, ...]:
    """Of `rescaled`. Raises `NotFusable` if the scale cannot be followed through the views."""
    form = reading.read[scale]
    views = [view for node in way for view in _views(reading, node)]

    def before(op: Operator) -> Tensor:
        for view in reversed(views[1:]):
            op = view.undone(op)
        return broadcast(uniform(as_bias(op)))

    constants = [n for n in scale.all_input_nodes if n in reading.constants]
    ops = None if form.sample.is_identity else form.sample, form.bias
    numbers = [None if op is None else before(op) for op in ops]
    return whole, (crop.dim, crop.first, crop.last), *numbers, *constants


def _views(reading: Reading, node: fx.Node) -> list[View]:
    """What a node does that only regroups its input."""
    form = reading.read.get(node)
    if form is None or len(form.terms) != 1:
        return []
    (term,) = form.terms.values()
    return [view for trail in term.trails[:1] for step in trail for view in step.views]


def _is_plain(views: Collection[View]) -> bool:
    return all(isinstance(view, (Reshape, Permute, Same)) for view in views)


def _layer(reading: Reading, node: fx.Node) -> frozenset[fx.Node] | None:
    """The layer that a value is of, and the views of it up to the value; None if there is none, or all is read. What is
    a part itself may be the next to scale the whole.
    """
    row = {node}
    while views := _views(reading, node):
        before = node.all_input_nodes[0]
        if not isinstance(views[0], Crop) and (not _is_plain(views) or readers_of(before) != [node]):
            return None
        node = before
        row.add(node)
    form = reading.read.get(node)
    return frozenset(row) if form is not None and any(term.op.legs for term in form.terms.values()) else None


def _are_apart(reading: Reading, whole: fx.Node, part: fx.Node, crop: Crop) -> bool:
    """Whether all other readers of the whole read slices of it that do not meet the part."""
    # How many parts there are is no number of theirs.
    read = [node for node in readers_of(whole) if not node.users.keys() <= reading.sizes.keys()]
    others = [_views(reading, reader) for reader in read if reader is not part]
    slices = [views[0] for views in others if views and isinstance(views[0], Crop) and views[0].dim == crop.dim]
    n = crop.size.factor
    beside = [each.first >= n - crop.last or n - each.last <= crop.first for each in slices]
    return len(slices) == len(others) and all(beside)


def _may_move(captured: Captured, way: Way) -> bool:
    """Whether no call gets or returns the part, nothing is written in between, and the scale is made by a call around
    those that read the whole.
    """
    given = leaves([(frame.args, frame.kwargs, frame.output) for frame in captured.frames])
    passed = {captured.current(leaf) for leaf in given if isinstance(leaf, fx.Node)}
    written = any(way.whole in captured.aliases.of(writer) for writer in captured.aliases.writers)
    frame = captured.frame(way.scale)
    around = all(frame in captured.frame(reader).stack for reader in way.whole.users)
    return around and not written and passed.isdisjoint(way.views)


# --- there and back ------------------------------------------------------------------------------------


def _raise(captured: Captured, way: Way) -> Raised:
    node, part, whole = way.scale, way.views[-1], way.whole
    kept = Raised(node, part, node.op, node.target, node.args, node.kwargs, node.meta.get("val"))
    node.replace_all_uses_with(part)
    _hand_on(captured, {node: part})
    first = min(whole.users)
    for constant in sorted(_made_of(way.args[1:])):
        if first < constant:
            first.prepend(constant)
    first.prepend(node)
    whole.replace_all_uses_with(node)
    node.op, node.target, node.args, node.kwargs = "call_function", rescaled, way.args, {}
    node.meta["val"] = whole.meta.get("val")
    return kept


def _lower(captured: Captured, each: Raised) -> None:
    node, part = each.scale, captured.current(each.part)
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.op, node.target = each.op, each.target
    node.args, node.kwargs = fx.node.map_arg((each.args, each.kwargs), captured.current)
    node.meta["val"] = each.val
    max(node.all_input_nodes).append(node)
    _hand_on(captured, {part: node})
    part.replace_all_uses_with(node, delete_user_cb=lambda user: node < user)


def _made_of(constants: Iterable[Any]) -> set[fx.Node]:
    """Constants, and all that they are computed from."""
    nodes = {each for each in constants if isinstance(each, fx.Node)}
    return nodes.union(*(_made_of(node.all_input_nodes) for node in nodes))


def _proved(captured: Captured, way: Way, prove: Prove) -> bool:
    """Run the scale of the whole, and the same views of it."""
    graph = captured.graph
    with graph.inserting_after(way.scale):
        copies = [graph.call_function(rescaled, way.args)]
    for node in way.views:
        with graph.inserting_after(copies[-1]):
            copy = graph.node_copy(node)
        copy.replace_input_with(node.all_input_nodes[0], copies[-1])
        copies.append(copy)
    try:
        prove(way.scale, copies[-1], way.whole)
    except NotFusable:
        return False
    finally:
        for copy in reversed(copies):
            graph.erase_node(copy)
    return True


def _hand_on(captured: Captured, renamed: Mapping[fx.Node, fx.Node]) -> None:
    """Let calls that were traced through take and return other nodes."""

    def given_now(leaf: Any) -> Any:
        return renamed.get(captured.current(leaf), leaf) if isinstance(leaf, fx.Node) else leaf

    for frame in captured.frames:
        given = frame.args, frame.kwargs, frame.output
        frame.args, frame.kwargs, frame.output = map_leaves(given_now, given)
