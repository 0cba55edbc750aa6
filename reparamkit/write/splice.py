"""Put the merged layers of a site into the flat graph, beside the nodes they will replace."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import fx, nn

from ..algebra.form import Step
from ..algebra.size import Pin, Size, Symbol
from ..algebra.views import Mean, Same
from ..capture.captured import Captured
from ..engine.methods import broken_methods
from ..engine.naming import name_of, place_of
from ..engine.nesting import below, code_around
from ..engine.placing import Placed, Placement
from ..engine.ranks import ROWS
from ..engine.site import Site
from ..errors import NotFusable
from ..reasons import Kind
from ..tracing.frame import Frame, Method
from ..tracing.guards import expect, expect_multiple, expect_rank, expect_size
from .order import in_any_order
from .rows import Part

PREFIX = "_merged_"
"""The graph calls merged layers by this name until they get their place in the model."""


@dataclass(eq=False)
class Written:
    """A site in the graph.

    result: the node that has the value now. layers: per temporary name the merged layer (float64) and the
    node whose place it takes. nodes: all new nodes. frame: the innermost call around all members.
    warnings: about the numbers of the layers. partial: methods that made a part of what is replaced. parts: the calls
    that a row is spread over, if only their code changes; `frame` is then around the merged layer alone. readers: what
    read the value before.
    """

    site: Site
    frame: Frame
    result: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    anchors: dict[str, fx.Node] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    partial: set[Method] = field(default_factory=set)
    parts: tuple[Part, ...] = ()
    readers: frozenset[fx.Node] = frozenset()

    @property
    def core(self) -> list[tuple[Frame, Collection[fx.Node]]]:
        """The calls whose methods are written again for it, with the members that their code has."""
        if not self.parts:
            return [(self.frame, self.site.core)]
        return [(part.frame, part.nodes) for part in self.parts if part.frame is not None]


@dataclass(eq=False)
class Splicer:
    """Writes sites into one graph. inlined: calls (by identity) whose code goes into that around them."""

    captured: Captured
    inlined: Set[int]
    count: int = 0

    def __post_init__(self) -> None:
        self.current = self.captured.current

    def begin(self, site: Site, parts: tuple[Part, ...] = ()) -> Written:
        """A site to be spliced. parts: of a row that stays spread over them."""
        partial = broken_methods(self.captured, site.members)
        return Written(site, self._home(site, parts), site.value, partial=partial, parts=parts)

    def _home(self, site: Site, parts: tuple[Part, ...] = ()) -> Frame:
        if not parts or site.placed is None:
            return code_around(self.captured, site.core, self.inlined)
        anchor = self._anchor(site)
        return next(p.frame or self.captured.frame(anchor) for p in parts if anchor in p.nodes)

    def _opened(self, frame: Frame, site: Site) -> Set[int]:
        return below(self.captured, frame, site.core) | self.inlined

    def _anchor(self, site: Site) -> fx.Node:
        assert site.placed is not None
        return self.captured.named[str(site.placed.terms[0].anchor)]

    def check(self, site: Site) -> None:
        """Raises `NotFusable` if the code that would check a size does not see it."""
        frame, placed = self._home(site), site.placed
        opened = self._opened(frame, site)
        for symbol, _ in placed.guards if placed is not None else ():
            if not (symbol.stands_for_dims and self._ranked(frame, opened, site)):
                self._source(frame, opened, site, symbol)

    def splice(self, written: Written) -> None:
        """Insert the merged layers after the site's value, or that of a row where it stands; nothing uses them yet."""
        site, graph = written.site, self.captured.graph
        place = self._anchor(site) if written.parts else site.value
        with graph.inserting_after(place):
            mark = graph.call_function(operator.add, ())
        try:
            with graph.inserting_before(mark):
                written.result = self._form(written, site.placed) if site.placed else self._replacement(written)
        finally:
            written.nodes = list(_between(place, mark))
            graph.erase_node(mark)
            self.captured.moved(written.nodes)
        self._describe(written)
        # Of a merge that leaves only views, the value may be what it was.
        if written.result is not site.value:
            self.captured.replaced[site.value] = written.result
        self._spread(written)

    def _describe(self, written: Written) -> None:
        value = written.site.value
        running = frozenset.intersection(*(node.meta["methods"] for node in written.site.members))
        history = {*written.site.rules, *value.meta.get("history", ())}
        for node in written.nodes:
            node.meta.update(frame=written.frame, context=value.meta["context"], methods=running)
            node.meta.update(rules=written.site.rules, history=history)
            anchor = written.anchors.get(str(node.target), node)
            node.meta["place"] = place_of(anchor)
            if anchor is not node:
                node.meta["stands for"] = name_of(anchor)
        written.result.meta.setdefault("val", value.meta.get("val"))

    def _spread(self, written: Written) -> None:
        """Let what is between the parts of a row be its input before the merged layer, and its value from there on; and
        check the rank in code that does not only call the layer.
        """
        placed, graph = written.site.placed, self.captured.graph
        if not written.parts or placed is None:
            return
        nodes = [node for part in written.parts for node in part.nodes]
        anchor = nodes.index(self._anchor(written.site))
        source = self.current(self.captured.named[placed.terms[0].source])
        self.captured.replaced |= dict.fromkeys(nodes[:anchor], source) | dict.fromkeys(nodes[anchor:], written.result)
        if placed.guards:
            code = min((p for p in written.parts if p.frame is not None), key=lambda p: nodes[anchor] in p.nodes)
            before = nodes.index(code.nodes[0]) <= anchor
            with graph.inserting_after(written.result):
                check = graph.call_function(expect_rank, (source if before else written.result, *placed.rank))
            check.meta |= written.result.meta | {"frame": code.frame, "place": ""}
            written.nodes.append(check)

    def _form(self, written: Written, placed: Placed) -> fx.Node:
        opened = self._opened(written.frame, written.site)
        guards = () if written.parts else placed.guards
        for symbol, pin in sorted(guards, key=lambda g: str(g[0].origin)):
            if not (symbol.stands_for_dims and self._rank_guard(written.frame, opened, written.site)):
                self._guard(*self._source(written.frame, opened, written.site, symbol), pin)
        results = [self._term(written, placement) for placement in placed.terms]
        if placed.dim is not None:
            return self.captured.graph.call_function(torch.cat, (results, placed.dim))
        result = results[0]
        for other in results[1:]:
            result = self.captured.graph.call_function(operator.add, (result, other))
        return result

    def _rank_guard(self, frame: Frame, opened: Set[int], site: Site) -> bool:
        """Check the rank of what is read, if it is at hand; whether there is such a value."""
        found = self._ranked(frame, opened, site)
        if found is not None:
            self.captured.graph.call_function(expect_rank, found)
        return found is not None

    def _ranked(self, frame: Frame, opened: Set[int], site: Site) -> tuple[fx.Node, int] | None:
        """A value that is read and that the code of a call sees, and its rank."""
        assert site.placed is not None
        for name, term in site.placed.form.terms.items():
            value = None if term.op.open_rank else self._seen(frame, opened, site, name)
            if value is not None:
                return value, len(term.op.source)
        return None

    def _seen(self, frame: Frame, opened: Set[int], site: Site, name: str) -> fx.Node | None:
        """A value, by its name, or an absorbed scale of it, which has its shape and is called what it is once the merge
        is written; None if the code of a call sees neither.
        """
        named, terms = self.captured.named, site.placed.terms if site.placed else ()
        ways = [[named[step.node] for step in term.trail] for term in terms if term.source == name]
        scales = [node for way in ways for node in takewhile(site.scales.__contains__, way)]
        values = map(self.current, [named[name], *scales])
        return next((value for value in values if self._reaches(frame, opened, value)), None)

    def _reaches(self, frame: Frame, opened: Set[int], node: fx.Node) -> bool:
        """Whether the code of a call can see a value: it made it, or got it as an argument or as a result. opened: the
        calls inside (by identity) whose code goes into it.
        """
        stack = self.captured.frame(node).stack
        if frame not in stack:
            return node in self.captured.nodes_in(frame.args, frame.kwargs)
        inner = stack[stack.index(frame) + 1 :]
        return all(id(each) in opened or node in self.captured.nodes_in(each.output) for each in inner)

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

    def _guard(self, node: fx.Node, dim: int, pin: Pin) -> None:
        if isinstance(pin, Size) and pin.factor == 1:
            self.captured.graph.call_function(expect_rank, (node, -dim, True))
        elif isinstance(pin, Size):
            if isinstance(node.meta.get("val"), int):
                raise NotFusable("a size that is computed by the model must be a multiple of a number", Kind.SIZES)
            self.captured.graph.call_function(expect_multiple, (node, dim, pin.factor))
        elif isinstance(node.meta.get("val"), int):
            self.captured.graph.call_function(expect, (node, pin))
        elif dim < 0:
            self.captured.graph.call_function(expect_size, (node, dim, pin))
        else:
            self.captured.graph.call_function(expect_rank, (node, dim + pin))

    def _source(self, frame: Frame, opened: Set[int], site: Site, symbol: Symbol) -> tuple[fx.Node, int]:
        """A value and the dimension that a symbol is the size of."""
        for name, dim in site.readable(symbol):
            node = self._seen(frame, opened, site, name)
            if node is not None:
                return node, dim
        raise NotFusable(
            f"a size that a guard must check ({symbol.origin[0]}) does not reach '{frame.path}'", Kind.CODE
        )

    def _term(self, written: Written, placement: Placement) -> fx.Node:
        value = self.current(self.captured.named[placement.source])
        previous = self.captured.named[placement.source]
        for number, step in enumerate(placement.trail):
            node = self.captured.named[step.node]
            if node in written.site.absorbed:
                value = self.current(node)
            elif number == placement.position:
                value = self._layer(written, placement, node, value)
            elif step.views:
                value = self._viewed(written.site, step, previous, value)
            previous = node
        return value

    def _viewed(self, site: Site, step: Step, previous: fx.Node, value: fx.Node) -> fx.Node:
        """The view of a value that a step takes. The node itself has it, unless that is a copy written into since."""
        if step.spelled:
            return self._averaged(step, value)
        node, aliases = self.captured.named[step.node], self.captured.aliases
        changed = node in aliases.order and bool(aliases.writes_between(node, node, site.value))
        if value in node.all_input_nodes and not changed:
            return node
        return value if changed and set(step.views) == {Same()} else self._replayed(node, previous, value)

    def _averaged(self, step: Step, value: fx.Node) -> fx.Node:
        """The means that a step stands for."""
        for view in step.views:
            assert isinstance(view, Mean)
            value = self.captured.graph.call_method("mean", (value, view.dims, view.keepdim))
        return value

    def _layer(self, written: Written, placement: Placement, node: fx.Node, value: fx.Node) -> fx.Node:
        assert placement.layer is not None
        name = self._add(written, placement.layer.build(), node)
        if joined := placement.layer.joined:
            value = self.captured.graph.call_method("flatten", (value, joined[0], joined[-1]))
        made = self.captured.graph.call_module(name, (value,))
        for method, arguments in placement.layer.calls:
            made = self.captured.graph.call_method(method, (made, *arguments))
        return made

    def _replayed(self, node: fx.Node, previous: fx.Node, value: fx.Node) -> fx.Node:
        """The same view of another value."""
        if previous not in node.all_input_nodes and self.current(previous) not in node.all_input_nodes:
            # What is between them computes nothing.
            previous = node.all_input_nodes[0]
        old = self.current(previous)

        def moved(n: fx.Node) -> Any:
            return value if n in (previous, old) else -1 if n is node.meta.get(ROWS) else n

        copy = self.captured.graph.node_copy(node, moved)
        copy.meta = dict(node.meta)
        in_any_order(copy)
        return copy

    def commit(self, written: Written) -> None:
        """Let every reader of the old value read the new one."""
        value = written.site.value
        if value is written.result:
            # A view that was there is all that is new of it, and old versions of torch.fx let no node replace itself.
            return
        readers = written.readers = frozenset(value.users).difference(written.nodes)
        value.replace_all_uses_with(written.result, delete_user_cb=readers.__contains__, propagate_meta=False)

    def share(self, first: Written, other: Written) -> None:
        """Let `other` call the layers of `first`, which are equal to its own."""
        for mine, theirs in zip(other.layers, first.layers, strict=True):
            for node in other.nodes:
                node.target = theirs if node.target == mine else node.target
            del self.captured.held[mine]
        other.layers, other.anchors = first.layers, first.anchors

    def withdraw(self, written: Written) -> None:
        """Take the merged layers out of the graph again."""
        for node in (written.site.value, *(node for part in written.parts for node in part.nodes)):
            self.captured.replaced.pop(node, None)
        if written.result is not written.site.value:
            # What the graph had before, as a part that is taken of what was put together, has readers of its own.
            moved = written.result.users if written.result in written.nodes else written.readers
            written.result.replace_all_uses_with(
                written.site.value, delete_user_cb=frozenset(moved).__contains__, propagate_meta=False
            )
        for node in reversed(written.nodes):
            self.captured.graph.erase_node(node)
        self.captured.moved()
        # Merges that were written alike have the same layers.
        for name in written.layers:
            self.captured.held.pop(name, None)


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    """The nodes after one and before another."""
    while (first := first.next) is not last:
        yield first
