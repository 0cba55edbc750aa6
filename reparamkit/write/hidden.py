"""Methods that used layers which were merged: hidden, so that ``hasattr`` is False and the error says why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from ..capture.paths import module_at, start_of, upwards
from ..sourcecode.methods import classes_in_methods, read_by_methods
from ..sourcecode.parse import names_of
from ..tracing.frame import Method

Hidden = dict[nn.Module, dict[str, str]]
"""Per module the names of its hidden methods, and why."""
ClassOf = Callable[[nn.Module], type[nn.Module]]
"""The class as the user wrote it."""


def hide_broken(
    root: nn.Module,
    before: Mapping[str, nn.Module],
    hidden: Hidden,
    opened: set[str],
    live: set[Method],
    class_of: ClassOf,
) -> None:
    """Add to `hidden` the methods that read what is no longer there, or call a hidden method.

    before: the modules as they were, by each of their paths. opened: paths of modules whose code went into that of one
    around: their own forward computes nothing that it did. live: methods that go on running.
    """
    now = dict(root.named_modules(remove_duplicate=False))
    gone = _relative(path for path, module in before.items() if _replaced(module, now.get(path)))
    inside = _relative(opened)
    # A method may call one of a module inside.
    for path in sorted(now, key=lambda p: -p.count(".")):
        module = now[path]
        if path in gone or path in inside or any(child in hidden for child in module.modules()):
            _hide(module, gone.get(path, set()), inside.get(path, set()), hidden, live, class_of)


def _hide(
    module: nn.Module, gone: set[str], opened: set[str], hidden: Hidden, live: set[Method], class_of: ClassOf
) -> None:
    reads = read_by_methods(class_of(module))
    while True:
        mine = hidden.get(module, {})
        found = {
            name: reason
            for name, paths in reads.items()
            if name not in mine and (module, name) not in live and not name.startswith("__")
            for reason in (*_calls(paths, opened), *_reasons(module, paths, gone, hidden))
        }
        if not found:
            return
        hidden.setdefault(module, {}).update({name: because(module, name, why) for name, why in found.items()})


def because(module: nn.Module, name: str, what: str) -> str:
    """What the error says. what: the method would use."""
    kind = type(module).__name__
    return f"{kind}.{name} uses {what}: call it before reparamkit.fuse, or keep the layers apart with skip=[...]"


def asking_for_classes(root: nn.Module, live: set[Method], class_of: ClassOf) -> Hidden:
    """The methods, not hidden yet, that ask for the very class of a module that has got another one."""
    found: Hidden = {}
    for module in root.modules():
        for name, paths in classes_in_methods(class_of(module)).items():
            changed = next((path for path in sorted(paths) if _is_changed(module, path, name, class_of)), None)
            if changed and (module, name) not in live and not name.startswith("__") and hasattr(module, name):
                what = f"the class of '{changed}', which is another one now"
                found.setdefault(module, {})[name] = because(module, name, what)
    return found


def _is_changed(module: nn.Module, path: str, name: str, class_of: ClassOf) -> bool:
    """Whether a module has another class, or one of a list has of those that a method names."""
    here = module_at(module, path)
    if not isinstance(here, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
        return here is not None and class_of(here) is not type(here)
    method = getattr(class_of(module), name, None)
    named = {*names_of(method.__code__)} if inspect.isfunction(method) else set[str]()
    return any(class_of(each) is not type(each) and class_of(each).__name__ in named for each in here.children())


def _reasons(module: nn.Module, paths: frozenset[str], gone: set[str], hidden: Hidden) -> Iterator[str]:
    for path in sorted(paths):
        owner, _, name = path.removesuffix("()").rpartition(".")
        inside = [inner for inner in gone if name == "**" and f"{inner}.".startswith(start_of(owner))]
        if inside or (any(outer in gone for outer in upwards(owner)) and not _is_there(module, owner, name)):
            yield f"'{min(inside, default=owner)}', which was merged"
        elif path.endswith("()") and path[:-2] in gone and module_at(module, path[:-2]) is None:
            yield f"'{path[:-2]}', which was merged"
        elif (at := module_at(module, owner)) is not None and name in hidden.get(at, {}):
            yield f"'{path.removesuffix('()')}', which uses what was merged"


def _calls(paths: frozenset[str], opened: set[str]) -> Iterator[str]:
    """What a method calls, or all in a row that it goes through, whose code is elsewhere."""
    for path in sorted(opened):
        if f"{path}()" in paths or f"{path.rpartition('.')[0]}.__iter__" in paths:
            yield f"'{path}', whose code was merged with what is around it"


def _is_there(module: nn.Module, owner: str, name: str) -> bool:
    """Whether what takes the place of a layer has what the method reads of it; "*" is anything."""
    found: object = module
    for part in owner.split("."):
        found = getattr(found, part, None)
    return found is not None and (name.startswith("*") or hasattr(found, name))


def _relative(paths: Iterable[str]) -> dict[str, set[str]]:
    """Per module around them, these paths as seen from there."""
    found: dict[str, set[str]] = {}
    for path in paths:
        parts = path.split(".")
        for k in range(len(parts)):
            found.setdefault(".".join(parts[:k]), set()).add(".".join(parts[k:]))
    return found


def _replaced(before: nn.Module, now: nn.Module | None) -> bool:
    """Whether a place has no layer of its kind any more."""
    return now is None or not (isinstance(now, type(before)) or isinstance(before, type(now)))
