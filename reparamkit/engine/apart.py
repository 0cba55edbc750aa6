"""Names of one value for the parts of a concatenation or a sum that are made of it: a norm behind goes into each part.

``norm(cat([f(x), g(x)]))`` is one operator of x, with windows as large as the larger of those of f and g. Of x and
another name of x it is a concatenation of two, each no larger than it was. So it is with ``norm(f(x) + g(x))``, where f
and g are one layer only as a larger one: all channels with all, in windows of many positions.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..capture.captured import Captured
from ..layers.parts import CONCATENATIONS
from ..layers.registry import READERS
from .absorb import is_scale
from .pricing import readers_of
from .reading import Reading
from .scope import STAYS

SUMS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
"""Sums of two values."""
KEPT = ("frame", "methods", "context")
"""What another name has of the call that reads it."""


@dataclass(frozen=True, eq=False)
class Parting:
    """A concatenation or a sum of which several parts are made of one value. begin: these values, each with the node
    that begins to make a part of it.
    """

    joined: fx.Node
    begin: Sequence[tuple[fx.Node, fx.Node]]

    @property
    def members(self) -> set[fx.Node]:
        """What is in a merge of all these parts."""
        return {self.joined, *(first for _, first in self.begin)}


def partings(captured: Captured, reading: Reading) -> list[Parting]:
    """All of them behind which there is a scale."""
    found = []
    for node in captured.graph.nodes:
        joined = node.all_input_nodes[0] if is_scale(reading, node) else node
        if (parts := _parts(joined)) and readers_of(joined) == [node]:
            rows = [_begin(captured, reading, part) for part in dict.fromkeys(parts)]
            sources = Counter(source for source, _ in rows)
            begin = [(source, first) for source, first in rows if sources[source] > 1 and first is not joined]
            found += [Parting(joined, begin)] if begin else []
    return found


def name_apart(captured: Captured, found: Iterable[Parting]) -> list[fx.Node]:
    """Let each part read a name of its own; returns the new names, through which nothing merges."""
    made = [_named(source, first) for each in found for source, first in each.begin]
    captured.forget()
    return made


def name_together(captured: Captured, made: list[fx.Node]) -> None:
    """Take the names out again."""
    left = set(captured.graph.nodes)
    for node in (node for node in made if node in left):
        (source,) = node.all_input_nodes
        node.replace_all_uses_with(source)
        captured.hand_on({node: source})
        captured.graph.erase_node(node)
    captured.forget()


def may_be_apart(captured: Captured) -> bool:
    """Whether a norm, or a function that may be a scale, alone reads a concatenation or a sum."""
    joined = (node for node in captured.graph.nodes if node.target in CONCATENATIONS or _is_sum(node))
    readers = [readers[0] for node in joined if len(readers := readers_of(node)) == 1]
    return any(_may_scale(captured, each) for each in readers)


def _may_scale(captured: Captured, reader: fx.Node) -> bool:
    if reader.op == "call_module":
        return _is_norm(captured.module(reader))
    return READERS.of_function(reader.target) is not None and not _is_sum(reader)


def _is_norm(module: nn.Module) -> bool:
    """Whether a layer is one of torch's batch norms, or none of torch's."""
    return isinstance(module, _BatchNorm) or not type(module).__module__.startswith("torch.")


def _parts(joined: fx.Node) -> list[fx.Node]:
    """What a concatenation or a sum is of; a sum of sums is one."""
    if joined.target in CONCATENATIONS:
        return joined.all_input_nodes
    if not _is_sum(joined):
        return []
    inner = (
        _parts(each) if _is_sum(each) and len(readers_of(each)) == 1 else [each] for each in joined.all_input_nodes
    )
    return [part for parts in inner for part in parts]


def _is_sum(node: fx.Node) -> bool:
    return node.target in SUMS and len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs


def _begin(captured: Captured, reading: Reading, part: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The value that the affine row before a part begins with, and what reads it."""
    (first,) = readers_of(part)[:1]
    form = reading.read.get(part)
    while form is not None and len(form.terms) == 1 and readers_of(part) == [first]:
        first, part = part, captured.named[next(iter(form.terms))]
        form = reading.read.get(part)
    return part, first


def _named(source: fx.Node, first: fx.Node) -> fx.Node:
    with first.graph.inserting_before(first):
        name = first.graph.call_function(operator.getitem, (source, ...))  # type: ignore[arg-type]
    name.meta = {key: first.meta[key] for key in KEPT if key in first.meta}
    name.meta[STAYS] = "another name of what it reads"
    if "val" in source.meta:
        name.meta["val"] = source.meta["val"]
    first.replace_input_with(source, name)
    return name
