"""What an expression of a model's code may stand for: modules, tensors, containers of them, methods."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Function = ast.FunctionDef | ast.Lambda
Part = nn.Module | Tensor
HELD = (nn.Module, Tensor)
Word = TypeVar("Word")
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""What holds nothing of a model."""

TENSORS = frozenset({"parameters", "named_parameters", "buffers", "named_buffers", "state_dict"})
OWN = frozenset({"_parameters", "_buffers"})


@dataclass(frozen=True, eq=False)
class Group:
    """A container that the code makes, or a list of torch's."""

    items: Value = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Bound:
    """A method, and what it is bound to."""

    function: object
    owner: object


@dataclass(frozen=True, eq=False)
class Super:
    """``super()`` in a method of the class `cls`."""

    cls: type
    owner: object


@dataclass(frozen=True)
class Names:
    """A list of names that an argument is. No other value is one."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Something that an expression may be. listed: the method of torch in whose list it was found."""

    thing: object
    listed: str = ""


@dataclass(frozen=True, eq=False)
class Inner:
    """A function inside another. result: what it may return. around: the code of each call of the other, which has the
    variables of both.
    """

    tree: Function
    result: Value = field(default_factory=dict)
    around: list[Any] = field(default_factory=list)

    @property
    def takes_nothing(self) -> bool:
        """Whether it has no parameters."""
        spec = self.tree.args
        return not (spec.posonlyargs or spec.args or spec.vararg or spec.kwonlyargs or spec.kwarg)


Value = dict[tuple[int, str], Item]
"""All that an expression may be, by identity, as not everything can be hashed."""


def one(thing: object, listed: str = "") -> Value:
    """A value that is one thing; nothing, if it holds nothing of a model."""
    return {} if _is_closed(thing) or isinstance(thing, PLAIN) else {(id(thing), listed): Item(thing, listed)}


def text(word: str) -> Value:
    """The name that ``__getattr__`` is given. No other value is a text."""
    return {(hash(word), ""): Item(word)}


def text_in(value: Value) -> str | None:
    """The name that a value is, if it is known to be one."""
    return next((item.thing for item in value.values() if isinstance(item.thing, str)), None)


def name_list(words: Iterable[str]) -> Value:
    """A list of names, which may be empty."""
    found = Names(tuple(words))
    return {(hash(found), ""): Item(found)}


def name_list_in(value: Value) -> tuple[str, ...] | None:
    """The names that are in the list that a value is, if it is known to be one."""
    return next((item.thing.words for item in value.values() if isinstance(item.thing, Names)), None)


def without_names(value: Value) -> Value:
    """Without names, and lists of them."""
    return {key: item for key, item in value.items() if not isinstance(item.thing, (str, Names))}


def words_in(tree: Function, args: Iterable[Value], find: Callable[[Value], Word | None]) -> dict[str, Word]:
    """The parameters of a function that are a known name throughout, or a known list of them."""
    own = [each.arg for each in (*tree.args.posonlyargs, *tree.args.args)]
    found = {name: word for name, value in zip(own, args, strict=False) if (word := find(value)) is not None}
    nodes = list(ast.walk(tree)) if found else []
    set_again = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    arguments = [node.arg for node in nodes if isinstance(node, ast.arg)]
    return {name: word for name, word in found.items() if name not in set_again and arguments.count(name) == 1}


def _is_closed(thing: object) -> bool:
    """Whether an object can be asked for nothing, as what stands for a package that is missing."""
    try:
        _ = thing.__class__
    except Exception:
        return True
    return False


def union(values: Iterable[Value]) -> Value:
    """All that any of some values may be."""
    found: Value = {}
    for value in values:
        found.update(value)
    return found


def all_of(parts: Iterable[Part], listed: str = "") -> Value:
    """A value that may be each of some modules or tensors."""
    return union(one(part, listed) for part in parts)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a module, at any depth."""
    yield from module.parameters()
    yield from module.buffers()


def elements(value: Value) -> Value:
    """What comes out of a value when it is iterated or indexed: of a module its children, of a tensor the tensor."""
    found: Value = {}
    for item in list(value.values()):
        thing = item.thing
        if isinstance(thing, Group):
            found.update(thing.items)
        elif isinstance(thing, nn.Module):
            found.update(all_of(thing.children(), item.listed))
        elif isinstance(thing, (list, tuple, set, frozenset, dict)):
            inner = thing.values() if isinstance(thing, dict) else thing
            # Python's own table has all its modules, thousands; what comes out of one is no part of a model.
            found.update(union(one(each, item.listed) for each in inner if type(each) is not ModuleType))
        elif isinstance(thing, Tensor):
            found.update(one(thing, item.listed))
    return found


@dataclass(eq=False)
class Depths:
    """What is in values, however deep. No object of the model changes while code is read, so each is searched once;
    containers that the code makes do.
    """

    known: dict[tuple[int, str], tuple[Item, Value]] = field(default_factory=dict)

    def reached(self, value: Value) -> Value:
        """The modules, tensors and methods that are in a value, however deep."""
        return dict(self._walk(value))

    def relevant(self, value: Value) -> Value:
        """Without what has nothing of a model in it: data."""
        return {key: item for key, item in value.items() if _plainly_holds(item.thing) or self.holds({key: item})}

    def holds(self, value: Value) -> bool:
        """Whether there is something of a model in a value."""
        return next(self._walk(value), None) is not None

    def _walk(self, value: Value) -> Iterator[tuple[tuple[int, str], Item]]:
        for key, item in _unfolded(value, (Group, Inner)):
            if isinstance(item.thing, FOUND) or _takes_something(item):
                yield key, item
            elif not isinstance(item.thing, (Group, Inner)):
                yield from self._in_object(key, item).items()

    def _in_object(self, key: tuple[int, str], item: Item) -> Value:
        if key not in self.known:
            inside = _unfolded({key: item}, object)
            self.known[key] = item, {k: each for k, each in inside if isinstance(each.thing, FOUND)}
        return self.known[key][1]


FOUND = (*HELD, Bound, Super)
"""What is searched for."""


def _plainly_holds(thing: object) -> bool:
    """Whether it is something of a model, or a container that has such a thing in it, and not only deeper."""
    inside = thing.items.values() if isinstance(thing, Group) else ()
    return isinstance(thing, FOUND) or any(isinstance(item.thing, FOUND) for item in inside)


def _takes_something(item: Item) -> bool:
    """Whether it is a function inside another, and a call of it is more than what it returns."""
    return isinstance(item.thing, Inner) and not item.thing.takes_nothing


def _unfolded(value: Value, kinds: type | tuple[type, ...]) -> Iterator[tuple[tuple[int, str], Item]]:
    """All that is in a value, looking into things of these kinds only."""
    waiting, seen = list(value.items()), set(value)
    while waiting:
        key, item = waiting.pop()
        yield key, item
        if isinstance(item.thing, kinds) and not isinstance(item.thing, FOUND):
            inside = _inside(item)
            waiting += [(k, i) for k, i in inside.items() if k not in seen]
            seen.update(inside)


def _inside(item: Item) -> Value:
    """What can be got out of something that is neither a part of a model nor a method."""
    thing = item.thing
    if isinstance(thing, Inner):
        return thing.result
    held: Iterable[object] = ()
    if isinstance(thing, FunctionType):
        cells = (cell for cell in thing.__closure__ or () if cell != CellType())
        held = (*(cell.cell_contents for cell in cells), *(thing.__defaults__ or ()))
    elif isinstance(thing, MethodType):
        held = (thing.__func__, thing.__self__)
    elif isinstance(thing, partial):
        held = (thing.func, *thing.args, *thing.keywords.values())
    elif not isinstance(thing, (Group, type, ModuleType)):
        held = getattr(thing, "__dict__", {}).values()
    return {**elements({(0, ""): item}), **union(one(each, item.listed) for each in held)}


def fingerprint(value: Value) -> Iterator[object]:
    """What tells a value from others, and from itself when a container in it had less."""
    for key, item in value.items():
        yield key, len(item.thing.items) if isinstance(item.thing, Group) else 0
