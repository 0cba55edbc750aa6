"""Scales of a part of a value, or of a product, as scales of the whole or of a factor: the layer that makes it can
absorb them.

``q, k, v = f(x).chunk(3, -1)`` and ``s q``, or ``s (q k^T)``: the rows of f that make q are multiplied by s, at no
cost. The mirror image of `absorb`: there all that read a value take its scale, here what makes it does.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..algebra.build import multiply
from ..algebra.form import as_bias, source_form
from ..algebra.operator import Operator
from ..algebra.size import fixed
from ..algebra.views import Crop, Permute, Reshape, Same, View
from ..capture.aliases import MAY_ALIAS, target_name
from ..capture.captured import Captured
from ..capture.facts import Apart
from ..capture.reach import reached
from ..errors import NotFusable
from ..layers.parts import Span, rescaled
from ..layers.plans import broadcast, uniform
from ..reasons import Kind
from ..tracing.guards import is_guard
from .absorb import scales
from .norms import restore
from .parts import SPLITS
from .pricing import readers_of
from .reading import Reading
from .scope import Scope

Prove = Callable[[fx.Node, fx.Node, Collection[fx.Node]], None]
"""Raises `NotFusable` if two values are not proved to be the same function of others: the old, the new, the others."""
ELEMENTWISE: frozenset[object] = frozenset({operator.mul, torch.mul, torch.multiply, "mul", "multiply"})
MATRICES: frozenset[object] = frozenset({operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", torch.einsum})
"""Products: a factor of one is a factor of the other, but for what differs along a dimension that is summed."""
PARTS: frozenset[object] = frozenset(
    {operator.getitem, torch.narrow, "narrow", *(split.part for split in SPLITS.values())}
)
"""Calls that take a part of a value."""


@dataclass(frozen=True, eq=False)
class Raised:
    """A scale that stands at the whole. part: the value that it scaled. was: the call. noted: of the meta of the node
    what is of the call: the traced value, and what it wrote into.
    """

    scale: fx.Node
    part: fx.Node
    was: Apart
    noted: dict[str, Any]


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
        return self.args[0]  # type: ignore[no-any-return]


def takes_parts(captured: Captured) -> bool:
    """Whether code takes parts of values (or elements of lists)."""
    return any(node.target in PARTS for node in captured.graph.nodes)


def may_be_scaled(reading: Reading) -> bool:
    """Whether there are scales among what was read; those that may not be merged are not."""
    return any(scales(reading, node) for node in reading.read)


def scaled_parts(captured: Captured, scope: Scope, reading: Reading) -> tuple[list[Way], bool]:
    """The scales of parts that are not read as they are; of each value one, as the next would scale another. And
    whether there is a next one.
    """
    found: list[Way] = []
    seen: set[fx.Node] = set()
    more = False
    for node in captured.graph.nodes:
        way = _way(captured, reading, node)
        if way is None or scope.refusal(node):
            continue
        if seen.isdisjoint(way.layer):
            found.append(way)
            seen |= way.layer
        else:
            more = True
    return found, more


def raise_scales(captured: Captured, reading: Reading, ways: Collection[Way], prove: Prove) -> list[Raised]:
    """Let these scales scale the whole. The node stays the same, so that whatever refers to the scale still does."""
    raised = [_raise(captured, way) for way in ways if _proved(captured, reading, way, prove)]
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


# --- which scales ------------------------------------------------------------------------------------


def _way(captured: Captured, reading: Reading, node: fx.Node) -> Way | None:
    """The way to a scale, if what makes the whole may be a layer that can absorb it."""
    if node in captured.apart or not node.users or not scales(reading, node) or reading.writes:
        return None
    if node in captured.aliases.barriers:
        # It is in place, and the value before is read under another name.
        return None
    if node.op == "call_module" and captured.module_calls[id(captured.module(node))] > 1:
        return None
    form = reading.read[node]
    (name,) = form.terms
    constants = [n for n in node.all_input_nodes if n in reading.constants]
    for row, span, numbers in _back(reading, captured.named[name], _Numbers(form.sample, form.bias), False):
        whole, *views = row
        layer = _layer(reading, whole)
        alone = all(_readers(a) == [b] for a, b in itertools.pairwise([*views, node]))
        if layer is not None and alone and _is_free(reading, whole, [*views, node][0], span):
            way = Way(node, tuple(views), layer, (whole, span, *numbers.tensors(), *constants))
            if _may_move(captured, way):
                return way
    return None


@dataclass(frozen=True)
class _Numbers:
    """A scale and a shift, on the dimensions of a value."""

    op: Operator
    bias: Operator | None

    def before(self, views: Iterable[View]) -> _Numbers:
        """On those of a value that these views are of. Raises `NotFusable` if they cannot be followed."""
        op, bias = self.op, self.bias
        for view in reversed([*views]):
            op, bias = view.undone(op), None if bias is None else view.undone(bias)
        return _Numbers(op, bias)

    def tensors(self) -> tuple[Tensor | None, Tensor | None]:
        """As they broadcast to the value."""
        weight = None if self.op.is_identity else broadcast(uniform(as_bias(self.op)))
        return weight, None if self.bias is None else broadcast(uniform(as_bias(self.bias)))


_Found = tuple[list[fx.Node], Span | None, _Numbers]
"""The whole and the nodes behind it, what is scaled of the whole (None: all), and the numbers of the scale there."""


def _back(reading: Reading, node: fx.Node, numbers: _Numbers, multiplied: bool) -> Iterator[_Found]:
    """The values before a scaled one that could be scaled instead. multiplied: whether there is a product between."""
    views = _views(reading, node)
    with suppress(NotFusable):
        if views and isinstance(crop := views[0], Crop):
            if crop.size.known and _is_plain(views[1:]):
                yield [node.all_input_nodes[0], node], (crop.dim, crop.first, crop.last), numbers.before(views[1:])
        elif views and _is_plain(views):
            for row, span, found in _back(reading, node.all_input_nodes[0], numbers.before(views), multiplied):
                yield [*row, node], span, found
        elif multiplied and not views and node in reading.read:
            yield [node], None, numbers
    for operand in _factors(reading, node) if not views else ():
        with suppress(NotFusable):
            scaled = _Numbers(_of_factor(reading, node, operand, numbers), None)
            for row, span, found in _back(reading, operand, scaled, True):
                yield [*row, node], span, found


def _factors(reading: Reading, node: fx.Node) -> list[fx.Node]:
    """The two values whose product a node is, if it is one."""
    factors = [each for each in node.args if isinstance(each, fx.Node) and each in reading.forms]
    known = node.target in {*ELEMENTWISE, *MATRICES} and not node.kwargs and node not in reading.read
    return factors if known and len(factors) == len(node.all_input_nodes) == 2 else []


def _of_factor(reading: Reading, node: fx.Node, factor: fx.Node, numbers: _Numbers) -> Operator:
    """The scale of a product as that of a factor. Raises `NotFusable` unless it is one number, or differs only along
    dimensions that the factor has as well, and along which nothing is summed.
    """
    weight, shift = numbers.tensors()
    sizes, open_rank = reading.shapes[factor]
    if weight is None or shift is not None:
        raise NotFusable("a shift of a product of two values", Kind.NONLINEAR)
    if weight.numel() == 1:
        weight = weight.reshape(())
    apart = {d for d in range(-weight.dim(), 0) if weight.shape[d] != 1}
    summed = {*apart} if node.target is torch.einsum else set() if node.target in ELEMENTWISE else {-1, -2}
    known = reading.sizes_of(factor)
    alike = len(known) == len(reading.sizes_of(node)) >= weight.dim()
    alike = alike and all(known[d] == fixed(weight.shape[d]) for d in apart)
    if apart and (apart & summed or not alike):
        raise NotFusable("a scale of a product of two values that is none of either", Kind.NONLINEAR)
    return multiply(source_form(factor.name, sizes, open_rank), weight).sample


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
        if not isinstance(views[0], Crop) and (not _is_plain(views) or _readers(before) != [node]):
            return None
        node = before
        row.add(node)
    form = reading.read.get(node)
    return frozenset(row) if form is not None and any(term.op.legs for term in form.terms.values()) else None


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads the numbers of a value; a guard sees its shape."""
    return [reader for reader in readers_of(node) if not is_guard(reader.target)]


def _is_free(reading: Reading, whole: fx.Node, reader: fx.Node, span: Span | None) -> bool:
    """Whether all other readers of the whole read slices of it that do not meet what is scaled."""
    # How many parts there are is no number of theirs. What has no users is the end of the graph, or has an effect.
    read = [node for node in _readers(whole) if not node.users or not node.users.keys() <= reading.sizes.keys()]
    others = [_views(reading, each) for each in read if each is not reader]
    if span is None or not others:
        return not others
    dim, first, last = span
    slices = [views[0] for views in others if views and isinstance(views[0], Crop) and views[0].dim == dim]
    beside = [n - each.last <= first or n - last <= each.first for each in slices if (n := each.size.factor)]
    return len(slices) == len(others) and all(beside)


def _may_move(captured: Captured, way: Way) -> bool:
    """Whether no call gets or returns the part, nothing is written into the values, and the scale is made by a call
    around those that read the whole.
    """
    own = {way.whole, way.scale, *way.views}
    writers = (writer for writer in captured.aliases.writers if writer is not way.scale)
    written = any(not own.isdisjoint(captured.aliases.of(writer)) for writer in writers)
    frame = captured.frame(way.scale)
    around = all(frame in captured.frame(reader).stack for reader in way.whole.users)
    return around and not written and captured.passed.isdisjoint(way.views) and not _is_viewed(captured, way.scale)


def _is_viewed(captured: Captured, node: fx.Node) -> bool:
    """Whether code counts on the numbers of a value to lie one behind the other, as those of a part may not."""
    aliases = [user for user in node.users if target_name(user, captured.module) in MAY_ALIAS]
    return any(user.target in ("view", "view_as") or _is_viewed(captured, user) for user in aliases)


# --- there and back ------------------------------------------------------------------------------------


def _raise(captured: Captured, way: Way) -> Raised:
    node, whole = way.scale, way.whole
    scaled = captured.scaled(node) if not way.views else way.views[-1]
    noted: dict[str, Any] = {name: node.meta.pop(name) for name in ("val", "writes") if name in node.meta}
    kept = Raised(node, scaled, Apart(node.op, node.target, node.args, node.kwargs), noted)
    node.replace_all_uses_with(scaled)
    captured.hand_on({node: scaled})
    first = min(whole.users)
    for constant in sorted(_made_of(way.args[1:])):
        if first < constant:
            first.prepend(constant)
    first.prepend(node)
    whole.replace_all_uses_with(node)
    node.meta.setdefault("stands for", node.target)
    if node.op == "call_module":
        node.meta["place"] = str(node.target)
    node.op, node.target, node.args, node.kwargs = "call_function", rescaled, way.args, {}
    node.meta |= {"val": whole.meta["val"]} if "val" in whole.meta else {}
    return kept


def _lower(captured: Captured, each: Raised) -> None:
    node, scaled = each.scale, captured.current(each.part)
    node.replace_all_uses_with(node.all_input_nodes[0])
    restore(captured, node, each.was)
    node.meta |= each.noted
    node.meta.pop("stands for", None)
    max(node.all_input_nodes).append(node)
    captured.hand_on({scaled: node})
    scaled.replace_all_uses_with(node, delete_user_cb=lambda user: node < user)


def _made_of(constants: Iterable[Any]) -> list[fx.Node]:
    """Constants, and all that they are computed from."""
    return reached((each for each in constants if isinstance(each, fx.Node)), lambda node: node.all_input_nodes)


def _proved(captured: Captured, reading: Reading, way: Way, prove: Prove) -> bool:
    """Run the scale of the whole, and the same views of it."""
    graph = captured.graph
    with graph.inserting_after(way.scale):
        copies = [graph.call_function(rescaled, way.args)]
    before = way.whole
    for node in way.views:
        with graph.inserting_after(copies[-1]):
            copy = graph.node_copy(node)
        copy.replace_input_with(before, copies[-1])
        before = node
        copies.append(copy)
    try:
        others = {n for node in way.views for n in _factors(reading, node)} - {*way.views}
        prove(way.scale, copies[-1], {way.whole, *others})
    except NotFusable:
        return False
    finally:
        for copy in reversed(copies):
            graph.erase_node(copy)
    return True
