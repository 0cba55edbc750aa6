"""Paths of modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

from torch import nn

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


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


def has_tensors(module: nn.Module) -> bool:
    """Whether a module has tensors, or one inside it."""
    return any(True for _ in itertools.chain(module.parameters(), module.buffers()))


def children_of(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules in the one at a path, by their paths; lists of modules do nothing themselves."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, CONTAINERS) and type(child).forward is nn.Module.forward:
            yield from children_of(child, inner)
        else:
            yield inner, child
