"""What has to change in a model, collected from its merges."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field

from torch import fx, nn

from ..capture.aliases import target_of
from ..capture.captured import Captured
from ..engine.naming import place_of
from ..engine.nesting import below, code_around, innermost
from ..engine.norms import restore
from ..engine.scope import WRITTEN_INTO
from ..engine.site import Site
from ..errors import NotFusable, Unwritable
from ..layers.parts import rescaled
from ..reasons import Kind
from ..tracing.frame import Frame, Method
from ..tracing.guards import expect
from .expect import Expect
from .fold import fold
from .generated import method
from .hidden import Hidden, because
from .places import Places
from .rewritable import going
from .settings import Ran, elsewhere, lost_setting
from .splice import Written


@dataclass(eq=False)
class Draft:
    """What has to change.

    swaps: per module path its replacement, for rows of module calls. frames: calls to write again, with the
    calls inlined into them. vain: calls that code does without. kept: calls in code that was written already. moves:
    temporary name of a merged layer -> the path whose place it takes.
    rows: paths that a row of module calls left empty. dead: paths of merged layers.
    paths: temporary name of a merged layer -> its final path. hidden: methods that will be there no more.
    places: where all modules are. ran: what the forwards did. sites: the merges that are there.
    """

    captured: Captured
    swaps: dict[str, nn.Module] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)
    inlined: set[int] = field(default_factory=set)
    vain: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    moves: dict[str, tuple[str, Frame]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    paths: dict[str, str] = field(default_factory=dict)
    hidden: Hidden = field(default_factory=dict)
    places: Places = field(init=False)
    ran: Ran = field(init=False)
    sites: list[Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ran = Ran.of(self.captured)

    def check(self, frame: Frame, members: Iterable[fx.Node], guarded: bool) -> None:
        """Raises `NotFusable` if the frame cannot be written again, or would take fewer sizes than the merge needs.

        guarded: the merge takes the sizes of the example inputs only.
        """
        opened = below(self.captured, frame, members)
        inside = [call for call in self.captured.called_in[frame] if id(call) in opened]
        self._check_classes((frame, *inside))
        inlined = frozenset(self.inlined | opened)
        self._check_settings(frame, inside, frozenset(members))
        graph = fold(self.captured, frame, inlined, members)
        size = next(filter(None, map(_literal_size, graph.nodes)), None)
        if size is not None and not guarded:
            raise NotFusable(
                f"the code of {frame.path or 'the model'} takes the size {size} as a plain number: written again,"
                " it would refuse all others",
                Kind.CODE,
            )
        method(graph)

    def _check_classes(self, calls: Iterable[Frame]) -> None:
        """Raises `NotFusable` if a module would be of a class of its own, or gone, and code asks for that."""
        exact = self.captured.outside.exact
        for call in calls:
            if call.module in exact:
                raise NotFusable(exact[call.module])

    def _check_settings(self, frame: Frame, inside: Sequence[Frame], members: Collection[fx.Node]) -> None:
        """Raises `NotFusable` if code would be lost that changes what others see, or a module that others set: one that
        has no layer but the members, which may take its place.
        """
        for call in (frame, *inside):
            if names := elsewhere(call):
                raise NotFusable(
                    f"the forward of {call.path or 'the model'} changes '{min(names)}', which is no module's", Kind.CODE
                )
        for call in inside:
            lost = None if self._keeps_layers(call, members) else lost_setting(self.captured, self.ran, call)
            if lost is not None:
                raise NotFusable(f"the forward of {call.path} goes by {lost}: its module has to stay", Kind.CODE)

    def _keeps_layers(self, call: Frame, members: Collection[fx.Node]) -> bool:
        """Whether a module has layers that are no members, so that it stays, and takes no other setting."""
        return any(n.op == "call_module" and n not in members for n in self.captured.made_in[call])

    @property
    def written(self) -> set[int]:
        """The calls (by identity) whose code is written again, by itself or in that of another."""
        return self.inlined | self.frames.keys()

    def touches(self, members: Iterable[fx.Node]) -> bool:
        """Whether code that calls some of these members is written again."""
        return bool(self.calls(members) & self.written)

    def calls(self, members: Iterable[fx.Node]) -> set[int]:
        """The calls that hold the code of a row, from the innermost that has all of it on."""
        frames = [self.captured.frame(node) for node in members]
        around = innermost(frames)
        return {id(f) for frame in frames for f in frame.stack if around in f.stack}

    def around(self, members: Iterable[fx.Node]) -> Frame:
        """The innermost call whose code has all of these members in it."""
        return code_around(self.captured, members, self.inlined)

    def passed(self) -> set[fx.Node]:
        """Arguments of the calls that stay calls in code that is written again, whether they are read there or not."""
        written = self.written
        left = {id(f) for f, nodes in self.captured.made_in.items() if nodes} - self.inlined
        calls = [f for f in self.captured.frames if id(f.parent) in written and id(f) in left]
        return self.captured.nodes_in([(f.args, f.kwargs) for f in calls])

    def rewrite(self, frame: Frame, members: Iterable[fx.Node]) -> None:
        """The method of this call will be written again, and what the members are in goes into it."""
        self.frames[id(frame)] = frame
        self.inlined |= below(self.captured, frame, members)

    def leave_out(self, gone: Collection[fx.Node], spare: Set[fx.Node]) -> None:
        """Code that is written again does not call what only computes parameters of layers that are merged.

        gone: what was merged. spare: numbers that no input changes.
        """
        idle = going(self.captured, gone).union(gone)
        for call in self.calls_left():
            if id(call) in self.vain or (id(call) not in self.kept and self._is_vain(call, idle, spare, gone)):
                self.vain.add(id(call))
                self.inlined |= {id(call), *map(id, self.captured.called_in[call])}

    def calls_left(self) -> list[Frame]:
        """The calls that stay calls, in code that is written again."""
        written = self.written
        return [f for f in self.captured.frames if id(f.parent) in written and id(f) not in written]

    def _is_vain(self, call: Frame, idle: Set[fx.Node], spare: Set[fx.Node], gone: Collection[fx.Node]) -> bool:
        """Whether a call computes nothing but numbers, and only what is idle reads them."""
        calls = [call, *self.captured.called_in[call]]
        made = {node for each in calls for node in self.captured.made_in[each]}
        if not made or not made <= spare or any(not n.users.keys() <= made | idle for n in made):
            return False
        assert call.parent is not None
        try:
            self._check_settings(call, calls, frozenset())
            fold(self.captured, call.parent, frozenset({*self.inlined, *map(id, calls)}), gone)
        except NotFusable:
            return False
        return True

    def hide(self, methods: Iterable[Method]) -> None:
        """Methods that call a part of a merge cannot work any more, but for those that a forward goes on calling: what
        they call computes, in this model, what it has to.
        """
        for module, name in methods:
            if not self._goes_on(module, name):
                self.hidden.setdefault(module, {})[name] = because(module, name, "a part of what was merged")

    def _goes_on(self, module: nn.Module, name: str) -> bool:
        """Whether a method ran, in a call whose code stays as it is."""
        written = self.written
        left = (f for f in self.captured.frames if f.module is module and id(f) not in written)
        return (module, name) in self.ran.methods and any(True for _ in left)

    def chain(self, written: Written) -> None:
        """A row of module calls: the layer takes one place, the others become identities."""
        (name,) = written.layers
        anchor = place_of(written.anchors[name])
        placed = written.site.placed
        assert placed is not None
        layers = {step.node for step in placed.terms[0].trail if step.is_layer}
        members = [m for m in written.site.core if m.name in layers]
        others = sorted({place_of(m) for m in members} - {anchor})
        if placed.guards and others:
            # The check comes first, and the layer, which stands anywhere in the row as well, last.
            by_name = {m.name: place_of(m) for m in members}
            *others, anchor = [by_name[step.node] for step in placed.terms[0].trail if step.node in by_name]
        self.swaps |= {path: nn.Identity().eval() for path in others}
        if placed.guards and others:
            self.swaps[others[0]] = Expect(*placed.rank).eval()
        gone = self._makes_way(written)
        layer = self.captured.held.pop(name)
        self.swaps[anchor] = nn.Identity().eval() if gone else layer
        self.rows.update(others)
        self.dead -= {anchor, *others}
        self.retarget(name, anchor)

    def _makes_way(self, written: Written) -> bool:
        """Whether nothing stands for a row whose merged layer is not called any more: one that was merged further has
        its place in the swaps of that merge. Raises `Unwritable` if code would write into what the row reads then.
        """
        members = written.site.core
        if any(name in self.captured.targets for name in written.layers):
            return False
        if self.touches(members) or not self._is_written_over(members):
            return True
        if self._is_merged_further(written):
            raise Unwritable({self.captured.frame(next(iter(members))).path: WRITTEN_INTO})
        return False

    def _is_merged_further(self, written: Written) -> bool:
        return any(written.result in site.members for site in self.sites)

    def _is_written_over(self, members: Iterable[fx.Node]) -> bool:
        """Whether code writes into the value of a layer, be it in vain."""
        return not self.captured.code.written_over.isdisjoint(map(place_of, members))

    def spread(self, written: Written) -> None:
        """A row in the code of several calls: what is written again has its layers no more, elsewhere they make way."""
        ((name, anchor),) = written.anchors.items()
        for part in written.parts:
            if part.frame is not None:
                self.dead |= {str(node.target) for node in part.nodes if node.op == "call_module"}
            elif self.touches(part.nodes):
                self.dead |= {part.path} - {""}
            else:
                self.swaps[part.path] = nn.Identity().eval()
                self.rows.add(part.path)
                self.dead.discard(part.path)
        home = next(part for part in written.parts if anchor in part.nodes)
        if self._makes_way(written):
            del self.captured.held[name]
        elif home.frame is not None or self.touches(home.nodes):
            self.moves[name] = place_of(anchor), home.frame or self.captured.frame(anchor)
        else:
            self.swaps[home.path] = self.captured.held.pop(name)
            self.rows.remove(home.path)
            self.retarget(name, home.path)

    def region(self, written: Written) -> None:
        """Any other site."""
        for name, anchor in written.anchors.items():
            if name in self.captured.targets:
                self.moves[name] = place_of(anchor), written.frame
            else:
                self.captured.held.pop(name, None)
        self.dead |= _targets(written)

    def leave(self, scale: fx.Node) -> None:
        """A scale that what reads it absorbed: a module makes way for one that does not scale."""
        if scale in self.captured.apart:
            restore(self.captured, scale, self.captured.apart.pop(scale))
            if (path := place_of(scale)) in self.captured.held:
                self.swaps[path] = self.captured.held.pop(path)
        elif scale.op == "call_module" and self.touches([scale]):
            self.dead.add(str(scale.target))
        elif scale.op == "call_module" and scale.target not in self.captured.held:
            if self._is_written_over([scale]):
                raise Unwritable({self.captured.frame(scale).path: WRITTEN_INTO})
            self.swaps[str(scale.target)] = nn.Identity().eval()

    def called(self) -> set[str]:
        """Paths of modules that code goes on calling, if not at all places where it did."""
        written = self.written
        left = [f for f in self.captured.frames if id(f) not in self.inlined]
        return {f.path for f in left if self.captured.made_in[f] or id(f.parent) not in written}

    def counted(self) -> set[nn.Module]:
        """The lists and rows that code has in hand which is not written again: it may ask for their length."""
        written = self.written
        return set().union(*(frame.lists for frame in self.captured.frames if id(frame) not in written))

    def retarget(self, old: str, new: str) -> None:
        """Let the nodes of a merged layer call it where it stands now."""
        names = [name for name, path in self.paths.items() if path == old] or [old]
        self.paths |= dict.fromkeys(names, new)
        nodes = self.captured.targets.pop(old, [])
        for node in nodes:
            node.target = new
        if nodes:
            self.captured.targets[new] = nodes

    def opened(self) -> set[str]:
        """The paths of modules whose code went into that of one around, at all calls."""
        left = {f.path for f in self.captured.frames if id(f) not in self.inlined}
        return {f.path for f in self.captured.frames if id(f) in self.inlined} - left


def _literal_size(node: fx.Node) -> int | None:
    """The size that a check in generated code insists on, as the code computed with it as a plain number."""
    known = node.args[1] if node.target is expect else None
    if not isinstance(known, int) or isinstance(known, bool):
        return None
    number = node.all_input_nodes[0]
    return None if number.op == "placeholder" or _counts_chunks(number) else known


def _counts_chunks(number: fx.Node) -> bool:
    """Whether a number is that of the chunks that code asked for: of all sizes but the least it gets as many."""
    return number.target is len and target_of(number.all_input_nodes[0]) == "chunk"


def _targets(written: Written) -> set[str]:
    """The modules that its members call, or stand for."""
    members = written.site.core
    raised = {place_of(n) for n in members if n.target is rescaled} - {""}
    return raised | {str(n.target) for n in members if n.op == "call_module"}
