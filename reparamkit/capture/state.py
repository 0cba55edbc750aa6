"""What the modules of a model hold, to be put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TABLES = ("_parameters", "_buffers", "_modules")


class State:
    """Classes, attributes, parameters, buffers and children of all modules of a model, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._kept = [(m, type(m), dict(vars(m)), {t: dict(vars(m)[t]) for t in TABLES}) for m in modules]

    def now(self) -> list[Any]:
        """The attributes that the modules have at present."""
        return [value for module, *_ in self._kept for value in vars(module).values()]

    def drop_new(self, prefix: str) -> None:
        """Remove the attributes of such names that were added since."""
        for module, _, attributes, _ in self._kept:
            for name in [name for name in vars(module) if name.startswith(prefix) and name not in attributes]:
                del vars(module)[name]

    @property
    def stays(self) -> bool:
        """Whether the modules hold what they held."""
        return all(_same(vars(module), attributes) for module, _, attributes, _ in self._kept)

    def restore(self) -> set[int]:
        """Put everything back; returns the modules (by identity) that had been changed."""
        changed: set[int] = set()
        for module, kind, attributes, contents in self._kept:
            now = vars(module)
            same = all(_same(now[t], contents[t]) for t in TABLES)
            if same and type(module) is kind and _same(now, attributes):
                continue
            changed.add(id(module))
            module.__class__ = kind
            now.clear()
            now.update(attributes)
            for name, content in contents.items():
                now[name].clear()
                now[name].update(content)
        return changed


@contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Whatever ends this early, an interrupt too, leaves the model as it was."""
    before = State(model)
    try:
        yield
    except BaseException:
        before.restore()
        raise


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return now.keys() == before.keys() and all(now[name] is before[name] for name in now)
