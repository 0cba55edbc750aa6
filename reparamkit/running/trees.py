"""Arguments and results with tensors somewhere inside: containers that torch knows, and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx
from torch.utils._pytree import tree_leaves, tree_map


def is_record(value: object) -> bool:
    """Whether a value is an instance of a dataclass."""
    return dataclasses.is_dataclass(type(value))


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of an instance of a dataclass, by name."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _is_whole(value: object) -> bool:
    """Whether a value is a named tuple that cannot be made of any other entries, as a PackedSequence."""
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    return named and not str(type(value).__new__.__module__).startswith("namedtuple_")


def map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every leaf changed; a dataclass in which nothing changes stays the same object."""
    return tree_map(lambda leaf: _mapped(change, leaf), value, is_leaf=_is_whole)


def _mapped(change: Callable[[Any], Any], leaf: Any) -> Any:
    if not is_record(leaf):
        return change(leaf)
    before = fields_of(leaf)
    after = {name: map_leaves(change, value) for name, value in before.items()}
    if all(a is b for a, b in zip(leaves(list(after.values())), leaves(list(before.values())), strict=False)):
        return leaf
    made = copy.copy(leaf)
    for name, value in after.items():
        # Also where the dataclass is frozen.
        object.__setattr__(made, name, value)
    return made


def leaves(value: Any) -> list[Any]:
    """Everything in a structure that is no container."""
    return list(_leaves(value))


def traced(value: Any) -> set[fx.Node]:
    """The nodes of the traced values in a structure."""
    return {leaf.node for leaf in leaves(value) if isinstance(leaf, fx.Proxy)}


def _leaves(value: Any) -> Iterator[Any]:
    if type(value) in (tuple, list, dict):
        # What nearly all are; torch takes its time for these as well.
        for inner in value.values() if type(value) is dict else value:
            yield from _leaves(inner)
    elif isinstance(value, fx.Node):
        yield value
    else:
        yield from _leaves_by_torch(value)


def _leaves_by_torch(value: Any) -> Iterator[Any]:
    for leaf in tree_leaves(value, is_leaf=_is_whole):
        if is_record(leaf):
            yield from _leaves(list(fields_of(leaf).values()))
        else:
            yield leaf


def filled(given: Any, value: Callable[[fx.Node], Any]) -> Any:
    """The arguments of a node with values for nodes. Lists and dictionaries are new ones, as in the code of a call,
    which may write into them; those of a graph do not take that.
    """
    if isinstance(given, fx.Node):
        return value(given)
    if isinstance(given, list):
        return [filled(each, value) for each in given]
    if isinstance(given, dict):
        return {key: filled(each, value) for key, each in given.items()}
    if isinstance(given, tuple):
        entries = [filled(each, value) for each in given]
        return type(given)(*entries) if hasattr(given, "_fields") else tuple(entries)
    if isinstance(given, slice):
        return slice(*(filled(each, value) for each in (given.start, given.stop, given.step)))
    return given
