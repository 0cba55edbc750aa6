"""The places that modules have in a model: in its tree, under several names, and in lists of the user's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..capture.paths import module_at
from ..engine.held import OWN


class Places:
    """Puts modules into the tree of `root`.

    by: per module all owners and names that it has. gone: per module that lost its place what plain lists and
    dictionaries of the user's have in its stead. counted: modules whose length must stay.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.by: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        self.gone: dict[nn.Module, nn.Module] = {}
        self.counted: set[nn.Module] = set()
        for owner in root.modules():
            for name, module in owner._modules.items():
                if module is not None:
                    self.by.setdefault(module, []).append((owner, name))

    def has(self, path: str) -> bool:
        """Whether there is a module at a path."""
        return bool(path) and module_at(self.root, path) is not None

    def clear(self) -> None:
        """Hold none of the modules any more."""
        for held in (self.by, self.gone, self.counted):
            held.clear()

    def put(self, path: str, module: nn.Module | None, called: bool = False) -> None:
        """Let a module, or none, take the place of the one at a path. Under the other names that this may have it goes,
        or, if the user's code calls it, the module stands there too.
        """
        parent, _, name = path.rpartition(".")
        owner = self.root.get_submodule(parent)
        old = owner._modules.get(name)
        others = [] if old is None else [other for other in self.by.get(old, []) if other != (owner, name)]
        for other in others:
            self._fill(*other, module if called else None)
        self._fill(owner, name, module)
        if old is not None:
            self.gone[old] = module if called and module is not None else nn.Identity().eval()

    def _fill(self, owner: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is None and (isinstance(owner, nn.ModuleList) or owner in self.counted):
            module = nn.Identity().train(owner.training)
        if module is None:
            owner._modules.pop(name, None)
        elif name in owner._modules:
            owner._modules[name] = module
        else:
            owner.add_module(name, module)

    def replace_held(self) -> None:
        """Lists of layers that are no ModuleList, and other attributes that hold what is gone."""
        for owner in self.root.modules() if self.gone else ():
            for name, value in vars(owner).items() if not isinstance(owner, torch.jit.ScriptModule) else ():
                if name not in OWN and (made := _with_new(value, self.gone)) is not value:
                    vars(owner)[name] = made


def _with_new(value: Any, new: Mapping[nn.Module, nn.Module]) -> Any:
    """A value with other modules in the lists, tuples and dictionaries that it is made of; itself, if it has none."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if not isinstance(value, (list, tuple, dict)):
        return value
    keys = list(value) if isinstance(value, dict) else range(len(value))
    items = {key: made for key in keys if (made := _with_new(value[key], new)) is not value[key]}
    if not items:
        return value
    if isinstance(value, tuple):
        parts = [items.get(k, part) for k, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    made = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made
