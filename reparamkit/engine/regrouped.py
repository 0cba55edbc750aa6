"""A sum of values that code regroups alike, as the sum of the values, which is regrouped.

``f(x).view(s) + g(x).view(s) = (f(x) + g(x)).view(s)`` needs no view that can be followed: RepMLPNet has its partitions
in s, whose number is that of the input, before it adds its branches.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from ..capture.aliases import target_of
from ..capture.captured import Captured
from ..layers.views import flat
from .apart import SUMS
from .overwrites import plain
from .reading import Reading

ADDITIVE = SUMS | {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
"""Sums and differences of two values."""
REGROUPS = frozenset({"reshape", "view"})
"""Calls that give the same numbers in the same order."""


def sum_before_regrouping(captured: Captured, reading: Reading) -> None:
    """Regroup the sum in place of its terms."""
    sums = [
        n for n in captured.graph.nodes if n.target in ADDITIVE and len(n.args) == 2 and [*n.args] == n.all_input_nodes
    ]
    found = [node for node in sums if all(_may_wait(captured, term, node) for term in node.all_input_nodes)]
    passed, barriers = (captured.passed, captured.aliases.barriers) if found else (set(), set())
    for node in found:
        terms = node.all_input_nodes
        if passed.isdisjoint(terms) and barriers.isdisjoint([node, *terms]) and _alike(reading, *terms):
            _swap(captured, reading, node)
    captured.forget()


def _may_wait(captured: Captured, term: fx.Node, reader: fx.Node) -> bool:
    """Whether a value is a view, or a sum that may be one, that one sum reads, in the same call."""
    alone = [*term.users] == [reader] and captured.frame(term) is captured.frame(reader)
    return alone and (target_of(term) in REGROUPS or term.target in ADDITIVE)


def _alike(reading: Reading, one: fx.Node, other: fx.Node) -> bool:
    """Whether two values are views of values of one shape, and of one shape themselves."""
    same = one.target == other.target and one.args[1:] == other.args[1:]
    if not (same and _regroups(reading, one) and _regroups(reading, other)):
        return False
    (sizes, open_rank), after = (reading.shape_of(view.all_input_nodes[0]) for view in (one, other))
    known = tuple(size.substitute(reading.facts) for size in sizes)
    return sizes != () and (known, open_rank) == (tuple(size.substitute(reading.facts) for size in after[0]), after[1])


def _regroups(reading: Reading, node: fx.Node) -> bool:
    """Whether a node is a view of other dimensions (``x.view(dtype)`` gives other numbers)."""
    if target_of(node) not in REGROUPS or node.kwargs or not node.args:
        return False
    return all(isinstance(size, int) or size in reading.sizes for size in flat(node.args[1:]))


def _swap(captured: Captured, reading: Reading, node: fx.Node) -> None:
    """Let the node of the sum be the view, so that whatever refers to the sum still does."""
    one, other = node.all_input_nodes
    value, added = one.all_input_nodes[0], other.all_input_nodes[0]
    node.meta.pop("writes", None)
    with captured.graph.inserting_before(node):
        total = captured.graph.create_node(node.op, plain(node.target) or node.target, (value, added), node.kwargs)
    total.meta = {**node.meta, "val": value.meta["val"]} if "val" in value.meta else dict(node.meta)
    node.op, node.target, node.args, node.kwargs = one.op, one.target, (total, *one.args[1:]), {}
    reading.shapes[total] = reading.shapes[value]
    for view in (one, other):
        captured.graph.erase_node(view)
