"""From the rewritten graph to the user's own model: modules swapped, methods regenerated, nothing left over."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from torch import Tensor, fx, nn

from ..capture.aliases import target_of
from ..capture.captured import Captured
from ..capture.paths import module_at, start_of, upwards
from ..engine.norms import restore
from ..engine.scope import WRITTEN_INTO, below, code_around, innermost, outer, place_of
from ..engine.site import Site
from ..errors import NotFusable, Unwritable
from ..layers.parts import rescaled
from ..running.state import intact
from ..tracing.frame import Frame, Method
from ..tracing.guards import expect, expect_rank
from .classes import change, changes_of
from .fold import fold
from .generated import method
from .hidden import Hidden, asking_for_classes, because, hide_broken
from .originals import original_class
from .places import Places
from .rewritable import going, without_gradients
from .settings import Ran, elsewhere, is_users, lost_setting, settings_of
from .splice import Written

LISTS = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called."""


class Expect(nn.Identity):
    """What is left of a merged layer where the merge was proved for one rank of its input, or from one on: a check."""

    def __init__(self, rank: int, or_more: bool = False) -> None:
        super().__init__()
        self.rank, self.or_more = rank, or_more

    def forward(self, input: Tensor) -> Tensor:
        """input: any shape of `rank` dimensions (`or_more`); returned as it is."""
        expect_rank(input, self.rank, self.or_more)
        return input


@dataclass(eq=False)
class Finisher:
    """Collects what has to change, then changes the modules.

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

    # --- collecting ------------------------------------------------------------------------------

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
                " it would refuse all others"
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
                    f"the forward of {call.path or 'the model'} changes '{min(names)}', which is no module's"
                )
        for call in inside:
            lost = None if self._keeps_layers(call, members) else lost_setting(self.captured, self.ran, call)
            if lost is not None:
                raise NotFusable(f"the forward of {call.path} goes by {lost}: its module has to stay")

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
        for call in self._calls_left():
            if id(call) in self.vain or (id(call) not in self.kept and self._is_vain(call, idle, spare, gone)):
                self.vain.add(id(call))
                self.inlined |= {id(call), *map(id, self.captured.called_in[call])}

    def _calls_left(self) -> list[Frame]:
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
        self._retarget(name, anchor)

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
        return not self.captured.written_over.isdisjoint(map(place_of, members))

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
            self._retarget(name, home.path)

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

    # --- changing --------------------------------------------------------------------------------

    def finish(self, frames: Iterable[Frame] | None) -> None:
        """Change the modules of the root as it was collected, and the methods of these calls (None: of no module, and
        hide none); all of it or nothing. Raises `Unwritable` if a method cannot be written with all that goes into it.
        """
        before = dict(self.captured.root.named_modules(remove_duplicate=False))
        classes = {module: type(module) for module in before.values()}
        self.places = Places(self.captured.root)
        with intact(self.captured.root):
            self.places.counted = self._counted()
            self.dead.update(self.captured.uncalled_paths)
            self._move_layers()
            for frame in sorted({outer(f, self.inlined) for f in frames or ()}, key=lambda f: -f.path.count(".")):
                self._regenerate(frame)
            self._remove_unread()
            for path, module in self.swaps.items():
                self.places.put(path, module, called=True)
            self._remove_dead_modules()
            self.places.replace_held()
            if frames is not None:
                self._hide(before)
                self._fix()
                self._fix_places(before)
                self._check_kept(classes)
                self._hide_asking()
        self.kept |= set(map(id, self._calls_left()))
        for done in (self.moves, self.swaps, self.places, self.sites):
            done.clear()

    def _move_layers(self) -> None:
        """Give every merged layer the place of the layer it stands for, as high as that place is free."""
        live = {outer for path in self._live() for outer in upwards(path)}
        taken: set[str] = set()
        below = self._dead_by_owner()
        for name, (path, frame) in self.moves.items():
            target = self._place(path, frame, live, taken)
            live.update(upwards(target))
            taken.add(target)
            for gone in below.get(target, ()):
                # It may have other names elsewhere.
                if gone not in self.captured.targets and self.places.has(gone):
                    self.places.put(gone, None)
            self.places.put(target, self.captured.held.pop(name))
            self.dead.discard(target)
            self._retarget(name, target)

    def _dead_by_owner(self) -> dict[str, list[str]]:
        """Per path of a module those of the merged layers inside, which go with it."""
        found: dict[str, list[str]] = {}
        for dead in self.dead:
            for owner in upwards(dead.rpartition(".")[0]):
                found.setdefault(owner, []).append(dead)
        return found

    def _live(self) -> set[str]:
        """Paths of modules, parameters and buffers that something still uses."""
        names = {name: module for name, module in self.captured.root.named_modules() if name}
        swallowed = {f.path for f in self.captured.frames if id(f) in self.inlined} - self._called()
        kept = {n for n in names if n not in swallowed and self.dead.isdisjoint(upwards(n))}
        kept |= {n for n, module in names.items() if module in self.places.counted}
        for name in sorted(kept, key=lambda n: -n.count(".")):
            if self._is_spent(names[name]) and kept.isdisjoint(f"{name}.{child}" for child in names[name]._modules):
                kept.remove(name)
        return kept | self.captured.targets.keys()

    def _called(self) -> set[str]:
        """Paths of modules that code goes on calling, if not at all places where it did."""
        written = self.written
        left = [f for f in self.captured.frames if id(f) not in self.inlined]
        return {f.path for f in left if self.captured.made_in[f] or id(f.parent) not in written}

    def _counted(self) -> set[nn.Module]:
        """The lists and rows that code has in hand which is not written again: it may ask for their length."""
        written = self.written
        return set().union(*(frame.lists for frame in self.captured.frames if id(frame) not in written))

    def _is_spent(self, module: nn.Module) -> bool:
        """Whether nothing needs a module if nothing needs its children: a list of modules that have no other name."""
        only = all(len(self.places.by.get(inner, ())) == 1 for inner in module.modules())
        return type(module) in LISTS and bool(module._modules) and only and module not in self.places.counted

    def _place(self, path: str, frame: Frame, live: set[str], taken: set[str]) -> str:
        """live: paths in use, and those of the modules around. taken: of merged layers; nothing hangs below one."""
        owner = outer(frame, self.inlined).path
        prefix = start_of(owner)
        if not path.startswith(prefix) or not path:
            path = self._fresh(prefix, live)
        parts = path[len(prefix) :].split(".")
        for depth in range(1, len(parts) + 1):
            candidate = prefix + ".".join(parts[:depth])
            if candidate not in live:
                return candidate
            if candidate in taken:
                break
        return self._fresh(prefix, live)

    def _fresh(self, prefix: str, live: set[str]) -> str:
        names = (f"{prefix}merged{k}" for k in itertools.count())
        return next(name for name in names if name not in live and not self.places.has(name))

    def _retarget(self, old: str, new: str) -> None:
        names = [name for name, path in self.paths.items() if path == old] or [old]
        self.paths |= dict.fromkeys(names, new)
        nodes = self.captured.targets.pop(old, [])
        for node in nodes:
            node.target = new
        if nodes:
            self.captured.targets[new] = nodes

    def _regenerate(self, frame: Frame) -> None:
        inlined = frozenset(self.inlined)
        try:
            graph = fold(self.captured, frame, inlined, leaving=self.swaps.keys())
        except NotFusable as no:
            # Each merge could be written by itself.
            raise Unwritable({frame.path: no.reason}) from no
        self._keep_constants(graph, frame.module)
        written = method(graph, gradients=not without_gradients(self.captured, frame, inlined))
        change(frame.module, replace(changes_of(frame.module), forward=written))
        # A method that was set as the forward of this module alone: its code is what was written.
        vars(frame.module).pop("forward", None)

    def open_layers(self) -> None:
        """A norm or another layer of torch by its class, whose own work is merged, is what its code still calls."""
        with intact(self.captured.root):
            places = Places(self.captured.root)
            for frame in self.frames.values():
                is_left = id(frame) not in self.inlined and places.has(frame.path) and _is_layer(frame.module)
                left = self._left(frame) if is_left else None
                if left is not None:
                    places.put(frame.path, left, called=True)
            places.replace_held()

    def _left(self, frame: Frame) -> nn.Module | None:
        """The modules that the code of a call still calls, one after the other; None if it does more."""
        inside = self.captured.root.get_submodule(frame.path)
        value, *body, output = fold(self.captured, frame, frozenset(self.inlined), leaving=self.swaps.keys()).nodes
        found: dict[str, nn.Module] = {}
        for node in body:
            name = str(node.target)
            if node.target is expect_rank and node.args[0] is value:
                found["expect"] = Expect(*node.args[1:]).eval()
            elif node.op == "call_module" and node.args == (value,) and not node.kwargs and "." not in name:
                found[name] = inside.get_submodule(name)
                value = node
            else:
                return None
        if output.args != (value,):
            return None
        return self._row_of(frame.path, found, inside.training)

    def _row_of(self, path: str, modules: dict[str, nn.Module], training: bool) -> nn.Module:
        """These modules, in a container if they need one. path: of what they are inside."""
        names = [f"{path}.{name}" for name in modules]
        if len(names) == 1 and names[0] in self.paths.values():
            self._retarget(names[0], path)
            return modules.popitem()[1]
        made = nn.Sequential(OrderedDict(modules)) if modules else nn.Identity()
        made.training = training
        return made

    def _hide(self, before: Mapping[str, nn.Module]) -> None:
        """Hide the methods that cannot work any more."""
        written = {f.module for f in self.frames.values() if id(f) not in self.inlined}
        live = self._running((module, name) for module, name in self.captured.methods if module not in written)
        hide_broken(self.captured.root, before, self.hidden, self._opened(), live, original_class)
        _hide_all(self.hidden)

    def _opened(self) -> set[str]:
        """The paths of modules whose code went into that of one around, at all calls."""
        left = {f.path for f in self.captured.frames if id(f) not in self.inlined}
        return {f.path for f in self.captured.frames if id(f) in self.inlined} - left

    def _running(self, called: Iterable[Method]) -> set[Method]:
        """What goes on running: methods that forward calls, forwards but those that no call runs, and what code outside
        runs.
        """
        root, outside = self.captured.root, self.captured.outside
        forwards = {(module, "forward") for module in root.modules() if module not in outside.idle}
        return {*called, *outside.methods, *forwards}

    def _check_kept(self, classes: Mapping[nn.Module, type[nn.Module]]) -> None:
        """Raises `Unwritable` if modules have another class than before, and the code that runs asks for that."""
        exact = self.captured.outside.exact
        named = self.captured.root.named_modules()
        found = {path: exact[m] for path, m in named if m in exact and classes[m] is not type(m)}
        if found:
            raise Unwritable({path: found[path] for path in self._apart(found)})

    def _apart(self, paths: Iterable[str]) -> list[str]:
        """Those that share no merge with one before: without the merges of that, they may be what they were."""
        found, known = list[str](), set[int]()
        for path in paths:
            inside = {id(site) for site in self.sites if any(self._is_in(path, node) for node in site.members)}
            found += [path] if inside.isdisjoint(known) else []
            known |= inside
        return found

    def _is_in(self, path: str, node: fx.Node) -> bool:
        return any(call.path == path for call in self.captured.frame(node).stack)

    def _hide_asking(self) -> None:
        """Hide the methods that would take a module for one of another class, which it has got by what was changed."""
        live = self._running(self.captured.methods)
        while found := asking_for_classes(self.captured.root, live, original_class):
            _hide_all(found)

    def _fix(self) -> None:
        """Let no attribute that merges rely on be set to something else, of a module or of what has its layers now."""
        for module, names in settings_of(self.captured, self.ran, self.written, self.sites).items():
            path = next(iter(self.captured.paths.get(module, ())), "")
            here = module_at(self.captured.root, path)
            if here is module or isinstance(here, nn.Sequential):
                known = changes_of(here)
                change(here, replace(known, settings=tuple(sorted({*known.settings, *names}))))

    def _fix_places(self, before: Mapping[str, nn.Module]) -> None:
        """Let nothing be put where code called a layer that it calls no more. before: the modules, by their paths."""
        opened, written = self._opened(), {f.path for f in self.frames.values()}
        for path in before.keys() - {""}:
            parent, _, name = path.rpartition(".")
            here, is_gone = module_at(self.captured.root, parent), not self.places.has(path)
            is_bypassed = path in opened and path not in self.captured.targets
            if parent in opened | written and (is_gone or is_bypassed) and here is before[parent] and is_users(here):
                known = changes_of(here)
                change(here, replace(known, merged=tuple(sorted({*known.merged, name}))))

    def _remove_unread(self) -> None:
        """Parameters that only code read which is written again, and which reads them no more; and layers of which
        only the parameters were read.
        """
        used = {name for name, nodes in self.captured.targets.items() if nodes[0].op == "get_attr"}
        written = {f.path for f in self.captured.frames if id(f) in self.inlined or id(f) in self.frames}
        for path in self.captured.attributes.keys() - used:
            owner, _, name = path.rpartition(".")
            if owner and not self.places.has(owner):
                continue
            module = self.captured.root.get_submodule(owner)
            if isinstance(module, nn.ParameterDict):
                if owner.rpartition(".")[0] in written and name in module:
                    module.pop(name)
            elif owner in written:
                # Not deleted: a subclass of a torch layer shows them in its repr.
                table = module._parameters if name in module._parameters else module._buffers
                table[name] = None
            elif self._was_read(owner, module, written):
                self.dead.add(owner)

    def _was_read(self, path: str, module: nn.Module, written: set[str]) -> bool:
        """Whether only code that is written again read the parameters of a layer, which nothing calls."""
        outside, read = self.captured.outside, self.captured.attributes
        readers = {f.path for name, frames in read.items() if name.rpartition(".")[0] == path for f in frames}
        parts = {module, *module.parameters(), *module.buffers()}
        called = id(module) in self.captured.module_calls or any(True for _ in module.children())
        return readers <= written and not called and parts.isdisjoint({*outside.used, *outside.whole})

    def _keep_constants(self, graph: fx.Graph, module: nn.Module) -> None:
        """Tensors that the method made of plain numbers become buffers, which are not saved."""
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in self.captured.held:
                name = next(f"_constant{k}" for k in itertools.count() if not hasattr(module, f"_constant{k}"))
                module.register_buffer(name, self.captured.held[str(node.target)], persistent=False)
                node.target = name

    def _remove_dead_modules(self) -> None:
        used, merged, called = self._used(), frozenset(self.paths.values()), self._called()
        written, callers = self.written, self._callers()
        self.dead |= {path for path in self.rows if callers.get(path, set()) <= written}
        for path in sorted(self.dead, key=lambda p: -p.count(".")):
            if path not in self.captured.targets and self._is_old(path, merged):
                self._remove(path, used)
        for frame in sorted(self.captured.frames, key=lambda f: -f.path.count(".")):
            if id(frame) in self.inlined and frame.path not in called and self._is_old(frame.path, merged):
                self._hollow(frame.path, used)

    def _callers(self) -> dict[str, set[int]]:
        """Per path of a module the calls (by identity) whose code calls it."""
        found = {path: set(map(id, frames)) for path, frames in self.captured.callers.items()}
        for frame in self.captured.frames:
            found.setdefault(frame.path, set()).add(id(frame.parent))
        return found

    def _is_old(self, path: str, merged: frozenset[str]) -> bool:
        """Whether a path still is that of the model's own module, and not of one inside a merged layer."""
        return merged.isdisjoint(upwards(path.rpartition(".")[0])) and self.places.has(path)

    def _used(self) -> dict[str, set[str]]:
        """Per module the names of the children and tensors that the graph uses."""
        found: dict[str, set[str]] = {}
        for path in self.captured.targets:
            owner, _, name = path.rpartition(".")
            found.setdefault(owner, set()).add(name)
        return found

    def _remove(self, path: str, used: Mapping[str, set[str]]) -> None:
        """A merged layer: gone, but for parameters that the code reads itself."""
        read = used.get(path, set())
        if not read:
            self.places.put(path, None)
            return
        module = self.captured.root.get_submodule(path)
        for name in {*module._parameters, *module._buffers} - read:
            delattr(module, name)
        self.places.put(path, _container(module))

    def _hollow(self, path: str, used: Mapping[str, set[str]]) -> None:
        """A module whose work is done in its caller now: gone, or a container of what is still used."""
        module = self.captured.root.get_submodule(path)
        if path in self.captured.targets:
            return
        for name in {*module._parameters, *module._buffers} - used.get(path, set()):
            delattr(module, name)
        if not (module._modules or module._parameters or module._buffers):
            self.places.put(path, None)
        elif not isinstance(module, nn.Sequential):
            self.places.put(path, _container(module))


def _hide_all(hidden: Hidden) -> None:
    for module, names in hidden.items():
        known = changes_of(module)
        change(module, replace(known, hidden=tuple((dict(known.hidden) | names).items())))


def _is_layer(module: nn.Module) -> bool:
    """Whether it is, by its class, one of torch's layers."""
    bases = set(original_class(module).__mro__) - {nn.Module, nn.Sequential, nn.Identity, *LISTS}
    return any(base.__module__.startswith("torch.nn.modules.") for base in bases)


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


def _container(module: nn.Module) -> nn.Sequential:
    made = nn.Sequential(OrderedDict(module._modules.items()))  # type: ignore[arg-type]
    made._parameters, made._buffers = module._parameters, module._buffers
    # What is inside keeps its own mode.
    made.training = module.training
    return made
