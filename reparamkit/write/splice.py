"""Put the merged layers of a site into the flat graph, beside the nodes they will replace."""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten

from ..algebra.size import Symbol
from ..capture.capture import Captured
from ..capture.guards import expect, expect_rank, expect_size
from ..capture.tracer import Frame
from ..engine.choose import Site
from ..engine.methods import unconditional_calls
from ..engine.placing import Placed, Placement
from ..engine.scope import innermost
from ..errors import NotFusable
from .frames import original_class

PREFIX = "_merged_"
"""The graph calls merged layers by this name until they get their place in the model."""


@dataclass(eq=False)
class Written:
    """A site in the graph.

    result: the node that has the value now. layers: per temporary name the merged layer (float64) and the
    node whose place it takes. nodes: all new nodes. frame: the innermost call around all members.
    warnings: about the numbers of the layers.
    """

    site: Site
    frame: Frame
    result: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    anchors: dict[str, fx.Node] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Splicer:
    """Writes sites into one graph."""

    captured: Captured
    count: int = 0

    def __post_init__(self) -> None:
        self.named = {node.name: node for node in self.captured.graph.nodes}
        self.current = self.captured.current

    def begin(self, site: Site) -> Written:
        """A site to be spliced."""
        self.named |= {node.name: node for node in self.captured.graph.nodes}
        return Written(site, innermost([self.captured.frame(m) for m in site.members]), site.value)

    def splice(self, written: Written) -> None:
        """Insert the merged layers after the site's value; nothing uses them yet."""
        site, graph = written.site, self.captured.graph
        before = set(graph.nodes)
        with graph.inserting_after(site.value):
            mark = graph.call_function(operator.add, ())
        try:
            with graph.inserting_before(mark):
                written.result = self._form(written, site.placed) if site.placed else self._replacement(written)
        finally:
            graph.erase_node(mark)
            written.nodes = [n for n in graph.nodes if n not in before]
        self._describe(written)
        self.captured.replaced[site.value] = written.result

    def _describe(self, written: Written) -> None:
        value = written.site.value
        history = {*written.site.rules, *value.meta.get("history", ())}
        for node in written.nodes:
            node.meta.update(frame=written.frame, context=value.meta["context"], rules=written.site.rules)
            node.meta["history"] = history
            node.meta["place"] = place_of(written.anchors.get(str(node.target), node))
        written.result.meta.setdefault("val", value.meta.get("val"))

    def _form(self, written: Written, placed: Placed) -> fx.Node:
        for symbol, value in sorted(placed.form.guards, key=lambda g: str(g[0].origin)):
            if not (symbol.stands_for_dims and self._rank_guard(placed)):
                self._guard(written.frame, symbol, value)
        results = [self._term(written, placement) for placement in placed.terms]
        if placed.dim is not None:
            return self.captured.graph.call_function(torch.cat, (results, placed.dim))
        result = results[0]
        for other in results[1:]:
            result = self.captured.graph.call_function(operator.add, (result, other))
        return result

    def _rank_guard(self, placed: Placed) -> bool:
        """Check the rank of what is read, which is at hand; whether there is such a value."""
        for name, term in placed.form.terms.items():
            if not term.op.open_rank:
                self.captured.graph.call_function(expect_rank, (self.current(self.named[name]), len(term.op.source)))
                return True
        return False

    def _reaches(self, frame: Frame, node: fx.Node) -> bool:
        """Whether the code of a call can see a value: it made it, or got it as an argument."""
        given = {
            self.current(leaf) for leaf in tree_flatten((frame.args, frame.kwargs))[0] if isinstance(leaf, fx.Node)
        }
        return node in given or frame in self.captured.frame(node).stack

    def _replacement(self, written: Written) -> fx.Node:
        replacement = written.site.replacement
        assert replacement is not None
        name = self._add(written, replacement.module, written.site.value)
        return self.captured.graph.call_module(name, tuple(self.current(n) for n in replacement.inputs))

    def _add(self, written: Written, module: nn.Module, anchor: fx.Node) -> str:
        name = f"{PREFIX}{self.count}"
        self.count += 1
        written.layers[name] = module.eval()
        written.anchors[name] = anchor
        self.captured.held[name] = module
        return name

    def _guard(self, frame: Frame, symbol: Symbol, value: int) -> None:
        name, dim = symbol.origin
        node = self.current(self.named[str(name)])
        assert isinstance(dim, int)
        if not self._reaches(frame, node):
            raise NotFusable(f"a size that a guard must check ({name}) does not reach '{frame.path}'")
        if isinstance(node.meta.get("val"), int):
            self.captured.graph.call_function(expect, (node, value))
        elif dim < 0:
            self.captured.graph.call_function(expect_size, (node, dim, value))
        else:
            self.captured.graph.call_function(expect_rank, (node, dim + value))

    def _term(self, written: Written, placement: Placement) -> fx.Node:
        value = self.current(self.named[placement.source])
        untouched = True
        previous = self.named[placement.source]
        for number, step in enumerate(placement.trail):
            node = self.named[step.node]
            if number == placement.position:
                value, untouched = self._layer(written, placement, node, value), False
            elif step.views:
                value = node if untouched else self._replayed(node, previous, value)
            else:
                untouched = False
            previous = node
        return value

    def _layer(self, written: Written, placement: Placement, node: fx.Node, value: fx.Node) -> fx.Node:
        assert placement.layer is not None
        name = self._add(written, placement.layer.build(), node)
        return self.captured.graph.call_module(name, (value,))

    def _replayed(self, node: fx.Node, previous: fx.Node, value: fx.Node) -> fx.Node:
        """The same view of another value."""
        old = self.current(previous)

        def moved(n: fx.Node) -> fx.Node:
            return value if n in (previous, old) else n

        copy = self.captured.graph.node_copy(node, moved)
        copy.meta = dict(node.meta)
        return copy

    def commit(self, written: Written) -> None:
        """Let every reader of the old value read the new one."""
        own = set(written.nodes)
        value = written.site.value
        value.replace_all_uses_with(written.result, delete_user_cb=lambda user: user not in own, propagate_meta=False)

    def withdraw(self, written: Written) -> None:
        """Take the merged layers out of the graph again."""
        self.captured.replaced.pop(written.site.value, None)
        for node in reversed(written.nodes):
            self.captured.graph.erase_node(node)
        for name in written.layers:
            del self.captured.held[name]


def place_of(node: fx.Node) -> str:
    """The path of the module a node calls, or stands for; "" for a function."""
    place = node.meta.get("place", node.target if node.op == "call_module" else "")
    return str(place)


def is_chain(captured: Captured, site: Site) -> bool:
    """Whether the members are a row of module calls, each read by the next only, that needs no guard
    (but one on the rank): then modules can be swapped and nobody's code is rewritten.
    """
    if site.placed is None or len(site.placed.terms) != 1:
        return False
    placement = site.placed.terms[0]
    nodes = {n.name: n for n in captured.graph.nodes}
    row = [nodes[step.node] for step in placement.trail]
    if placement.position is None or set(row) < site.members:
        return False
    layers = [n for n, step in zip(row, placement.trail, strict=True) if step.is_layer]
    linked = all(set(a.users) == {b} for a, b in itertools.pairwise(row))
    linked = linked and all(_shape_kept(captured, site.placed, k, node) for k, node in enumerate(row))
    modules = all(n.op == "call_module" for n in layers) and not _read_directly(captured, layers)
    modules = modules and not _decided(captured, layers)
    return linked and modules and (_only_rank_guards(site.placed) if len(row) > 1 else not site.placed.form.guards)


def is_swap(captured: Captured, site: Site) -> bool:
    """Whether a graph rule replaces the only call of a module by one of the same arguments: no code is rewritten."""
    (first, *others) = site.members
    if others or first.op != "call_module" or site.replacement is None:
        return False
    once = sum(node.target == first.target for node in captured.graph.nodes) == 1
    return once and first.args == site.replacement.inputs and not first.kwargs


def _decided(captured: Captured, layers: list[fx.Node]) -> bool:
    """Whether some of the modules may run without the others, as a branch was taken in the code that calls them."""
    around = innermost([captured.frame(n) for n in layers])
    branching = {captured.frame(n) for n in captured.graph.nodes if n.target is expect}
    if any(f in branching for n in layers for f in captured.frame(n).stack if around in f.stack and f is not around):
        return True
    prefix = f"{around.path}." if around.path else ""
    always = unconditional_calls(original_class(around.module)) if around in branching else None
    return always is not None and not all(
        any(f"{place_of(n).removeprefix(prefix)}.".startswith(f"{path}.") for path in always) for n in layers
    )


def _read_directly(captured: Captured, layers: list[fx.Node]) -> bool:
    """Whether the model's code reads a parameter of one of these modules itself."""
    read = [str(n.target) for n in captured.graph.nodes if n.op == "get_attr"]
    return any(path.startswith(f"{place_of(layer)}.") for layer in layers for path in read)


def _shape_kept(captured: Captured, placed: Placed, number: int, node: fx.Node) -> bool:
    """Whether a value in the row, if the model's code reads its shape, keeps it when modules are swapped."""
    if node not in captured.watched:
        return True
    position = placed.terms[0].position
    assert position is not None
    op = placed.form.sample
    return captured.watched[node] == (op.value_sizes if number >= position else op.source_sizes, op.open_rank)


def _only_rank_guards(placed: Placed) -> bool:
    guards = placed.form.guards
    views = any(step.views for step in placed.terms[0].trail)
    return not guards or (not views and all(s.stands_for_dims for s, _ in guards))
