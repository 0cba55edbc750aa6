"""Write the chosen merges: splice, prove, settle, and then change the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from ..capture.capture import Captured
from ..engine.choose import Site
from ..engine.norms import join
from ..engine.scope import innermost, place_of
from ..errors import NotFusable
from .finish import Finisher, settle
from .splice import Splicer, Written, is_chain, is_swap

Prove = Callable[[Captured, Written], float | None]
"""Checks one merge in float64; returns its error, raises if it is wrong."""
Refuse = Callable[[fx.Node, str], None]
Judge = Callable[[Captured, Written], None]
"""Raises `NotFusable` if a merge is not wanted, as it would be written."""


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

    as_graph: write into the flat graph only, and change no module's code. prove: checks a merge. refuse: is told why
    a site could not be written. judge: has the last word on each merge. spare: nodes without side effects, erased when
    nothing reads them. writes: in-place operations on parameter arithmetic, with the value that each writes into,
    erased when nothing reads that afterwards.
    """

    captured: Captured
    as_graph: bool
    prove: Prove
    refuse: Refuse
    judge: Judge
    spare: set[fx.Node] = field(default_factory=set)
    writes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    done: list[tuple[Written, float | None]] = field(default_factory=list)
    chains: set[int] = field(default_factory=set)
    swaps: set[int] = field(default_factory=set)
    absorbed: list[fx.Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.splicer = Splicer(self.captured)
        self.finisher = Finisher(self.captured)

    def write(self, sites: Sequence[Site]) -> list[Written]:
        """Splice and prove the sites, in program order; then let every reader read the new values."""
        writable = self._writable([self._settled(site) for site in sites])
        scales = {scale for site in writable for scale in site.scales}
        absorbed = {node for site in writable for node in site.absorbed}
        copies = self._skip(scales, absorbed)
        written = [one for site in writable if (one := self._write_one(site)) is not None]
        written = self._whole(sites, written)
        for one in written:
            self.splicer.commit(one)
        gone = {member for one in written for member in one.site.members}
        self._absorb(absorbed, gone)
        self._erase(copies)
        self.absorbed += scales & gone
        return written

    def write_pattern(self, site: Site) -> None:
        """Write the site of a graph rule at once, if its method can be written again."""
        swap = is_swap(self.captured, site)
        self.swaps |= {id(site.value)} if swap else set()
        if self.as_graph or swap or self.admit(site):
            written = self._write_one(site)
            if written is not None:
                self.splicer.commit(written)

    # --- scales that are absorbed ------------------------------------------------------------------

    def _skip(self, scales: set[fx.Node], absorbed: set[fx.Node]) -> list[fx.Node]:
        """Let the value before stand for an absorbed scale, and a copy that reads it for a view of the scale; returns
        the copies.
        """
        graph, current, copies = self.captured.graph, self.captured.current, []
        for node in [n for n in graph.nodes if n in absorbed]:
            if node in scales:
                (before,) = (n for n in node.all_input_nodes if n not in self.captured.constants)
                self.captured.replaced[node] = before
            elif any(current(n) is not n for n in node.all_input_nodes):
                with graph.inserting_after(node):
                    copy = graph.node_copy(node, current)
                copy.meta = dict(node.meta)
                copies.append(copy)
                self.captured.replaced[node] = copy
        return copies

    def _whole(self, sites: Sequence[Site], written: list[Written]) -> list[Written]:
        """Withdraw the merges that share a scale with one that could not be written."""
        done = {id(one.site.value) for one in written}
        kept = {node for site in sites if id(site.value) not in done for node in site.absorbed}
        for node in kept:
            self.captured.replaced.pop(node, None)
        broken = [one for one in written if not one.site.absorbed.isdisjoint(kept)]
        if not broken:
            return written
        for one in broken:
            self.splicer.withdraw(one)
            self.refuse(one.site.value, "another reader of its scale could not absorb it")
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
        written = self.splicer.begin(site)
        try:
            self.splicer.splice(written)
            error = self.prove(self.captured, written)
            self._settle(written)
            self.judge(self.captured, written)
        except BaseException as error:
            self.splicer.withdraw(written)
            if not isinstance(error, NotFusable):
                raise
            self.refuse(site.value, error.reason)
            return None
        self.done.append((written, error))
        return written

    # --- which sites can be written ----------------------------------------------------------------

    def _writable(self, sites: Sequence[Site]) -> list[Site]:
        """Leave out sites whose method cannot be written again; mark rows of modules that need none written."""
        if self.as_graph:
            return list(sites)
        able = [site for site in sites if self._admit_scales(site)]
        rows = [site for site in able if is_chain(self.captured, site)]
        known = {id(row) for row in rows}
        written = [site for site in able if id(site) not in known and self.admit(site)]
        while touched := {id(row) for row in rows if self.finisher.touches(row.core)}:
            # A neighbour in the same method is written again, so these rows are as well.
            written += [row for row in rows if id(row) in touched and self.admit(row)]
            rows = [row for row in rows if id(row) not in touched]
        self.chains |= {id(site.value) for site in rows}
        chosen = {id(site) for site in (*rows, *written)}
        return [site for site in sites if id(site) in chosen]

    def check(self, site: Site) -> None:
        """Raises `NotFusable` if a site cannot be written."""
        if self.as_graph:
            return
        site = self._settled(site)
        for scale in _written_out(site):
            self.finisher.check(self.captured.frame(scale), [scale], _guarded(site))
        if not is_chain(self.captured, site):
            self.finisher.check(innermost([self.captured.frame(m) for m in site.core]), site.core, _guarded(site))

    def _settled(self, site: Site) -> Site:
        """A row of modules is one whether it begins with a scale or not."""
        whole = replace(site, absorbed=frozenset())
        apart = not site.absorbed.isdisjoint(self.captured.apart)
        return whole if not apart and is_chain(self.captured, whole) else site

    def attempt(self, site: Site) -> None:
        """As `check`, and the judge is asked about the site as it would be written."""
        self.check(site)
        written = self.splicer.begin(site)
        try:
            self.splicer.splice(written)
            self._settle(written)
            self.judge(self.captured, written)
        finally:
            self.splicer.withdraw(written)

    def admit(self, site: Site) -> bool:
        """Mark the site's method to be written again, if it can be."""
        return self._admit(site, site.core)

    def _admit_scales(self, site: Site) -> bool:
        """The same for the methods that its absorbed scales are in."""
        return all(self._admit(site, [scale]) for scale in _written_out(site))

    def _admit(self, site: Site, members: Collection[fx.Node]) -> bool:
        frame = innermost([self.captured.frame(m) for m in members])
        try:
            self.finisher.check(frame, members, _guarded(site))
        except NotFusable as no:
            self.refuse(site.value, no.reason)
            return False
        self.finisher.rewrite(frame, members)
        return True

    # --- numbers -----------------------------------------------------------------------------------

    def _settle(self, written: Written) -> None:
        tensors = list(_tensors(self.captured, written.site.members))
        floating = [t for t in tensors if t.is_floating_point()]
        trainable = any(t.requires_grad for t in floating)
        for name, module in written.layers.items():
            like = next(iter(_tensors(self.captured, [written.anchors[name]])), None)
            like = like if like is not None and like.is_floating_point() else next(iter(floating), self._any())
            written.warnings += settle(module, like, trainable)

    def _any(self) -> Tensor | None:
        """A parameter of the model, for the dtype of a merge that reads none."""
        return next((p for p in self.captured.root.parameters() if p.dtype != torch.float64), None)

    # --- the model -----------------------------------------------------------------------------------

    def finish(self) -> tuple[nn.Module, list[Done]]:
        """The model with all merges in place."""
        self.erase_dead()
        self._mark_again()
        for scale in self.absorbed:
            self.finisher.leave(scale)
        join(self.captured)
        for written, _ in self.done:
            if id(written.site.value) in self.chains and not self.finisher.touches(written.site.core):
                self.finisher.chain(written)
            else:
                self.finisher.region(written)
        self.finisher.finish(rewrite=not self.as_graph)
        root = self.captured.root
        model = self._graph_module() if self.as_graph else root
        return model, [self._done(written, error) for written, error in self.done]

    def _mark_again(self) -> None:
        """Only methods with a merge that was written in the end are written again."""
        self.finisher.frames.clear()
        self.finisher.inlined.clear()
        for written, _ in self.done if not self.as_graph else ():
            self.finisher.hide(written.partial)
            if id(written.site.value) not in self.chains | self.swaps:
                self.finisher.rewrite(written.frame, written.site.core)
            for scale in _written_out(written.site):
                self.finisher.rewrite(self.captured.frame(scale), [scale])

    def _graph_module(self) -> fx.GraphModule:
        for name, value in self.captured.held.items():
            self.captured.root.register_buffer(name, value, persistent=False)
        return fx.GraphModule(self.captured.root, self.captured.graph, type(self.captured.root).__name__)

    def _done(self, written: Written, error: float | None) -> Done:
        paths = tuple(self.finisher.paths.get(name, "(merged further)") for name in written.layers)
        layers, nodes = tuple(written.layers.values()), tuple(written.nodes)
        return Done(written.site, paths, layers, error, nodes, tuple(written.warnings))

    def erase_dead(self) -> None:
        """Members that nothing reads any more, and the sizes only they needed."""
        gone = {m for written, _ in self.done for m in written.site.members}
        passed = (self.captured.passed - gone) | self.finisher.passed()
        for node in reversed(self.captured.graph.nodes):
            spare = node in gone or node in self.spare or node.op == "get_attr"
            if spare and not node.users and node not in passed and not self._is_read_later(node):
                self.captured.graph.erase_node(node)
        self.captured.moved()

    def _is_read_later(self, writer: fx.Node) -> bool:
        """Whether what an in-place operation writes is still read after it."""
        order = self.captured.aliases.order
        users = self.writes[writer].users if writer in self.writes else {}
        return any(order.get(user, len(order)) > order[writer] for user in users)


def _written_out(site: Site) -> list[fx.Node]:
    """Absorbed scales that are no module's: the code around them changes."""
    return [scale for scale in site.scales if not place_of(scale)]


def _guarded(site: Site) -> bool:
    """Whether the code that is written takes the sizes of the example inputs only."""
    return site.placed is None or bool(site.placed.guards)


def _tensors(captured: Captured, nodes: Iterable[fx.Node]) -> Iterable[Tensor]:
    """Parameters and buffers that nodes read, also through parameter arithmetic."""
    for node in sorted(nodes, key=lambda n: n.name):
        if node.op == "call_module":
            module = captured.module(node)
            yield from module.parameters()
            yield from module.buffers()
        elif node.op == "get_attr" and isinstance(value := captured.attribute(node), Tensor):
            yield value
        yield from _tensors(captured, [n for n in node.all_input_nodes if n in captured.constants])
