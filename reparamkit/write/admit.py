"""Which sites can be written into the model's code, and which methods have to be written again for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import fx, nn

from ..capture.captured import Captured
from ..engine.methods import broken_methods
from ..engine.naming import called_plainly, place_of
from ..engine.nesting import below, code_around
from ..engine.scope import watched
from ..engine.sharing import alike, is_shared, separable, uneven
from ..engine.site import Site
from ..errors import NotFusable
from ..layers.hooks import BEFORE
from ..reasons import Kind
from ..tracing.frame import Frame, Method
from .asked import check_unasked
from .draft import Draft
from .exposed import check_unexposed, may_show
from .order import check_order
from .round import Refuse
from .rows import Part, folding, is_chain, layers_of, parts_of
from .splice import Splicer, Written

CALL = "__call__"


@dataclass(eq=False)
class Admission:
    """Of the sites of one model. as_graph: no code is written. chains: values of rows of modules, for which no method
    is written again. shared: the calls (by identity) around those of them whose modules are called at several places.
    spread: per value of a row of calls whose own code has members in it, these calls; the code around them stays.
    exposed: scales whose value the code around them may use otherwise. separate: values of merges that leave a module
    to other calls.
    """

    captured: Captured
    as_graph: bool
    splicer: Splicer
    draft: Draft
    refuse: Refuse
    chains: set[fx.Node] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    spread: dict[fx.Node, tuple[Part, ...]] = field(default_factory=dict)
    exposed: set[fx.Node] = field(default_factory=set)
    separate: set[fx.Node] = field(default_factory=set)

    @cached_property
    def _has_calls(self) -> bool:
        """Whether a class of the model says what a call does."""
        return any(type(module).__call__ is not nn.Module.__call__ for module in self.captured.root.modules())

    def is_row(self, written: Written) -> bool:
        """Whether a site in the graph is a row of modules, in a method that stays as it is."""
        return written.site.value in self.chains and not self.draft.touches(written.site.core)

    def writable(self, sites: Sequence[Site]) -> list[Site]:
        """Leave out sites whose method cannot be written again; mark rows of modules that need none written."""
        if self.as_graph:
            return list(sites)
        able = [site for site in sites if self._admit_scales(site)]
        self.separate |= {site.value for site in uneven(self.captured, sites)}
        rows = [s for s in able if is_chain(self.captured, s) and s.value not in self.separate]
        known = {id(row) for row in rows}
        others = [site for site in able if id(site) not in known]
        spread = [site for site in others if self._in_method(site) and self._spread(site)]
        known |= {id(site) for site in spread}
        written = [site for site in others if id(site) not in known and self.admit(site)]
        written += [site for site in spread if self._stays_spread(site) or self.admit(site)]
        while touched := self._touched(rows):
            # A neighbour in the same method is written again, so these rows are as well.
            written += [row for row in rows if id(row) in touched and self.admit(row)]
            rows = [row for row in rows if id(row) not in touched]
        self.shared |= {call for site in rows if is_shared(self.captured, site) for call in self.draft.calls(site.core)}
        self.spread |= {site.value: parts for site in rows if (parts := layers_of(self.captured, site))}
        self.chains |= {site.value for site in rows}.difference(self.spread)
        chosen = {id(site) for site in (*rows, *written)}
        return [site for site in sites if id(site) in chosen]

    def check(self, site: Site) -> None:
        """Raises `NotFusable` if a site cannot be written."""
        if self.as_graph:
            self._check_hooks(site.members - carrying(self.captured, site))
            return
        self._check_called(site)
        site = self.as_row(site)
        for scale in site.scales:
            check_order(self.captured, self.captured.scaled(scale), site.absorbed)
            check_unexposed(self.captured, site, scale, self.draft.written)
            self.exposed |= {scale} if may_show(self.captured, site, self.captured.frame(scale)) else set()
        for scale in self.written_out(site):
            self.draft.check(self.captured.frame(scale), [scale], _guarded(site))
        if is_chain(self.captured, site):
            self._check_hooks(site.core - carrying(self.captured, site))
            self.splicer.check(site)
        elif not (self._in_method(site) and self._parts(site)):
            try:
                self.splicer.check(site)
                self._check(site, site.core)
            except NotFusable:
                if not self._parts(site):
                    raise

    def _check_called(self, site: Site) -> None:
        """Raises `NotFusable` if a module has a ``__call__`` of its own that may use a part of a site: other methods
        are hidden then, but this one every call runs.
        """
        for module, name in broken_methods(self.captured, site.members) if self._has_calls else ():
            if name == CALL:
                raise NotFusable(
                    f"the {CALL} of {type(module).__name__} uses a part of what would be merged", Kind.METHOD
                )

    def _in_method(self, site: Site) -> bool:
        """Whether another method than forward makes a site: it would not see what is written into forward."""
        around = code_around(self.captured, site.core)
        return any(module is around.module for node in site.core for module, _ in node.meta["methods"])

    def _spread(self, site: Site) -> bool:
        """Mark a row to be written into the calls that it is spread over, if that can be done."""
        parts = self._parts(site)
        self.spread |= {site.value: parts} if parts else {}
        for part in parts:
            if part.frame is not None:
                self.draft.rewrite(part.frame, part.nodes)
        return bool(parts)

    def _parts(self, site: Site) -> tuple[Part, ...]:
        """The calls that a row is spread over, if their code can be written again."""
        parts = parts_of(self.captured, site) or layers_of(self.captured, site)
        try:
            for part in parts:
                self._check_part(site, part)
        except NotFusable:
            return ()
        return parts

    def _check_part(self, site: Site, part: Part) -> None:
        self._check_hooks(part.nodes)
        if id(part.frame) in self.draft.inlined:
            raise NotFusable(f"the code around '{part.path}' is written again, and has its code in it", Kind.CODE)
        if part.frame is not None:
            self._check_handed_on(part.frame)
            self.draft.check(part.frame, part.nodes, _guarded(site))

    def _stays_spread(self, site: Site) -> bool:
        """Whether no code around the calls that a row is spread over takes them in."""
        if any(id(part.frame) in self.draft.inlined for part in self.spread[site.value]):
            del self.spread[site.value]
            return False
        return True

    def _check(self, site: Site, members: Collection[fx.Node]) -> None:
        """Raises `NotFusable` if the method around some members of a site cannot be written again."""
        self._check_hooks(set(members) - carrying(self.captured, site))
        if is_shared(self.captured, site) and not separable(self.captured, site.members, site.absorbed):
            raise NotFusable(
                "its module is called at several places, and a method would have to be written again", Kind.SHARED
            )
        if self.draft.calls(members) & self.shared:
            raise NotFusable(
                "the method around it has a layer that is called at several places, and merged for all", Kind.SHARED
            )
        frame = self.draft.around(members)
        opened = below(self.captured, frame, members) | {id(frame)}
        check_unasked(self.captured, site.members, opened)
        if any(id(each) not in opened for each in folding(self.captured, site.members)):
            raise NotFusable("code that is not written again calls its module on constants too", Kind.SHARED)
        returned = self.captured.nodes_in(frame.output)
        if any(node.users.keys() <= site.members for node in returned & site.core - {site.value}):
            raise NotFusable(f"'{frame.path}' returns a value from inside the merge, which nothing reads", Kind.CODE)
        self._check_handed_on(frame)
        self.draft.check(frame, members, _guarded(site))

    def _check_handed_on(self, frame: Frame) -> None:
        """Hooks run in no trace: what one hands on to code around its module is missing in what would be written."""
        for node in self.captured.made_in[frame]:
            if node.op == "call_module" and self.captured.module(node)._forward_hooks:
                raise NotFusable(
                    f"'{place_of(node)}' has hooks, and the code around it may use what they hand on", Kind.HOOKS
                )

    def opened(self, frame: Frame, members: Collection[fx.Node]) -> set[Method]:
        """The methods that ran in a call whose forward is written again, and that call what goes into that forward, or
        compute a part of the merge themselves, which the merged layer has in it now.
        """
        own = any(node.op != "call_module" and frame is self.captured.frame(node) for node in members)
        if not own and not below(self.captured, frame, members):
            return set()
        methods = set[Method]().union(*(node.meta["methods"] for node in members))
        return {(module, name) for module, name in methods if module is frame.module}

    def _check_hooks(self, members: Collection[fx.Node]) -> None:
        if any(watched(self.captured, member) for member in members):
            raise NotFusable(
                "it has hooks, and no merged layer gets all that they see: it has another input or output", Kind.HOOKS
            )

    def _touched(self, rows: Sequence[Site]) -> set[int]:
        """Rows (by identity) in methods that are written again, and what is merged alike."""
        groups = alike(self.captured, rows)
        return {id(r) for group in groups if any(self.draft.touches(r.core) for r in group) for r in group}

    def as_row(self, site: Site) -> Site:
        """A row of modules is one whether it begins with a scale or not."""
        whole = replace(site, absorbed=frozenset())
        apart = not site.absorbed.isdisjoint(self.captured.apart)
        return whole if not apart and is_chain(self.captured, whole) else site

    def admit(self, site: Site) -> bool:
        """Mark the site's method to be written again, or those that it is spread over, if they can be."""
        try:
            self._check(site, site.core)
        except NotFusable as no:
            if not self._spread(site):
                self.refuse(site.value, no.reason)
                return False
        else:
            self.draft.rewrite(self.draft.around(site.core), site.core)
        return True

    def written_out(self, site: Site) -> list[fx.Node]:
        """Absorbed scales that are no module's, or of one with further arguments, or whose value may be used otherwise:
        the code around them changes, and checks its arguments.
        """
        return [n for n in site.scales if n in self.exposed or not place_of(n) or not _is_plain(n)]

    def _admit_scales(self, site: Site) -> bool:
        """The same for the methods that its absorbed scales are in."""
        for scale in self.written_out(site):
            try:
                self._check(site, [scale])
            except NotFusable as no:
                self.refuse(site.value, no.reason)
                return False
            self.draft.rewrite(self.captured.frame(scale), [scale])
        return True


def carrying(captured: Captured, site: Site) -> set[fx.Node]:
    """The members whose hooks see what goes into the merged layer and comes out of it, if there is one layer and
    nothing else: it has them then.
    """
    placed = site.placed
    if placed is None or len(placed.terms) != 1 or not placed.terms[0].alone or placed.guards or site.absorbed:
        return set()
    source = captured.current(captured.named[placed.terms[0].source])
    first = [node for node in site.core if source in node.all_input_nodes]
    seeing = {node: watched(captured, node, BEFORE) for node in {*first, site.value}}
    return {node for node, before in seeing.items() if first == [node] or not before}


def _is_plain(node: fx.Node) -> bool:
    return node.op != "call_module" or called_plainly(node)


def _guarded(site: Site) -> bool:
    """Whether the code that is written takes the sizes of the example inputs only."""
    return site.placed is None or bool(site.placed.guards)
