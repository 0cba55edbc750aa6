"""Remove what is left over: layers that are merged, and parameters that nothing reads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import nn

from ..capture.paths import upwards
from .draft import Draft


def _container(module: nn.Module) -> nn.Sequential:
    made = nn.Sequential(OrderedDict(module._modules.items()))  # type: ignore[arg-type]
    made._parameters, made._buffers = module._parameters, module._buffers
    # What is inside keeps its own mode.
    made.training = module.training
    return made


def remove_unread(draft: Draft) -> None:
    """Parameters that only code read which is written again, and which reads them no more; and layers of which
    only the parameters were read.
    """
    used = {name for name, nodes in draft.captured.targets.items() if nodes[0].op == "get_attr"}
    written = {f.path for f in draft.captured.frames if id(f) in draft.inlined or id(f) in draft.frames}
    for path in draft.captured.code.attributes.keys() - used:
        owner, _, name = path.rpartition(".")
        if owner and not draft.places.has(owner):
            continue
        module = draft.captured.root.get_submodule(owner)
        if isinstance(module, nn.ParameterDict):
            if owner.rpartition(".")[0] in written and name in module:
                module.pop(name)
        elif owner in written:
            # Not deleted: a subclass of a torch layer shows them in its repr.
            table = module._parameters if name in module._parameters else module._buffers
            table[name] = None
        elif _was_read(draft, owner, module, written):
            draft.dead.add(owner)


def _was_read(draft: Draft, path: str, module: nn.Module, written: set[str]) -> bool:
    """Whether only code that is written again read the parameters of a layer, which nothing calls."""
    outside, read = draft.captured.outside, draft.captured.code.attributes
    readers = {f.path for name, frames in read.items() if name.rpartition(".")[0] == path for f in frames}
    parts = {module, *module.parameters(), *module.buffers()}
    called = id(module) in draft.captured.module_calls or any(True for _ in module.children())
    return readers <= written and not called and parts.isdisjoint({*outside.used, *outside.whole})


def remove_dead_modules(draft: Draft) -> None:
    """Merged layers, and modules whose work is done in their caller."""
    used, merged, called = _used(draft), frozenset(draft.paths.values()), draft.called()
    written, callers = draft.written, _callers(draft)
    draft.dead |= {path for path in draft.rows if callers.get(path, set()) <= written}
    for path in sorted(draft.dead, key=lambda p: -p.count(".")):
        if path not in draft.captured.targets and _is_old(draft, path, merged):
            _remove(draft, path, used)
    for frame in sorted(draft.captured.frames, key=lambda f: -f.path.count(".")):
        if id(frame) in draft.inlined and frame.path not in called and _is_old(draft, frame.path, merged):
            _hollow(draft, frame.path, used)


def _callers(draft: Draft) -> dict[str, set[int]]:
    """Per path of a module the calls (by identity) whose code calls it."""
    found = {path: set(map(id, frames)) for path, frames in draft.captured.code.callers.items()}
    for frame in draft.captured.frames:
        found.setdefault(frame.path, set()).add(id(frame.parent))
    return found


def _is_old(draft: Draft, path: str, merged: frozenset[str]) -> bool:
    """Whether a path still is that of the model's own module, and not of one inside a merged layer."""
    return merged.isdisjoint(upwards(path.rpartition(".")[0])) and draft.places.has(path)


def _used(draft: Draft) -> dict[str, set[str]]:
    """Per module the names of the children and tensors that the graph uses."""
    found: dict[str, set[str]] = {}
    for path in draft.captured.targets:
        owner, _, name = path.rpartition(".")
        found.setdefault(owner, set()).add(name)
    return found


def _remove(draft: Draft, path: str, used: Mapping[str, set[str]]) -> None:
    """A merged layer: gone, but for parameters that the code reads itself."""
    read = used.get(path, set())
    if not read:
        draft.places.put(path, None)
        return
    module = draft.captured.root.get_submodule(path)
    for name in {*module._parameters, *module._buffers} - read:
        delattr(module, name)
    draft.places.put(path, _container(module))


def _hollow(draft: Draft, path: str, used: Mapping[str, set[str]]) -> None:
    """A module whose work is done in its caller now: gone, or a container of what is still used."""
    module = draft.captured.root.get_submodule(path)
    if path in draft.captured.targets:
        return
    for name in {*module._parameters, *module._buffers} - used.get(path, set()):
        delattr(module, name)
    if not (module._modules or module._parameters or module._buffers):
        draft.places.put(path, None)
    elif not isinstance(module, nn.Sequential):
        draft.places.put(path, _container(module))
