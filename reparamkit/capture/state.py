"""What the modules of a model hold, to be put back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from .given import CLOSED, LEVELS

TABLES = ("_parameters", "_buffers", "_modules")
LAYERS = ("_parameters", "_modules")
"""The tables that torch puts nothing else into."""
PLAIN = (bool, int, float, str, type(None))
CONTAINERS = (dict, list, set, OrderedDict, defaultdict, deque)
"""What an attribute may be, and code may put something into."""


class State:
    """Classes, attributes, parameters, buffers and children of all modules of a model, as they are now; and what is in
    the containers among the attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._kept = [(m, type(m), dict(vars(m)), _contents(m)) for m in modules]

    def now(self) -> list[Any]:
        """The attributes of the modules at present that may hold what is neither plain nor a layer."""
        values = (value for module, *_ in self._kept for name, value in vars(module).items() if name not in LAYERS)
        return [value for value in values if type(value) not in PLAIN and (type(value) not in CONTAINERS or value)]

    def drop_new(self, prefix: str) -> None:
        """Remove the attributes of such names that were added since."""
        for module, _, attributes, _ in self._kept:
            for name in [name for name in vars(module) if name.startswith(prefix) and name not in attributes]:
                del vars(module)[name]

    @property
    def stays(self) -> bool:
        """Whether the modules hold what they held."""
        return all(
            _same(vars(module), attributes) and _equal(vars(module), contents)
            for module, _, attributes, contents in self._kept
        )

    @property
    def has_its_layers(self) -> bool:
        """Whether the modules have the children and parameters that they had."""
        return all(_same(vars(module)[t], contents[t]) for module, *_, contents in self._kept for t in LAYERS)

    def restore(self) -> set[int]:
        """Put everything back; returns the modules (by identity) that had been changed."""
        changed: set[int] = set()
        for module, kind, attributes, contents in self._kept:
            now = vars(module)
            if type(module) is kind and _same(now, attributes) and _equal(now, contents):
                continue
            changed.add(id(module))
            module.__class__ = kind
            now.clear()
            now.update(attributes)
            for name, content in contents.items():
                refill(now[name], content)
        return changed


class Contents:
    """What is in the containers and objects of a structure, as it is now."""

    def __init__(self, structure: Any) -> None:
        found = _containers(structure)
        self._kept = [(each, dict(each) if isinstance(each, dict) else list(each)) for each in found]

    @property
    def stay(self) -> bool:
        """Whether nothing was put into them or taken out."""
        return all(same_items(now, before) for now, before in self._kept)


def _containers(structure: Any, levels: int = LEVELS) -> Iterator[Any]:
    """levels: how deep to look."""
    if issubclass(type(structure), fx.Proxy):
        return
    if isinstance(structure, CONTAINERS):
        yield structure
    if isinstance(structure, (*CONTAINERS, tuple)):
        inside: Any = structure.values() if isinstance(structure, dict) else structure
    elif isinstance(structure, (Tensor, *CLOSED)):
        inside = ()
    else:
        yield (own := getattr(structure, "__dict__", {}))
        inside = own.values()
    for each in list(inside) if levels else ():
        yield from _containers(each, levels - 1)


@contextmanager
def intact(model: nn.Module) -> Iterator[None]:
    """Whatever ends this early, an interrupt too, leaves the model as it was."""
    before = State(model)
    try:
        yield
    except BaseException:
        before.restore()
        raise


@contextmanager
def kept(*models: nn.Module) -> Iterator[None]:
    """At the end models have what they had, whatever their forward changed. (Layers that it made stay: others would
    have other weights.)
    """
    before = [State(model) for model in models]
    try:
        yield
    finally:
        for state in before:
            if state.has_its_layers:
                state.restore()


def _contents(module: nn.Module) -> dict[str, Any]:
    """A copy of each table, and of each container among the attributes."""
    held = vars(module)
    return {n: value.copy() for n, value in held.items() if n in TABLES or type(value) in CONTAINERS}


def _equal(now: Mapping[str, Any], contents: Mapping[str, Any]) -> bool:
    """Whether containers have what they had."""
    return all(same_items(now[name], content) for name, content in contents.items())


def same_items(now: Any, before: Any) -> bool:
    """Whether a container has the same things."""
    if isinstance(before, dict):
        return _same(now, before)
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def refill(container: Any, content: Any) -> None:
    """Put back what a container had."""
    container.clear()
    (container.update if isinstance(container, (dict, set)) else container.extend)(content)


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return now.keys() == before.keys() and all(now[name] is before[name] for name in now)
