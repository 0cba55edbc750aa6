"""Paths of modules."""

from __future__ import annotations

from functools import lru_cache

from torch import nn


@lru_cache(maxsize=100_000)
def upwards(path: str) -> tuple[str, ...]:
    """A path and those of the modules around it."""
    return (path, *upwards(path.rpartition(".")[0])) if path else ()


def start_of(path: str) -> str:
    """What the paths of all modules inside the one at a path begin with."""
    return f"{path}." if path else ""


def module_at(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path inside of one, if there is one."""
    for name in path.split(".") if path else ():
        # Asked so, as the table of a scripted module has no `get`.
        if name not in module._modules or (found := module._modules[name]) is None:
            return None
        module = found
    return module
