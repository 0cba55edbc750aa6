"""The class of a changed module: a subclass of the user's own, of the same name.

It carries what was written as source, and rebuilds itself when it is copied or unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from .fixed import assignment
from .generated import Method
from .originals import original_class


class Absent:
    """Stands for a method that cannot work any more."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            # Who looks at the forward of a class does not call it.
            return self
        raise AttributeError(self.reason)


@dataclass(frozen=True)
class Changes:
    """How the class of a module differs from the one the user wrote.

    forward: the written one, None for the user's own. hidden: methods that are not there any more, and why.
    settings: attributes that have to stay what they are. merged: children that no code calls any more.
    """

    forward: Method | None = None
    hidden: tuple[tuple[str, str], ...] = ()
    settings: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()

    def applied(self, base: type[nn.Module]) -> type[nn.Module]:
        """A subclass of `base`, of its name."""
        body: dict[str, Any] = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": lambda module, protocol: (_rebuilt, (base, self), module.__getstate__()),
            "merged_changes": self,
            "extra_repr": _settings,
        }
        if self.forward is not None:
            body["forward"] = self.forward.function()
        if self.hidden:
            # An error of a descriptor is lost, since nn.Module looks among its children next.
            body |= {name: Absent(reason) for name, reason in self.hidden}
            body["__getattr__"] = _looked_up(base, dict(self.hidden))
        if self.settings or self.merged:
            body["__setattr__"] = assignment(base, frozenset(self.settings), frozenset(self.merged))
            body["__setstate__"] = _restored(base)
        return type(base.__name__, (base,), body)


def _settings(self: nn.Module) -> str:
    """What the class says of its modules, if all that it names is still there."""
    with suppress(AttributeError, TypeError):
        return original_class(self).extra_repr(self)
    return ""


def _looked_up(base: type[nn.Module], hidden: Mapping[str, str]) -> Callable[[nn.Module, str], Any]:
    def look_up(self: nn.Module, name: str) -> Any:
        if name in hidden:
            raise AttributeError(hidden[name])
        return base.__getattr__(self, name)

    return look_up


def _restored(base: type[nn.Module]) -> Callable[[nn.Module, Any], None]:
    """A ``__setstate__`` that may set everything, since there is nothing yet: that of a view of einops runs its
    ``__init__``.
    """

    def restore(self: nn.Module, state: Any) -> None:
        changed = type(self)
        object.__setattr__(self, "__class__", base)
        try:
            base.__setstate__(self, state)  # type: ignore[no-untyped-call]
        finally:
            object.__setattr__(self, "__class__", changed)

    return restore


def _rebuilt(base: type[nn.Module], changes: Changes) -> nn.Module:
    cls = changes.applied(base)
    return cls.__new__(cls)


def changes_of(module: nn.Module) -> Changes:
    """How its class was changed so far."""
    found = vars(type(module)).get("merged_changes", Changes())
    assert isinstance(found, Changes)
    return found


def change(module: nn.Module, changes: Changes) -> None:
    """Change the class of a module, from the one the user wrote."""
    module.__class__ = changes.applied(original_class(module))
