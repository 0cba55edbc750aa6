"""Names of one value for the parts of a concatenation that are made of it: a norm behind goes into each part.

``norm(cat([f(x), g(x)]))`` is one operator of x, with windows as large as the larger of those of f and g. Of x and
another name of x it is a concatenation of two, each no larger than it was.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..capture.captured import Captured
from ..layers.parts import CONCATENATIONS
from .absorb import is_scale
from .pricing import readers_of
from .reading import Reading
from .scope import STAYS

KEPT = ("frame", "methods", "context")
"""What another name has of the call that reads it."""


def name_apart(captured: Captured, reading: Reading) -> list[fx.Node]:
    """Let each part of a concatenation behind which there is a scale read a name of its own, if several parts are made
    of one value; returns the new names, through which nothing merges.
    """
    made = [_named(source, first) for source, first in [*_shared(captured, reading)]]
    if made:
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
    """Whether a norm or a function alone reads a concatenation."""
    joined = (node for node in captured.graph.nodes if node.target in CONCATENATIONS)
    readers = [readers[0] for node in joined if len(readers := readers_of(node)) == 1]
    return any(each.op != "call_module" or _is_norm(captured.module(each)) for each in readers)


def _is_norm(module: nn.Module) -> bool:
    """Whether a layer is one of torch's batch norms, or none of torch's."""
    return isinstance(module, _BatchNorm) or not type(module).__module__.startswith("torch.")


def _shared(captured: Captured, reading: Reading) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Values that several parts are made of, with each node that begins to make a part."""
    for node in captured.graph.nodes:
        joined = node.all_input_nodes[0] if is_scale(reading, node) else node
        if joined.target in CONCATENATIONS and readers_of(joined) == [node]:
            rows = [_begin(captured, reading, part) for part in dict.fromkeys(joined.all_input_nodes)]
            sources = Counter(source for source, _ in rows)
            yield from ((source, first) for source, first in rows if sources[source] > 1 and first is not joined)


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
