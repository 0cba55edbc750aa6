"""Capture what can be captured: the whole model, or the parts of it around modules that cannot be traced."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import nn

from ..errors import CaptureError
from ..reasons import Kind, Reason
from ..running.changing import Changing
from ..tracing.again import Manner
from ..tracing.opaque import GoingOn, Opaque
from .arguments import Inputs
from .capture import capture, know_sizes, why_not
from .captured import Captured
from .folding import fold_calls
from .paths import children_of, has_tensors, upwards
from .recorded import Calls, alike, called_once, outputs, recorded
from .uncalled import called, uncalled

FEW = 2
"""So many modules that cannot be traced are found one by one, each by a trace of its own."""
Asked = Callable[[nn.Module], bool]
NO_CALLS: Mapping[str, int] = MappingProxyType({})
UNCALLED = "nothing calls it"
UNTRACED = Reason("inside a module that cannot be traced", Kind.CAPTURED)


@dataclass
class Parts:
    """The captured parts of a model, the outermost first. opaque: path of each module that was left, and why."""

    captured: list[Captured] = field(default_factory=list)
    opaque: dict[str, Reason] = field(default_factory=dict)


def capture_parts(
    model: nn.Module,
    inputs: Inputs | None,
    is_leaf: Asked,
    has_hooks: Asked,
    whole: bool = False,
    calls: Mapping[str, int] = NO_CALLS,
) -> Parts:
    """Trace `model` (in place: it is a private copy); a module that cannot be traced stays a call, and the modules
    inside it are traced by themselves. So is a module that has hooks, which only a call of it runs, one that is called
    several times, and one that nothing calls, unless the `whole` is wanted. calls: how often a run with the inputs
    called each module, by path.

    Raises `CaptureError` if nothing that is called can be traced.
    """
    return _Search(model, inputs, is_leaf, has_hooks, whole, calls).run()


@dataclass(eq=False)
class _Search:
    """What `capture_parts` is asked for, and what it has found. waiting: modules to trace by themselves, with their
    inputs, and why. seen: the paths of those. first: why the first could not be traced.
    """

    model: nn.Module
    inputs: Inputs | None
    is_leaf: Asked
    has_hooks: Asked
    whole: bool
    calls: Mapping[str, int]
    parts: Parts = field(default_factory=Parts)
    waiting: deque[tuple[str, Inputs | None, str]] = field(default_factory=deque)
    seen: set[str] = field(default_factory=set)
    first: CaptureError | None = None

    def run(self) -> Parts:
        """Trace the model, then what had to be left inside, and then what nothing calls."""
        changing, parts = Changing(self.model), self.parts
        self.waiting.append(("", self.inputs, ""))
        self._take_waiting(changing)
        if parts.captured and not self.whole:
            self._take_uncalled(changing)
        for each in parts.captured:
            parts.opaque.pop(each.frames[0].path, None)
        parts.captured = _outermost(parts.captured)
        if not parts.captured:
            assert self.first is not None
            raise self.first
        changing.forget()
        return parts

    def _take_waiting(self, changing: Changing) -> None:
        while self.waiting:
            path, given, why = self.waiting.popleft()
            if path not in self.seen:
                self.seen.add(path)
                self._take(_Part(self.model, path, given, self.is_leaf, self.parts.opaque, changing), why)

    def _take_uncalled(self, changing: Changing) -> None:
        """Trace what nothing calls without an example, as nobody knows one."""
        parts, known, told = self.parts, len(self.parts.captured), {*self.parts.opaque}
        reached = called(self.model, parts.captured, parts.opaque, self.calls)
        self.waiting += [(path, None, UNCALLED) for path in uncalled(self.model, reached, self.is_leaf)]
        self._take_waiting(changing)
        for each in parts.captured[known:]:
            each.origin.times = 0
        for path in parts.opaque.keys() - told:
            parts.opaque[path] = parts.opaque[path].within(f"{UNCALLED}, and without an example ")

    def _take(self, part: _Part, why: str) -> None:
        """Trace one module; what is left inside waits."""
        inputs = None if part.inputs is None else self.inputs
        if not self.whole:
            self.waiting += [(name, given, "it has hooks") for name, given in part.leave_hooked(self.has_hooks)]
        try:
            captured = part.capture()
            split = [captured] if self.whole or inputs is None else _split(part, captured, inputs)
            split[0].origin.why, split[0].origin.guessed = why, part.inputs is None and part.path != ""
            self.parts.captured += split
        except CaptureError as error:
            self.first = self.first or error
        failed = [name for name in part.opaque if name in self.parts.opaque]
        alone = dict(part.alone(failed))
        self.waiting += [(name, given, "it cannot be traced with what is around it") for name, given in alone.items()]
        # What fails inside of a module that cannot be traced at all may be taken by itself.
        left = [part.path] if part.path in failed else failed
        shared: dict[str, Captured] = {}
        self.waiting += _inside(self.model, [name for name in left if name not in alone], part, inputs, shared)
        self.parts.captured += [each for path, each in shared.items() if path not in self.seen]
        self.seen |= shared.keys()


def _outermost(parts: Sequence[Captured]) -> list[Captured]:
    """The parts whose code was not traced in that of another too, which was tried later: first, something around both
    was, where it failed.
    """
    inside = {(frame.path, id(part)) for part in parts for frame in part.frames[1:]}
    traced = Counter(path for path, _ in inside)
    own = [(part.frames[0].path, part) for part in parts]
    return [part for path, part in own if traced[path] == ((path, id(part)) in inside)]


@dataclass(eq=False)
class _Part:
    """One module to be traced by itself. opaque: what is inside it and cannot be traced. manner: how to trace what is
    around that.
    """

    model: nn.Module
    path: str
    inputs: Inputs | None
    is_leaf: Asked
    reasons: dict[str, Reason]
    changing: Changing
    opaque: dict[str, Opaque] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)

    def leave_hooked(self, has_hooks: Asked) -> Iterator[tuple[str, Inputs | None]]:
        """Leave the outermost modules inside that have hooks as calls; yields them, with the inputs of their call."""
        hooked = dict(self._hooked(has_hooks, self.module, self.path))
        calls = self._calls(hooked)
        self.opaque |= {path: Opaque(module, outputs(calls[path])) for path, module in hooked.items()}
        yield from called_once(
            hooked, calls if self.inputs is not None else None, Reason("and has hooks", Kind.HOOKS), self.reasons
        )

    def _hooked(self, has_hooks: Asked, module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if self.is_leaf(child):
                continue
            if has_hooks(child):
                yield inner, child
            else:
                yield from self._hooked(has_hooks, child, inner)

    def _calls(self, wanted: dict[str, nn.Module], also_inputs: bool = True) -> Calls:
        """The calls of modules inside, if there are inputs."""
        if self.inputs is None or not wanted:
            return {path: [] for path in wanted}
        return recorded(self.module, self.inputs, wanted, self.changing, also_inputs)

    def capture(self) -> Captured:
        """Trace, and as long as that fails, leave the module where it fails as a call."""
        failures = 0
        while True:
            try:
                return fold_calls(self._traced())
            except CaptureError as error:
                where = self.path if error.path is None else error.path
                self.reasons[where] = Reason(str(error), Kind.CAPTURED)
                if where in self.opaque:
                    raise
                self._leave(where)
                if where == self.path:
                    raise
            failures += 1
            if failures == FEW:
                self._leave_all()

    def _traced(self, going_on: GoingOn | None = None) -> Captured:
        """One trace, with what is left as it is called."""
        if any(not self.opaque.keys().isdisjoint(upwards(where)) for where in self.manner.where):
            # The code that asked for it is not traced any more.
            self.manner = Manner()
        return capture(
            *(self.model, self.path, self.inputs, self.is_leaf, self.opaque, self.changing),
            going_on=going_on,
            manner=self.manner,
        )

    def around(self, shared: Sequence[Captured]) -> Captured:
        """Trace once more, and only call what was captured by itself."""
        self._leave(*(each.frames[0].path for each in shared))
        return self.capture()

    def _leave(self, *paths: str) -> None:
        modules = {path: self.model.get_submodule(path) for path in paths}
        inside = {path: module for path, module in modules.items() if path != self.path}
        calls = self._calls(inside, also_inputs=False)
        self.opaque |= {path: Opaque(module, outputs(calls.get(path, []))) for path, module in modules.items()}

    def _leave_all(self) -> None:
        """Leave all modules as calls where one trace fails that then goes on."""
        inside = {name: module for name, module in self.module.named_modules() if name and not self.is_leaf(module)}
        calls = self._calls(inside, also_inputs=False)
        going_on = GoingOn({id(inside[name]): outputs(found) for name, found in calls.items()})
        with suppress(CaptureError):
            self._traced(going_on)
        for path, error in going_on.failed.items():
            module = self.model.get_submodule(path)
            self.reasons[path] = Reason(why_not(path, self.inputs, error, self.opaque), Kind.CAPTURED)
            self.opaque[path] = Opaque(module, going_on.outputs.get(id(module), ()))

    def alone(self, failed: Sequence[str]) -> Iterator[tuple[str, Inputs | None]]:
        """Of the modules where a trace failed those that one by itself may take, with their inputs if called once: what
        a hook hands on is missing in a trace around both, and what a wrapper does if there is no example.
        """
        inside = [name for name in failed if name != self.path]
        if self.inputs is None:
            yield from ((name, None) for name in inside)
        elif inside and any(each.module._forward_hooks for each in self.opaque.values()):
            calls = self._calls({name: self.model.get_submodule(name) for name in inside})
            yield from ((name, found[0][0]) for name, found in calls.items() if len(found) == 1)

    @property
    def module(self) -> nn.Module:
        """The module that is traced."""
        return self.model.get_submodule(self.path)


def _split(part: _Part, captured: Captured, inputs: Inputs) -> list[Captured]:
    """The graph of a part, and of the modules it calls several times."""
    shared = list(_shared(part, captured, inputs))
    try:
        return [part.around(shared), *shared] if shared else [captured]
    except CaptureError:
        return [captured]


def _shared(around: _Part, captured: Captured, inputs: Inputs) -> Iterator[Captured]:
    """The modules that are called several times and always alike, the outermost ones, each captured for all its calls:
    with free sizes.
    """
    counts = Counter(frame.module for frame in captured.frames)
    repeated = {
        frame.path: frame.module
        for frame in captured.frames
        if counts[frame.module] > 1
        and any(True for _ in frame.module.parameters())
        and all(counts[outer.module] == 1 for outer in frame.stack[:-1])
    }
    calls = recorded(around.model, inputs, repeated, around.changing) if repeated else {}
    for path, found in calls.items():
        yield from _for_all_calls(around, path, [each for each, _ in found])


def _for_all_calls(around: _Part, path: str, given: Sequence[Inputs]) -> Iterator[Captured]:
    """The module at a path captured for all its calls, if they are alike and it can be traced."""
    if given and all(alike(given[0], each) for each in given[1:]):
        with suppress(CaptureError):
            part = capture(around.model, path, given[0], around.is_leaf, {}, around.changing, sized=False)
            part = fold_calls(part)
            part.origin.times, part.origin.why = len(given), f"it is called {len(given)} times in a run"
            know_sizes(part, around.model.get_submodule(path), given)
            yield part


def _inside(
    model: nn.Module, failed: Iterable[str], part: _Part, inputs: Inputs | None, shared: dict[str, Captured]
) -> Iterator[tuple[str, Inputs | None, str]]:
    """The modules inside those that cannot be traced, with the inputs of their one call, and what is around them. Those
    without tensors have nothing to merge. shared: receives those that are called several times, where that can be.
    """
    around = {name: path for path in failed for name, _ in children_of(model.get_submodule(path), path)}
    while around:
        children = {name: model.get_submodule(name) for name in around}
        children = {name: child for name, child in children.items() if not part.is_leaf(child) and has_tensors(child)}
        calls = recorded(model, inputs, children, part.changing) if inputs is not None and children else None
        for name, given in called_once(children, calls, UNTRACED, part.reasons):
            yield name, given, f"'{around[name] or 'the model'}' around it cannot be traced"
        for name, found in (calls or {}).items():
            if len(found) > 1 and (whole := [*_for_all_calls(part, name, [each for each, _ in found])]):
                shared[name] = whole[0]
                del part.reasons[name]
        # Of a module that is not called, code may call what is inside.
        passed = [name for name in children if calls is not None and not calls[name]]
        around = {name: around[path] for path in passed for name, _ in children_of(children[path], path)}
