"""Write the chosen merges: splice, prove, settle, and then change the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from ..capture.capture import Captured
from ..engine.choose import Site
from ..engine.scope import innermost
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

    def __post_init__(self) -> None:
        self.splicer = Splicer(self.captured)
        self.finisher = Finisher(self.captured)

    def write(self, sites: Sequence[Site]) -> list[Written]:
        """Splice and prove the sites, in program order; then let every reader read the new values."""
        written = [one for site in self._writable(sites) if (one := self._write_one(site)) is not None]
        for one in written:
            self.splicer.commit(one)
        return written

    def write_pattern(self, site: Site) -> None:
        """Write the site of a graph rule at once, if its method can be written again."""
        if self.as_graph or is_swap(self.captured, site) or self.admit(site):
            written = self._write_one(site)
            if written is not None:
                self.splicer.commit(written)

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
        rows = [site for site in sites if is_chain(self.captured, site)]
        written = [site for site in sites if site not in rows and self.admit(site)]
        while (row := next((r for r in rows if self.finisher.touches(r.members)), None)) is not None:
            # A neighbour in the same method is written again, so this row is as well.
            rows.remove(row)
            if self.admit(row):
                written.append(row)
        self.chains |= {id(site.value) for site in rows}
        return [site for site in sites if site in rows or site in written]

    def check(self, site: Site) -> None:
        """Raises `NotFusable` if a site cannot be written."""
        if not (self.as_graph or is_chain(self.captured, site)):
            self.finisher.check(innermost([self.captured.frame(m) for m in site.members]), site.members)

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
        frame = innermost([self.captured.frame(m) for m in site.members])
        try:
            self.finisher.check(frame, site.members)
        except NotFusable as no:
            self.refuse(site.value, no.reason)
            return False
        self.finisher.rewrite(frame, site.members)
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
        for written, _ in self.done:
            if id(written.site.value) in self.chains and not self.finisher.touches(written.site.members):
                self.finisher.chain(written)
            else:
                self.finisher.region(written)
        self.finisher.finish(rewrite=not self.as_graph)
        root = self.captured.root
        model = self._graph_module() if self.as_graph else root
        return model, [self._done(written, error) for written, error in self.done]

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

    def _is_read_later(self, writer: fx.Node) -> bool:
        """Whether what an in-place operation writes is still read after it."""
        order = self.captured.aliases.order
        users = self.writes[writer].users if writer in self.writes else {}
        return any(order.get(user, len(order)) > order[writer] for user in users)


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
