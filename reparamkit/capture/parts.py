"""Capture what can be captured: the whole model, or the parts of it around modules that cannot be traced."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks_with_kwargs, register_module_forward_hook
from torch.utils._pytree import tree_flatten

from ..errors import CaptureError, InvalidInputError
from .buffers import other_buffers
from .capture import Captured, Inputs, capture, run
from .tracer import Opaque

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@dataclass
class Parts:
    """The captured parts of a model, the outermost first. opaque: path of each module that was left, and why."""

    captured: list[Captured] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)


def capture_parts(
    model: nn.Module, inputs: Inputs | None, is_leaf: Callable[[nn.Module], bool], whole: bool = False
) -> Parts:
    """Trace `model` (in place: it is a private copy); a module that cannot be traced stays a call, and the modules
    inside it are traced by themselves. So is a module that is called several times, unless the `whole` is wanted.

    Raises `CaptureError` if nothing can be traced.
    """
    parts, queue, first = Parts(), deque([("", inputs, "")]), None
    seen: set[str] = set()
    while queue:
        path, given, why = queue.popleft()
        if path in seen:
            continue
        seen.add(path)
        found = _Part(model, path, given, is_leaf, parts.opaque)
        try:
            captured = found.capture()
            split = [captured] if whole or inputs is None else _split(found, captured, inputs)
            split[0].why, split[0].guessed = why, given is None and path != ""
            parts.captured += split
        except CaptureError as error:
            first = first or error
        for name in found.opaque.keys() & parts.opaque.keys():
            reason = f"'{name or 'the model'}' around it cannot be traced"
            queue += [(inner, given, reason) for inner, given in _inside(model, name, found, inputs)]
    if not parts.captured:
        assert first is not None
        raise first
    return parts


@dataclass(eq=False)
class _Part:
    """One module to be traced by itself. opaque: what is inside it and cannot be traced."""

    model: nn.Module
    path: str
    inputs: Inputs | None
    is_leaf: Callable[[nn.Module], bool]
    reasons: dict[str, str]
    opaque: dict[str, Opaque] = field(default_factory=dict)

    def capture(self) -> Captured:
        """Trace, and as long as that fails, leave the module where it fails as a call."""
        while True:
            try:
                return capture(self.model, self.path, self.inputs, self.is_leaf, self.opaque)
            except CaptureError as error:
                where = self.path if error.path is None else error.path
                self.reasons[where] = str(error)
                if where in self.opaque:
                    raise
                self.opaque[where] = Opaque(self.model.get_submodule(where), self._outputs(where))
                if where == self.path:
                    raise

    def around(self, shared: Sequence[Captured]) -> Captured:
        """Trace once more, and only call what was captured by itself."""
        for each in shared:
            path = each.frames[0].path
            self.opaque[path] = Opaque(self.model.get_submodule(path), self._outputs(path))
        return self.capture()

    def _outputs(self, path: str) -> list[Any]:
        if self.inputs is None or path == self.path:
            return []
        entry, module = self.model.get_submodule(self.path), self.model.get_submodule(path)
        return [output for _, output in _recorded(entry, self.inputs, {path: module})[path]]


def _split(part: _Part, captured: Captured, inputs: Inputs) -> list[Captured]:
    """The graph of a part, and of the modules it calls several times."""
    shared = list(_shared(part.model, captured, inputs, part.is_leaf))
    try:
        return [part.around(shared), *shared] if shared else [captured]
    except CaptureError:
        return [captured]


def _shared(
    model: nn.Module, captured: Captured, inputs: Inputs, is_leaf: Callable[[nn.Module], bool]
) -> Iterator[Captured]:
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
    calls = _recorded(model, inputs, repeated) if repeated else {}
    for path, found in calls.items():
        given = [each for each, _ in found]
        if given and all(_alike(given[0], each) for each in given[1:]):
            with suppress(CaptureError):
                part = capture(model, path, given[0], is_leaf, {}, sized=False)
                part.times, part.why = len(found), f"it is called {len(found)} times in a run"
                yield part


def _alike(a: Inputs, b: Inputs) -> bool:
    """Whether two calls differ in tensors only."""
    plain = [tree_flatten((each.args, dict(each.kwargs))) for each in (a, b)]
    (ours, shape), (theirs, other) = plain
    pairs = zip(ours, theirs, strict=False)
    return shape == other and all(
        isinstance(x, Tensor) and isinstance(y, Tensor) if isinstance(x, Tensor) else _equal(x, y) for x, y in pairs
    )


def _equal(x: object, y: object) -> bool:
    return isinstance(x, (bool, int, float, str, type(None))) and type(x) is type(y) and x == y


def _inside(model: nn.Module, path: str, part: _Part, inputs: Inputs | None) -> Iterator[tuple[str, Inputs | None]]:
    """The modules inside one that cannot be traced, with the inputs of their one call."""
    children = dict(_children(model.get_submodule(path), path))
    children = {name: child for name, child in children.items() if not part.is_leaf(child)}
    if inputs is None or not children:
        yield from ((name, None) for name in children)
        return
    for name, calls in _recorded(model, inputs, children).items():
        if len(calls) == 1:
            yield name, calls[0][0]
        elif calls:
            part.reasons[name] = f"it is called {len(calls)} times inside a module that cannot be traced"


def _children(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, CONTAINERS):
            yield from _children(child, inner)
        else:
            yield inner, child


def _recorded(model: nn.Module, inputs: Inputs, wanted: dict[str, nn.Module]) -> dict[str, list[tuple[Inputs, Any]]]:
    """Per path the inputs and outputs of each call in one real run."""
    calls: dict[str, list[tuple[Inputs, Any]]] = {path: [] for path in wanted}
    paths = {id(module): path for path, module in wanted.items()}
    given: list[Inputs] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if id(module) in paths:
            given.append(Inputs(args, kwargs).copied())

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if id(module) in paths:
            calls[paths[id(module)]].append((given.pop(), output))

    before = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in wanted.values()]
    after = register_module_forward_hook(leave, with_kwargs=True)
    try:
        with other_buffers(model, Tensor.clone):
            run(model, inputs.copied())
    except Exception as error:
        raise InvalidInputError(
            f"a copy of the model fails on the example inputs ({type(error).__name__}: {error}), as code outside of it"
            " works on the original (a hook?): pass inplace=True"
        ) from error
    finally:
        for handle in (*before, after):
            handle.remove()
        # torch forgets to: what is left there makes torch.compile warn of hooks.
        _global_forward_hooks_with_kwargs.pop(after.id, None)
    return calls
