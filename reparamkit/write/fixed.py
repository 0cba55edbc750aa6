"""Attributes of a fused model that have to stay what they are."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from ..errors import GuardError

ABSENT = object()
"""Of an attribute that is not there."""


def assignment(
    base: type[nn.Module], names: Collection[str], merged: Collection[str]
) -> Callable[[nn.Module, str, Any], None]:
    """A ``__setattr__`` for a subclass of `base` that takes no other value for these attributes, and no layer in the
    place of one that was merged.
    """

    def assign(self: nn.Module, name: str, value: Any) -> None:
        if name in merged and value is not self._modules.get(name, ABSENT):
            _refuse(self, name)
        if name in names:
            _check(self, name, value)
        base.__setattr__(self, name, value)

    return assign


def _refuse(module: nn.Module, name: str) -> None:
    raise GuardError(
        f"'{name}' of {type(module).__name__} was merged when this model was fused, and what was put in its place would"
        " not be called: put it there before reparamkit.fuse, or keep the layer apart with skip=[...]"
    )


def _check(module: nn.Module, name: str, value: Any) -> None:
    now = getattr(module, name, ABSENT)
    if not _same(now, value):
        was = "not there" if now is ABSENT else _shown(now)
        raise GuardError(
            f"'{name}' of {type(module).__name__} was {was} when this model was fused, and merges rely on it: to have"
            f" {_shown(value)}, set it before reparamkit.fuse, or keep the layers around it apart with skip=[...]"
        )


def _same(now: Any, value: Any) -> bool:
    if isinstance(now, nn.Module):
        # It does nothing, and another of its kind does nothing either.
        return type(value) is type(now)
    try:
        return now is value or bool(now == value)
    except Exception:
        # Of tensors, say.
        return False


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, nn.Module) else reprlib.repr(value)
