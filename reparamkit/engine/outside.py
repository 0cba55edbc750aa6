"""What code outside of a part that was traced does with the modules and tensors of that part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..capture.captured import Captured
from ..capture.facts import Outside
from ..reasons import Kind, Reason
from ..sourcecode.following import Following
from ..sourcecode.parse import forward_of, is_torchs
from ..sourcecode.uses import Uses
from ..sourcecode.values import OWN, TENSORS, one
from ..tracing.proxies import attribute

BUFFERS = frozenset({"buffers", "named_buffers", "_buffers"})
IsLeaf = Callable[[nn.Module], bool]
VANISHING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers in whose place there is another class after a merge; the weights that take them up stay of their class."""
UNTAKEN = Reason("nothing calls it, and code of the model may use it by itself", Kind.CAPTURED)
READS_CLASS = Reason("code of the model reads its class, which a merge changes", Kind.SHARED)


def look_outside(parts: Sequence[Captured], is_leaf: IsLeaf, calls: Mapping[str, int] | None) -> None:
    """Tell every part what code outside of it uses. is_leaf: whether a module's own code is not of interest. calls: how
    often a run called each module, by its path, if there was a run.
    """
    paths = {module: path for path, module in parts[0].root.named_modules()}
    code = _Code(parts, paths)
    code.follow_untraced(is_leaf, calls)
    code.follow_traced()
    code.follow_untaken()
    code.follow_hooks()
    for part in parts:
        part.outside = replace(code.found, used=dict(code.found.used), whole={})
        for other in parts:
            if other is not part:
                _share(part.outside, part, other)


@dataclass(frozen=True)
class _Code:
    """What code does, that no trace has seen and that was traced. paths: those of all modules."""

    parts: Sequence[Captured]
    paths: Mapping[nn.Module, str]
    found: Outside = field(default_factory=Outside)

    def follow_untraced(self, is_leaf: IsLeaf, calls: Mapping[str, int] | None) -> None:
        """The forwards that run, of modules that were not traced."""
        traced = {frame.module for part in self.parts for frame in part.frames}
        own = {m for m in self.paths if m not in traced and not is_leaf(m) and not is_torchs(forward_of(m))}
        waiting = [module for module in _running(self.parts, calls) if module in own]
        own.difference_update(waiting)
        while waiting:
            module = waiting.pop()
            uses = self._followed(partial(_follow_all, [module]))
            self._note_untraced(module, uses)
            more = {m for each in uses.called for m in _run_by(each, own)} | {m for m in own if m in uses.read}
            own -= more
            waiting += more
        self.found.idle = own

    def _followed(self, follow: Callable[[Following], None], also: frozenset[str] = frozenset()) -> Following:
        """What some code does. also: attributes that change, besides those that were seen to."""
        changing = (names for part in self.parts for names in part.code.changed.names.values())
        uses = Following(changing=also.union(*changing))
        follow(uses)
        # What sets an attribute may be found behind what was taken not to change.
        late = uses.relied & uses.stored.keys()
        return self._followed(follow, uses.changing | late) if late else uses

    def _note_untraced(self, module: nn.Module, uses: Uses) -> None:
        name = self.paths[module] or type(module).__name__
        why = Reason(f"the forward of '{name}', which could not be traced, uses it by itself", Kind.CAPTURED)
        self.found.methods |= uses.methods
        own = self._of_layer(self.paths[module])
        self.found.used.update({each: why for each in (*uses.called, *uses.read) if id(each) not in own})
        self._note_lists(uses, {*OWN, *TENSORS})
        self._note_exact(uses, {*OWN, *TENSORS})

    def _of_layer(self, path: str) -> set[int]:
        """What the layer has (by identity) of whose weight a module is the parametrization: a call of the layer is all
        that runs it.
        """
        layer, inside, _ = path.partition(".parametrizations.")
        whole = self.parts[0].root.get_submodule(layer) if inside else None
        if whole is None or not is_parametrized(whole):
            return set()
        return {id(each) for each in (*whole.modules(), *whole.parameters(), *whole.buffers())}

    def follow_traced(self) -> None:
        """What the code that was traced finds in lists of torch, and reads there: the graph has not the parameters, but
        the numbers they had. And layers that it asks for their class.
        """
        frames = {frame.module: None for part in self.parts for frame in part.frames}
        uses = self._followed(partial(_follow_all, [m for m in frames if not is_torchs(forward_of(m))]))
        # The code is followed on all its branches; these lists were asked for.
        made = set().union(OWN, *(part.code.lists for part in self.parts))
        for part, names in uses.read.items():
            if names & made:
                why = f"code of the model reads it in what {min(names & made)} lists"
                self.found.used.setdefault(part, Reason(why, Kind.SHARED))
        for module, names in uses.asked.items():
            if module not in frames and names & {"", *made} and isinstance(module, VANISHING):
                self.found.used.setdefault(module, READS_CLASS)
        self._note_lists(uses, made)
        self._note_exact(uses, made)

    def follow_untaken(self) -> None:
        """What code that runs uses, on ways that it does not go, of what nothing calls: a call of the whole is none."""
        apart = [part.frames[0].module for part in self.parts if not part.origin.times]
        if not apart:
            return
        running = {frame.module: None for part in self.parts if part.origin.times for frame in part.frames}
        uses = self._followed(partial(_follow_all, [m for m in running if not is_torchs(forward_of(m))]))
        for whole in apart:
            parts: list[nn.Module | Tensor] = [*whole.modules(), *whole.parameters(), *whole.buffers()]
            used = (each for each in parts if each in uses.read or whole in uses.read)
            called = (m for m in whole.modules() if m in uses.called and m is not whole)
            self.found.used.update(dict.fromkeys((*called, *used), UNTAKEN))

    def follow_hooks(self) -> None:
        """What hooks of a forward call, and the tensors that they know by a module, and may write into, as one that
        clips a weight.
        """
        for module, path in self.paths.items():
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
                uses = self._followed(partial(Following.run_any, callee=hook, args=[one(module)], kwargs={}))
                why = Reason(f"a hook of '{path or 'the model'}' uses it by itself", Kind.HOOKS)
                called = (inner for part in uses.called for inner in part.modules())
                read = (part for part in uses.read if isinstance(part, Tensor))
                self.found.used.update(dict.fromkeys((*called, *read), why))

    def _note_exact(self, uses: Uses, made: Collection[str]) -> None:
        """The modules that keep their class: code that is written again, and a hidden method, are of a class apart."""
        why = "code of the model asks for the very class of '{}', which a merge would change"
        asked = (module for module, names in uses.exact.items() if module in self.paths and names & {"", *made})
        self.found.exact.update(
            {module: Reason(why.format(self.paths[module] or "the model"), Kind.SHARED) for module in asked}
        )

    def _note_lists(self, uses: Uses, made: Collection[str]) -> None:
        """Of a list there has to be something left."""
        for module, names in uses.lists.items():
            asked = sorted(names.intersection(made))
            if BUFFERS.intersection(asked) and (first := next(module.buffers(), None)) is not None:
                why = f"code of the model asks for the first that {asked[0]} lists"
                self.found.used.setdefault(first, Reason(why, Kind.SHARED))
            elif asked and (path := self.paths[module]):
                why = f"code of the model asks '{path}' for what {asked[0]} lists"
                self.found.keeping[path] = Reason(why, Kind.SHARED)


def _follow_all(modules: Iterable[nn.Module], uses: Following) -> None:
    for module in modules:
        uses.follow(module)


def _run_by(module: nn.Module, own: Collection[nn.Module]) -> Iterator[nn.Module]:
    """The modules with code of the user's that a call of a module runs first: itself, or those inside a row."""
    if module in own:
        yield module
    elif is_torchs(forward_of(module)):
        for child in module.children():
            yield from _run_by(child, own)


def _running(parts: Sequence[Captured], calls: Mapping[str, int] | None) -> Iterator[nn.Module]:
    """The modules that a run called; without one, all that are where something could not be traced."""
    root = parts[0].root
    if calls is not None:
        yield from (root.get_submodule(path) for path in calls)
        return
    opaque = [part.module(n) for part in parts for n in part.graph.nodes if n.meta.get("opaque")]
    for module in opaque if any(part.frames[0].module is root for part in parts) else [root]:
        yield from module.modules()


def _share(found: Outside, part: Captured, other: Captured) -> None:
    """The modules that another part has as well: how often they run is not known."""
    where = Reason(f"it is also used in '{other.frames[0].path}', which was traced apart", Kind.SHARED)
    owners = {path.rpartition(".")[0] for path in part.code.attributes} - {""}
    mine = {*part.module_calls, *(id(attribute(part.root, path)) for path in owners)}
    found.used.update(
        {m: where for n in other.graph.nodes if n.op == "call_module" and id(m := other.module(n)) in mine}
    )
    found.whole.update({frame.module: where for frame in other.frames if id(frame.module) in mine})
