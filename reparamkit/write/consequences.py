"""What changed modules mean for the rest of the model: methods that are gone, and what may not be set any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MethodType

from torch import fx, nn

from ..capture.paths import module_at
from ..errors import Unwritable
from ..tracing.frame import Method
from .classes import change, changes_of
from .draft import Draft
from .hidden import Hidden, asking_for_classes, hide_broken
from .originals import original_class
from .settings import is_users, settings_of


def _hide_all(hidden: Hidden) -> None:
    for module, names in hidden.items():
        known = changes_of(module)
        change(module, replace(known, hidden=tuple((dict(known.hidden) | names).items())))


def hide_methods(draft: Draft, before: Mapping[str, nn.Module]) -> None:
    """Hide the methods that cannot work any more."""
    written = {f.module for f in draft.frames.values() if id(f) not in draft.inlined}
    live = _running(draft, {(module, name) for module, name in draft.captured.methods if module not in written})
    hide_broken(draft.captured.root, before, draft.hidden, draft.opened(), live, original_class)
    _hide_kept(draft.captured.root, draft.hidden)
    _hide_all(draft.hidden)


def _hide_kept(root: nn.Module, hidden: Hidden) -> None:
    """Add the attributes that are a hidden method (``self.step = self.step_fast``). They go: a copy asks for the method
    by its name.
    """
    for module in root.modules():
        for name, value in [*vars(module).items()]:
            owner = value.__self__ if isinstance(value, MethodType) else None
            why = hidden.get(owner, {}).get(value.__name__) if isinstance(owner, nn.Module) else None
            if why is not None:
                hidden.setdefault(module, {})[name] = why
                del vars(module)[name]


def _running(draft: Draft, called: Iterable[Method]) -> set[Method]:
    """What goes on running: methods that forward calls, forwards but those that no call runs, and what code outside
    runs.
    """
    root, outside = draft.captured.root, draft.captured.outside
    forwards = {(module, "forward") for module in root.modules() if module not in outside.idle}
    return {*called, *outside.methods, *forwards}


def check_classes_kept(draft: Draft, classes: Mapping[nn.Module, type[nn.Module]]) -> None:
    """Raises `Unwritable` if modules have another class than before, and the code that runs asks for that."""
    exact = draft.captured.outside.exact
    named = draft.captured.root.named_modules()
    found = {path: exact[m] for path, m in named if m in exact and classes[m] is not type(m)}
    if found:
        raise Unwritable({path: found[path] for path in _apart(draft, found)})


def _apart(draft: Draft, paths: Iterable[str]) -> list[str]:
    """Those that share no merge with one before: without the merges of that, they may be what they were."""
    found, known = list[str](), set[int]()
    for path in paths:
        inside = {id(site) for site in draft.sites if any(_is_in(draft, path, node) for node in site.members)}
        found += [path] if inside.isdisjoint(known) else []
        known |= inside
    return found


def _is_in(draft: Draft, path: str, node: fx.Node) -> bool:
    return any(call.path == path for call in draft.captured.frame(node).stack)


def hide_asking(draft: Draft) -> None:
    """Hide the methods that would take a module for one of another class, which it has got by what was changed."""
    live = _running(draft, draft.captured.methods)
    while found := asking_for_classes(draft.captured.root, live, original_class):
        _hide_all(found)


def fix_settings(draft: Draft) -> None:
    """Let no attribute that merges rely on be set to something else, of a module or of what has its layers now."""
    for module, names in settings_of(draft.captured, draft.ran, draft.written, draft.sites).items():
        path = next(iter(draft.captured.paths.get(module, ())), "")
        here = module_at(draft.captured.root, path)
        if here is module or isinstance(here, nn.Sequential):
            known = changes_of(here)
            change(here, replace(known, settings=tuple(sorted({*known.settings, *names}))))


def fix_places(draft: Draft, before: Mapping[str, nn.Module]) -> None:
    """Let nothing be put where code called a layer that it calls no more. before: the modules, by their paths."""
    opened, written = draft.opened(), {f.path for f in draft.frames.values()}
    for path in before.keys() - {""}:
        parent, _, name = path.rpartition(".")
        here, is_gone = module_at(draft.captured.root, parent), not draft.places.has(path)
        is_bypassed = path in opened and path not in draft.captured.targets
        if parent in opened | written and (is_gone or is_bypassed) and here is before[parent] and is_users(here):
            known = changes_of(here)
            change(here, replace(known, merged=tuple(sorted({*known.merged, name}))))
