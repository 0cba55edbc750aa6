"""Write the chosen merges: splice, prove, settle, and then change the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import networkx as nx
import torch
from torch import fx, nn

from ..capture.captured import Captured
from ..engine.dead import Calls
from ..engine.naming import place_of
from ..engine.norms import join
from ..engine.scope import watched
from ..engine.sharing import alike, largest, uneven
from ..engine.site import Merge, Site
from ..errors import NotFusable
from ..garbage import Waiting
from ..layers.hooks import carry_hooks
from ..reasons import Kind, Reason
from ..recipes.tape import Tape
from ..tracing.guards import is_guard
from .admit import Admission
from .draft import Draft
from .finish import finish, open_layers
from .flat import graph_module
from .order import in_any_order
from .round import Round
from .rows import is_swap
from .settle import settle
from .splice import Splicer, Written

Judge = Callable[[Captured, Written], None]
"""Raises `NotFusable` if a merge is not wanted, as it would be written."""
FURTHER = "(merged further)"
NOT_ALL = Reason("its module is called at several places: not all of them can be written", Kind.SHARED)
DIFFERENT = Reason("its module is called at several places, which would need different layers", Kind.SHARED)
NOT_ABSORBED = Reason("another reader of its scale could not absorb it", Kind.SCALE)
"""Stands for the path of a merged layer that another merge replaced."""


@dataclass(frozen=True)
class Done:
    """A merge that is in the model. path: of each merged layer. error: as `Prove` found it.
    nodes: of the graph that were written for it. warnings: about the numbers of the layers.
    """

    site: Site
    paths: tuple[str, ...]
    layers: tuple[nn.Module, ...]
    error: float | None
    nodes: tuple[fx.Node, ...]
    warnings: tuple[str, ...]


@dataclass(eq=False)
class Writer:
    """Writes the sites of one model.

    as_graph: write into the flat graph only, and change no module's code. judge: has the last word on each merge. tape:
    records how the numbers are made. swapped: None if the model is private, and changed at the end; else each merge is
    in the model before the next one is computed, and its paths are added here. round: what holds for the merges that
    are written now. failed: why merges that were tried are not made.
    """

    captured: Captured
    as_graph: bool
    judge: Judge
    tape: Tape
    swapped: list[str] | None = None
    round: Round = field(default_factory=Round)
    done: list[tuple[Written, float | None]] = field(default_factory=list)
    in_place: set[int] = field(default_factory=set)
    swaps: set[fx.Node] = field(default_factory=set)
    absorbed: list[fx.Node] = field(default_factory=list)
    failed: dict[Merge, Reason] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draft, self.waiting = Draft(self.captured), Waiting.of(self.captured.root)
        self.splicer = Splicer(self.captured, self.draft.inlined)
        self.admission = Admission(self.captured, self.as_graph, self.splicer, self.draft, self._refuse)

    def _refuse(self, node: fx.Node, reason: Reason) -> None:
        """Whom to tell changes from round to round."""
        self.round.refuse(node, reason)

    def write(self, sites: list[Site]) -> list[Written]:
        """Splice and prove the sites, in program order; then let every reader read the new values.

        sites: in place it is used up, so that nobody holds the numbers of what is written.
        """
        if not self._at_once:
            return self._write(sites)
        written: list[Written] = []
        units = _units(self.captured, sites)
        sites.clear()
        while units:
            # Dead code goes with the merge before it.
            left = set(self.captured.graph.nodes)
            done = self._write([site for site in units.pop(0) if site.value in left])
            self._swap(done)
            written += done
        return written

    @property
    def _at_once(self) -> bool:
        """Whether each merge goes into the model before the next; norms that are apart are joined at the end only, and
        scales are put back.
        """
        return self.swapped is not None and not self.captured.apart and not self.captured.raised

    def _write(self, sites: Sequence[Site]) -> list[Written]:
        writable = self._even(self.admission.writable([self.admission.as_row(site) for site in sites]))
        scales = {scale for site in writable for scale in site.scales}
        absorbed = {node for site in writable for node in site.absorbed}
        copies = self._skip(scales, absorbed)
        separate = [site for site in writable if site.value in self.admission.separate]
        groups = [*alike(self.captured, [site for site in writable if site not in separate]), *([s] for s in separate)]
        written = [one for group in groups for one in self._write_alike(group)]
        written = self._whole(sites, written)
        for one in written:
            self.splicer.commit(one)
        gone = {member for one in written for member in one.site.members}
        self._absorb(absorbed, gone)
        self._erase(copies)
        self.absorbed += scales & gone
        return written

    def _even(self, sites: list[Site]) -> list[Site]:
        """Leave out merges of a module that is called at other places too, where it could not be written."""
        while found := {site.merge for site in largest(self._uneven(sites))}:
            for value, _ in found:
                self._refuse(value, NOT_ALL)
            sites = [site for site in sites if site.merge not in found]
        return sites

    def _uneven(self, sites: list[Site]) -> list[Site]:
        found = [] if self.as_graph else uneven(self.captured, sites)
        return [site for site in found if site.value not in self.admission.separate]

    def _write_alike(self, group: list[Site]) -> list[Written]:
        """Write sites that merge the same modules, all or none: one layer serves them all."""
        written = [one for site in group if (one := self._write_one(site)) is not None]
        if len(written) == len(group) and all(_equal(written[0], other) for other in written[1:]):
            for other in written[1:]:
                self.splicer.share(written[0], other)
            return written
        for one in reversed(written):
            self.splicer.withdraw(one)
            self._refuse(one.site.value, DIFFERENT)
        self.done = [(one, error) for one, error in self.done if one not in written]
        return []

    def _swap(self, unit: list[Written]) -> None:
        """Change the model, with merges that are committed."""
        assert self.swapped is not None
        self.erase_dead()
        self._leave_absorbed()
        self._collect(unit)
        frames = [frame for one in unit for frame, members in one.core if self.draft.touches(members)]
        calls = [node for one in unit for part in one.parts for node in part.nodes if self.draft.touches([node])]
        frames += map(self.captured.frame, calls)
        scales = [scale for one in unit for scale in self.admission.written_out(one.site)]
        scales += [scale for one in unit for scale in one.site.scales if self.draft.touches([scale])]
        finish(self.draft, [*frames, *map(self.captured.frame, scales)])
        self.in_place |= set(map(id, unit))
        self._free(unit)
        for written in unit:
            written.site = replace(written.site, placed=None)
            self.swapped += [self.draft.paths[name] for name in written.layers if name in self.draft.paths]
        for layer in (layer for written in unit for layer in written.layers.values()):
            self.waiting.add(layer)

    def _free(self, unit: list[Written]) -> None:
        """Let go of the numbers of layers that earlier merges made, and that went into these."""
        taken = {member for one in unit for member in one.site.members}
        merged = [one for one, _ in self.done if not taken.isdisjoint(one.nodes)]
        placed = {id(module) for module in self.captured.root.modules()} if merged else set()
        for layer in (layer for one in merged for layer in one.layers.values() if id(layer) not in placed):
            layer.to("meta")

    def write_pattern(self, site: Site) -> None:
        """Write the site of a graph rule at once, if its method can be written again."""
        swap = is_swap(self.captured, site)
        self.swaps |= {site.value} if swap else set()
        if self.as_graph or swap or self.admission.admit(site):
            written = self._write_one(site)
            if written is not None:
                self.splicer.commit(written)
            if written is not None and self._at_once:
                self._swap([written])

    # --- scales that are absorbed ------------------------------------------------------------------

    def _skip(self, scales: set[fx.Node], absorbed: set[fx.Node]) -> list[fx.Node]:
        """Let the value before stand for an absorbed scale, and a copy that reads it for a view of the scale; returns
        the copies.
        """
        graph, current, copies = self.captured.graph, self.captured.current, []
        for node in [n for n in graph.nodes if n in absorbed]:
            if node in scales:
                self.captured.replaced[node] = self.captured.scaled(node)
            elif any(current(n) is not n for n in node.all_input_nodes):
                with graph.inserting_after(node):
                    copy = graph.node_copy(node, current)
                copy.meta = dict(node.meta)
                in_any_order(copy)
                copies.append(copy)
                self.captured.replaced[node] = copy
        return copies

    def _whole(self, sites: Sequence[Site], written: list[Written]) -> list[Written]:
        """Withdraw the merges that share a scale with one that could not be written."""
        done = {one.site.value for one in written}
        kept = {node for site in sites if site.value not in done for node in site.absorbed}
        for node in kept:
            self.captured.replaced.pop(node, None)
        layers = {id(one.layers) for one in written if not one.site.absorbed.isdisjoint(kept)}
        broken = [one for one in written if id(one.layers) in layers]
        if not broken:
            return written
        for one in broken:
            self.splicer.withdraw(one)
            self._refuse(one.site.value, NOT_ABSORBED)
        self.done = [pair for pair in self.done if pair[0] not in broken]
        return self._whole(sites, [one for one in written if one not in broken])

    def _absorb(self, absorbed: Collection[fx.Node], gone: set[fx.Node]) -> None:
        """Let what still reads an absorbed scale, or a view of it, for its shape read what stands for it."""
        for node in gone.intersection(absorbed):
            now = self.captured.current(node)
            if now is not node:
                node.replace_all_uses_with(now, delete_user_cb=lambda user: user not in gone, propagate_meta=False)

    def _erase(self, copies: list[fx.Node]) -> None:
        """The copies of views that no merge reads."""
        for copy in reversed(copies):
            if not copy.users:
                self.captured.graph.erase_node(copy)

    def _write_one(self, site: Site) -> Written | None:
        """Splice, prove and settle one site; None if its numbers do not fit the model's dtype, or it is not wanted."""
        written = self.splicer.begin(site, self.admission.spread.get(site.value, ()))
        try:
            with self.tape:
                self.splicer.splice(written)
            self._carry_hooks(written)
            error = self.round.prove(self.captured, written)
            settle(self.captured, written, self.tape)
            self.judge(self.captured, written)
            self.round.see(written)
        except BaseException as error:
            self.splicer.withdraw(written)
            if not isinstance(error, NotFusable):
                raise
            self._refuse(site.value, error.reason)
            self.failed[site.merge] = error.reason
            return None
        self.done.append((written, error))
        return written

    def _carry_hooks(self, written: Written) -> None:
        """Hooks before the first module of a row, and after the last one, are those of the merged layer."""
        for member in written.site.core:
            if watched(self.captured, member):
                (layer,) = written.layers.values()
                carry_hooks(self.captured.module(member), layer)

    def is_checked(self, written: Written) -> bool:
        """Whether the code of a merge is written again, as one."""
        return not written.parts and not self.admission.is_row(written)

    # --- before anything is written ----------------------------------------------------------------

    def check(self, site: Site) -> None:
        """Raises `NotFusable` if a site cannot be written, or was tried and failed."""
        if site.merge in self.failed:
            raise NotFusable(self.failed[site.merge])
        self.admission.check(site)

    def attempt(self, site: Site) -> None:
        """As `check`, and the judge is asked about the site as it would be written."""
        self.check(site)
        written = self.splicer.begin(site, self.admission.spread.get(site.value, ()))
        try:
            self.splicer.splice(written)
            settle(self.captured, written, self.tape)
            self.judge(self.captured, written)
        finally:
            self.splicer.withdraw(written)

    # --- the model -----------------------------------------------------------------------------------

    def finish(self) -> tuple[nn.Module, list[Done]]:
        """The model with all merges in place."""
        self.erase_dead()
        self._leave_absorbed()
        join(self.captured)
        pending = [written for written, _ in self.done if id(written) not in self.in_place]
        if pending or self.swapped is None:
            self._collect(pending)
            finish(self.draft, None if self.as_graph else list(self.draft.frames.values()))
        open_layers(self.draft)
        root = self.captured.root
        model = graph_module(self.captured) if self.as_graph else root
        placed = {id(module) for module in root.modules()}
        return model, [self._done(written, error, placed) for written, error in self.done]

    def _collect(self, unit: list[Written]) -> None:
        """Note what has to change, once for merges that share a layer."""
        first: dict[int, Written] = {}
        for written in unit:
            first.setdefault(id(written.layers), written)
        self.draft.sites += [one.site for one in unit]
        for written in first.values():
            if written.parts:
                self.draft.spread(written)
            elif self.admission.is_row(written):
                self.draft.chain(written)
            else:
                self.draft.region(written)

    def _leave_absorbed(self) -> None:
        """What was absorbed, and what a merge took of a norm that still normalises."""
        left = set(self.captured.graph.nodes)
        gone = {m for written, _ in self.done for m in written.site.members} - left
        taken = [n for n in self.captured.apart if n in gone and place_of(n) in self.captured.targets]
        for scale in dict.fromkeys((*self.absorbed, *taken)):
            self.draft.leave(scale)
        self.absorbed.clear()

    def _mark_again(self) -> None:
        """Only methods with a merge that was written in the end are written again."""
        self.draft.frames.clear()
        self.draft.inlined.clear()
        done = [written for written, _ in self.done] if not self.as_graph else []
        rewritten = [one for one in done if one.site.value not in self.admission.chains | self.swaps]
        cores = [core for written in rewritten for core in written.core]
        for frame, members in cores:
            self.draft.rewrite(frame, members)
        for written in done:
            for scale in self.admission.written_out(written.site):
                self.draft.rewrite(self.captured.frame(scale), [scale])
        for written in done:
            self.draft.hide(written.partial)
        for frame, members in cores:
            self.draft.hide(self.admission.opened(frame, members))
        if not self.as_graph:
            self.draft.leave_out({m for written in done for m in written.site.members}, self.round.spare)
            self.captured.opened = set(self.draft.inlined)

    def _done(self, written: Written, error: float | None, placed: set[int]) -> Done:
        """placed: the modules of the model, by identity."""
        paths = tuple(
            self.draft.paths[name] if id(layer) in placed else FURTHER for name, layer in written.layers.items()
        )
        layers, nodes = tuple(written.layers.values()), tuple(written.nodes)
        return Done(written.site, paths, layers, error, nodes, tuple(written.warnings))

    def erase_dead(self) -> None:
        """Members that nothing reads any more, and the sizes only they needed."""
        self._mark_again()
        unused = self.captured.unused
        gone = {m for written, _ in self.done for m in written.site.members}
        made = {n for written, _ in self.done for n in written.nodes if not is_guard(n.target)}
        dead = self.round.computing - gone - made
        calls = Calls(self.captured, self.draft.written)
        needed = (calls.passed - gone) | self.draft.passed()
        guarded = {n: one for one, _ in self.done for n in one.nodes if is_guard(n.target) and not one.parts}
        for node in reversed(self.captured.graph.nodes):
            idle = node in gone or node in made or node in dead or node in self.round.spare or node.op == "get_attr"
            idle |= node in guarded and not self._is_used(guarded[node])
            stays = node in needed or (node in dead and calls.need(node)) or self._is_read_later(node)
            if idle and not node.users and not stays:
                if node in dead or node in made:
                    unused.goes_on(node, self.captured.constants)
                    unused.computes |= node not in gone
                    # Until its code was written again it was for a call.
                    unused.in_the_way(node in dead)
                if node in gone and node.op == "call_module":
                    unused.end(self.captured.module(node))
                self.captured.graph.erase_node(node)
        self._drop_unread()
        self.captured.moved()

    def _is_used(self, written: Written) -> bool:
        """Whether anything still reads what a merge gives, or what further merges made of it."""
        further = (one for one, _ in self.done if written.result in one.site.members)
        return bool(written.result.users) or any(map(self._is_used, further))

    def _drop_unread(self) -> None:
        """Code that is written again calls no module for nothing."""
        unused, written = self.captured.unused, self.draft.written
        gone = [(module, frame) for module, frame in unused.calls if self.as_graph or id(frame) in written]
        unused.calls[:] = [each for each in unused.calls if each not in gone]
        for module, _ in gone:
            unused.end(module())
        unused.in_the_way(gone)

    def _is_read_later(self, writer: fx.Node) -> bool:
        """Whether what an in-place operation writes is still read after it."""
        order = self.captured.aliases.order
        users = self.round.writes[writer].users if writer in self.round.writes else {}
        return any(order.get(user, len(order)) > order[writer] for user in users)


def _units(captured: Captured, sites: Sequence[Site]) -> list[list[Site]]:
    """Sites that share members or modules together, in program order: they are proved against the same layers."""
    members = [(number, member) for number, site in enumerate(sites) for member in site.members]
    shared = nx.Graph(members)
    shared.add_edges_from((number, captured.module(call)) for number, call in members if call.op == "call_module")
    parts = [sorted(n for n in part if isinstance(n, int)) for part in nx.connected_components(shared)]
    return [[sites[n] for n in part] for part in sorted(parts)]


def _equal(a: Written, b: Written) -> bool:
    """Whether two merges have the same layers with the same numbers."""
    pairs = list(zip(a.layers.values(), b.layers.values(), strict=False))
    states = [(x.state_dict(), y.state_dict()) for x, y in pairs]
    same = all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in states)
    return len(a.layers) == len(b.layers) and same and all(repr(x) == repr(y) for x, y in pairs)
