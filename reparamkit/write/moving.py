"""Where merged layers come to stand."""

from __future__ import annotations

import itertools

from torch import nn

from ..capture.paths import start_of, upwards
from ..engine.scope import outer
from ..tracing.frame import Frame
from .draft import Draft

LISTS = (nn.ModuleList, nn.ModuleDict)
"""Modules that are never called."""


def move_layers(draft: Draft) -> None:
    """Give every merged layer the place of the layer it stands for, as high as that place is free."""
    live = {outer for path in _live(draft) for outer in upwards(path)}
    taken: set[str] = set()
    below = _dead_by_owner(draft)
    for name, (path, frame) in draft.moves.items():
        target = _place(draft, path, frame, live, taken)
        live.update(upwards(target))
        taken.add(target)
        for gone in below.get(target, ()):
            # It may have other names elsewhere.
            if gone not in draft.captured.targets and draft.places.has(gone):
                draft.places.put(gone, None)
        draft.places.put(target, draft.captured.held.pop(name))
        draft.dead.discard(target)
        draft.retarget(name, target)


def _dead_by_owner(draft: Draft) -> dict[str, list[str]]:
    """Per path of a module those of the merged layers inside, which go with it."""
    found: dict[str, list[str]] = {}
    for dead in draft.dead:
        for owner in upwards(dead.rpartition(".")[0]):
            found.setdefault(owner, []).append(dead)
    return found


def _live(draft: Draft) -> set[str]:
    """Paths of modules, parameters and buffers that something still uses."""
    names = {name: module for name, module in draft.captured.root.named_modules() if name}
    swallowed = {f.path for f in draft.captured.frames if id(f) in draft.inlined} - draft.called()
    kept = {n for n in names if n not in swallowed and draft.dead.isdisjoint(upwards(n))}
    kept |= {n for n, module in names.items() if module in draft.places.counted}
    for name in sorted(kept, key=lambda n: -n.count(".")):
        if _is_spent(draft, names[name]) and kept.isdisjoint(f"{name}.{child}" for child in names[name]._modules):
            kept.remove(name)
    return kept | draft.captured.targets.keys()


def _is_spent(draft: Draft, module: nn.Module) -> bool:
    """Whether nothing needs a module if nothing needs its children: a list of modules that have no other name."""
    only = all(len(draft.places.by.get(inner, ())) == 1 for inner in module.modules())
    return type(module) in LISTS and bool(module._modules) and only and module not in draft.places.counted


def _place(draft: Draft, path: str, frame: Frame, live: set[str], taken: set[str]) -> str:
    """live: paths in use, and those of the modules around. taken: of merged layers; nothing hangs below one."""
    owner = outer(frame, draft.inlined).path
    prefix = start_of(owner)
    if not path.startswith(prefix) or not path:
        path = _fresh(draft, prefix, live)
    parts = path[len(prefix) :].split(".")
    for depth in range(1, len(parts) + 1):
        candidate = prefix + ".".join(parts[:depth])
        if candidate not in live:
            return candidate
        if candidate in taken:
            break
    return _fresh(draft, prefix, live)


def _fresh(draft: Draft, prefix: str, live: set[str]) -> str:
    names = (f"{prefix}merged{k}" for k in itertools.count())
    return next(name for name in names if name not in live and not draft.places.has(name))
