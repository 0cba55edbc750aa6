"""Stack layers that read one value: their results are concatenated and split again, and the concatenation merges.

Only for ``objective="launches"``: one large layer in place of several has the same FLOPs and fewer launches.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass

import torch
from torch import fx

from ..algebra.operator import Link, Operator, Role
from ..capture.captured import Captured
from ..layers.hooks import has_hooks
from ..layers.parts import stacked
from .ranks import RANK
from .reading import Reading
from .scope import Scope


@dataclass(frozen=True)
class _Kind:
    """What layers that are stacked have in common: the value that they read, the dimension (from the right) that is a
    full matrix, and what they do along the others.
    """

    source: str
    dim: int
    others: tuple[tuple[Link, ...], ...]


def stack(captured: Captured, scope: Scope, reading: Reading) -> list[fx.Node]:
    """Put a concatenation and a split behind layers of one kind that read one value; returns the concatenations."""
    found: dict[_Kind, list[fx.Node]] = {}
    for node in captured.graph.nodes:
        kind = _kind(captured, scope, reading, node)
        if kind is not None:
            found.setdefault(kind, []).append(node)
    made = [_stacked(captured, reading, kind.dim, layers) for kind, layers in found.items() if len(layers) > 1]
    captured.forget()
    return made


def unstack(captured: Captured, made: list[fx.Node]) -> None:
    """Take the concatenations out again that nothing was merged into."""
    left = set(made) & set(captured.graph.nodes)
    for node in left:
        layers = node.all_input_nodes
        (split,) = node.users
        for part in list(split.users):
            layer = layers[operator.index(part.args[1])]  # type: ignore[arg-type]
            part.replace_all_uses_with(layer)
            captured.hand_on({part: layer})
            captured.graph.erase_node(part)
        captured.graph.erase_node(split)
        captured.graph.erase_node(node)
        for layer in layers:
            # Back into the call that it is from.
            min(layer.users).prepend(layer)
    captured.forget()


def _kind(captured: Captured, scope: Scope, reading: Reading, node: fx.Node) -> _Kind | None:
    """Of a node that may be stacked with its like."""
    form = reading.read.get(node)
    if form is None or len(form.terms) != 1 or form.guards or not _is_plain(captured, node) or scope.refusal(node):
        return None
    op = form.sample
    dims = _mixed(op)
    if len(dims) != 1:
        return None
    others = tuple(tuple(op.links[i] for i in dim) for d, dim in enumerate(op.value) if d != dims[0])
    return _Kind(next(iter(form.terms)), dims[0] - len(op.value), others)


def _is_plain(captured: Captured, node: fx.Node) -> bool:
    """Whether a node calls a module whose result is read, and only read, as it is."""
    aliases = captured.aliases
    calls = (
        node.op == "call_module"
        and len(node.all_input_nodes) == 1
        and bool(node.users)
        and not has_hooks(captured.module(node))
    )
    written = any(writer in aliases.of(node) for writer in aliases.writers) if calls else True
    return not written and node.all_input_nodes[0] not in aliases.barriers


def _mixed(op: Operator) -> list[int]:
    """The dimensions that are full matrices."""
    if len(op.source) != len(op.value):
        return []
    roles = [{op.links[i].role for i in (*a, *b)} for a, b in zip(op.source, op.value, strict=True)]
    return [d for d, found in enumerate(roles) if found == {Role.IN, Role.OUT}]


def _stacked(captured: Captured, reading: Reading, dim: int, layers: list[fx.Node]) -> fx.Node:
    """layers: in program order. dim: along which their results are put together."""
    graph, first = captured.graph, layers[0]
    lengths = [reading.read[layer].sizes[dim].factor for layer in layers]
    for before, layer in itertools.pairwise(layers):
        if before.next is not layer:
            before.append(layer)
    with graph.inserting_after(layers[-1]):
        joined = graph.call_function(stacked, (layers, dim))
    with graph.inserting_after(joined):
        split = graph.call_function(torch.split, (joined, lengths, dim))
    joined.meta = {name: value for name, value in first.meta.items() if name != "val"}
    # What a split gives is no tensor, and has no rank.
    split.meta = {name: value for name, value in joined.meta.items() if name != RANK}
    after = split
    for number, layer in enumerate(layers):
        with graph.inserting_after(after):
            after = graph.call_function(operator.getitem, (split, number))
        after.meta = dict(layer.meta)
        layer.replace_all_uses_with(after, delete_user_cb=lambda user: user is not joined)
        captured.hand_on({layer: after})
    return joined
