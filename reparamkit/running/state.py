"""What the modules of a model hold, at any depth, to be put back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from .iterators import iterators_left
from .trees import traced

TABLES = ("_parameters", "_buffers", "_modules")
LAYERS = ("_parameters", "_modules")
"""The tables that only a change of the model itself alters; a forward may well assign to a buffer."""
TORCHS = {name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))}
"""The attributes in which torch keeps tensors, children and hooks."""
CONSTANT = "_tensor_constant"
"""Begin of the names under which fx keeps constant tensors on the root while it traces."""
PLAIN = (bool, int, float, str, type(None))
CONTAINERS = (dict, list, set, OrderedDict, defaultdict, deque)
"""Types of attributes that code can change from inside."""
SHARED = frozenset({"torch", "builtins", "functools", "logging", "threading", "weakref"})
"""Packages whose objects are no state of a model's own."""
KNOWN = frozenset((*PLAIN, *CONTAINERS))
"""Plain values and containers: all that is neither an object nor a tensor."""


class State:
    """Classes, attributes, parameters, buffers and children of all modules of a model, as they are now; and what is in
    the containers and objects among the attributes, at any depth.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._held = {id(module): Held(module) for module in modules}

    def now(self) -> list[Any]:
        """The objects and tensors that the modules hold at present, parameters and layers aside."""
        layers = {id(vars(held.module)[name]) for held in self._held.values() for name in LAYERS}
        values = (value for each in self.containers() if id(each) not in layers for value in _values(each))
        return [value for value in values if type(value) not in KNOWN]

    def containers(self) -> Iterator[Any]:
        """The containers in the modules at present, each once; an object is that of its attributes."""
        seen = set[int]()
        for held in self._held.values():
            yield vars(held.module)
            for name, value in list(vars(held.module).items()):
                yield from [value] if name in TORCHS else _containers(value, seen)

    def drop_constants(self) -> None:
        """Remove the constants that torch.fx has added since."""
        for held in self._held.values():
            for name in [name for name in vars(held.module) if _is_new_constant(name, held)]:
                del vars(held.module)[name]

    def changed(self, module: nn.Module) -> set[str]:
        """The names of the attributes of a module that are, or have inside, something else; buffers and hooks aside."""
        held = self._held.get(id(module))
        return set() if held is None else {name for name in held.changed if not _is_new_constant(name, held)}

    @property
    def stays(self) -> bool:
        """Whether the modules hold what they held."""
        return all(held.stays for held in self._held.values())

    @property
    def has_its_layers(self) -> bool:
        """Whether the modules have the children and parameters that they had."""
        return all(same_items(*held.tables[name]) for held in self._held.values() for name in LAYERS)

    def restore(self) -> set[int]:
        """Put everything back; returns the modules (by identity) that had been changed."""
        changed = [held for held in self._held.values() if not held.stays]
        for held in changed:
            held.put_back()
        return {id(held.module) for held in changed}


class Held:
    """The class and the attributes of a module, as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.attributes = module, type(module), dict(vars(module))
        self.tables = {n: (v, v.copy()) for n, v in self.attributes.items() if n in TORCHS}
        own = ((n, v) for n, v in self.attributes.items() if n not in TORCHS and type(v) not in PLAIN)
        self.contents = {name: found for name, value in own if (found := Contents(value))}

    @property
    def changed(self) -> set[str]:
        """The attributes that are, or have inside, something else; of those of torch, children and parameters only."""
        now, before = vars(self.module), self.attributes
        others = {n for n in now.keys() | before.keys() if now.get(n, self) is not before.get(n, self)}
        layers = {name for name in LAYERS if not same_items(*self.tables[name])}
        return others | layers | {name for name, contents in self.contents.items() if not contents.stay}

    @property
    def stays(self) -> bool:
        """Whether the module is what it was."""
        known = type(self.module) is self.kind and _same(vars(self.module), self.attributes)
        tables = known and all(same_items(*pair) for pair in self.tables.values())
        return tables and all(contents.stay for contents in self.contents.values())

    def put_back(self) -> None:
        """Let the module be what it was."""
        self.module.__class__ = self.kind
        refill(vars(self.module), self.attributes)
        for table, before in self.tables.values():
            refill(table, before)
        for contents in self.contents.values():
            contents.put_back()


def _is_new_constant(name: str, held: Held) -> bool:
    return name.startswith(CONSTANT) and name not in held.attributes


class Contents:
    """What is in the containers and objects of a structure, at any depth, as it is now."""

    def __init__(self, structure: Any) -> None:
        found = _containers(structure, set())
        self._kept = [(each, dict(each) if isinstance(each, dict) else list(each)) for each in found]

    def __bool__(self) -> bool:
        return bool(self._kept)

    @property
    def stay(self) -> bool:
        """Whether nothing was put into them or taken out."""
        return all(same_items(now, before) for now, before in self._kept)

    def put_back(self) -> None:
        """Let them have what they had."""
        for now, before in self._kept:
            if not same_items(now, before):
                refill(now, before)


def _containers(structure: Any, seen: set[int]) -> Iterator[Any]:
    """The containers in a structure, each once; an object is that of its attributes."""
    if type(structure) in PLAIN or id(structure) in seen:
        return
    seen.add(id(structure))
    inside = vars(structure) if _has_attributes(structure) else structure
    if isinstance(inside, CONTAINERS):
        yield inside
    if isinstance(inside, (*CONTAINERS, tuple)):
        for each in [value for value in _values(inside) if type(value) not in PLAIN]:
            yield from _containers(each, seen)


def traced_in(structure: Any) -> set[fx.Node]:
    """The nodes of the traced values in a structure and its objects, at any depth."""
    inside = [value for each in _containers(structure, set()) for value in _values(each)]
    return traced([structure, *inside])


def held_in(value: object) -> set[fx.Node]:
    """The nodes of the traced values that an object has, as a cache; none if it is no object that code made."""
    return traced_in(value) if _has_attributes(value) else set()


def _values(container: Any) -> Collection[Any]:
    return container.values() if isinstance(container, dict) else container


def _has_attributes(value: object) -> bool:
    """Whether a value is an object that code may keep something in, and no module, tensor or traced value."""
    if issubclass(type(value), (nn.Module, Tensor, fx.Proxy, *CONTAINERS, tuple)) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in SHARED


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
def kept(*models: nn.Module) -> Iterator[list[State]]:
    """At the end models have what they had, whatever their forward changed; yields that. (Layers that it made stay:
    others would have other weights.)
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(iterators_left(model))
        before = [State(model) for model in models]
        try:
            yield before
        finally:
            for state in before:
                if state.has_its_layers:
                    state.restore()


def same_items(now: Any, before: Any) -> bool:
    """Whether a container has the same things."""
    if not (now or before):
        return True
    if isinstance(before, dict):
        return _same(now, before)
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def refill(container: Any, content: Any) -> None:
    """Put back what a container had."""
    container.clear()
    (container.update if isinstance(container, (dict, set)) else container.extend)(content)


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return [*now] == [*before] and all(now[name] is before[name] for name in now)
