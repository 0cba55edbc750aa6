"""Name the parts of a tensor that code splits, so that each is a value of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from ..algebra.size import Size
from ..capture.aliases import position_range
from ..capture.captured import Captured
from ..layers.parts import chunk, part, section, taken
from ..running.trees import leaves, map_leaves

SPLITS: dict[object, tuple[Callable[..., Any], tuple[str, ...]]] = {
    torch.split: (part, ("tensor", "split_size_or_sections", "dim")),
    "split": (part, ("self", "split_size", "dim")),
    "split_with_sizes": (part, ("self", "split_sizes", "dim")),
    torch.chunk: (chunk, ("input", "chunks", "dim")),
    "chunk": (chunk, ("self", "chunks", "dim")),
    torch.tensor_split: (section, ("input", "indices_or_sections", "dim")),
    "tensor_split": (section, ("self", "indices_or_sections", "dim")),
    torch.unbind: (taken, ("input", "dim")),
    "unbind": (taken, ("self", "dim")),
}
"""Per call that splits: the function that gives one part, and the names of the call's arguments, the tensor first and
the dimension last.
"""


def name_parts(captured: Captured) -> None:
    """``torch.split(x, n, d)[k]`` becomes ``part(x, n, d, k)`` and so on, where the code takes parts one by one."""
    _spell_results(captured)
    passed = captured.passed
    for node in list(captured.graph.nodes):
        found = SPLITS.get(node.target)
        if found is not None and node not in passed and all(_takes_one(user) for user in node.users):
            _named(captured, node, *found)
    captured.forget()


def _spell_results(captured: Captured) -> None:
    """A call that returns what a split gives returns its parts, one by one."""
    given = {n for frame in captured.frames for n in leaves((frame.args, frame.kwargs)) if isinstance(n, fx.Node)}
    returned = captured.passed - given
    for node in [n for n in captured.graph.nodes if n.target in SPLITS and n in returned]:
        found = node.meta.get("val")
        if isinstance(found, (list, tuple)) and all(map(_takes_one, node.users)):
            parts = tuple(_element(captured, node, number) for number in range(len(found)))
            for frame in captured.frames:
                frame.output = map_leaves(partial(_spelled, node, type(found)(parts)), frame.output)


def _spelled(node: fx.Node, parts: Sequence[fx.Node], leaf: Any) -> Any:
    return parts if leaf is node else leaf


def _element(captured: Captured, node: fx.Node, number: int) -> fx.Node:
    """An element of what a split gives, in the place of all that the code takes."""
    with captured.graph.inserting_after(node):
        made = captured.graph.call_function(operator.getitem, (node, number))
    made.meta = {**node.meta, "val": node.meta["val"][number]}
    numbers = (number, number - len(node.meta["val"]))
    taken = [user for user in node.users if user is not made and user.target is operator.getitem]
    for user in [user for user in taken if user.args[1] in numbers]:
        user.replace_all_uses_with(made)
        captured.replaced[user] = made
        captured.graph.erase_node(user)
    return made


def number_of_parts(split: object, sizes: Callable[[fx.Node], Sequence[Size]]) -> int | None:
    """Into how many parts a call splits its tensor; None for other values, or if the tensor's size is free.

    sizes: of the dimensions of a node; none if they are not known.
    """
    found = SPLITS.get(split.target) if isinstance(split, fx.Node) else None
    if not isinstance(split, fx.Node) or found is None:
        return None
    (value, *how), _ = _arguments(split, found[1])
    if not all(isinstance(each, int) for each in how) or not isinstance(value, fx.Node) or not sizes(value):
        return None
    size = sizes(value)[how[-1]]
    return _counted(found[0], size.factor, how[0]) if size.known else None


def _counted(function: Callable[..., Any], size: int, how: int) -> int:
    """how: the length of every part, or their number."""
    if function is taken:
        return size
    if function is section:
        return how
    length = how if function is part else -(-size // how)
    return -(-size // length)


def taken_apart(keys: Sequence[object], rank: int) -> list[float]:
    """Up to where the parts that keys name lie side by side, per dimension: infinity for all that there is, 0 for less
    than two parts. A key that names a part of several dimensions counts for none.
    """
    spelled = [list(key) if isinstance(key, tuple) else [key] for key in keys]
    plain = [key for key in spelled if all(isinstance(k, slice) or type(k) is int for k in key)]
    return [_covered([key[d] for key in plain if _is_of(key, d)]) for d in range(rank)]


def _is_of(key: Sequence[object], dim: int) -> bool:
    """Whether a key names a part along one dimension, and all of the others."""
    return len(key) > dim and all((k == slice(None)) is (d != dim) for d, k in enumerate(key))


def _covered(keys: Sequence[object]) -> float:
    ranges = [position_range(key) for key in keys]
    end = 0.0
    for start, stop in sorted(each for each in ranges if each is not None):
        end = max(end, stop) if start <= end else end
    return end if len(set(ranges)) > 1 else 0


def _takes_one(user: fx.Node) -> bool:
    return user.target is len or (user.target is operator.getitem and isinstance(user.args[1], int))


def _arguments(split: fx.Node, names: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """The tensor, how it is split if there are ways, and the dimension; and what else there is."""
    arguments = dict(zip(names, split.args, strict=False)) | split.kwargs
    return [arguments.pop(name, 0) for name in names], arguments


def _named(captured: Captured, node: fx.Node, function: Callable[..., Any], names: tuple[str, ...]) -> None:
    given, more = _arguments(node, names)
    if more:
        return
    counts = [user for user in node.users if user.target is len]
    for user in [user for user in node.users if user not in counts]:
        with captured.graph.inserting_before(user):
            made = captured.graph.call_function(function, (*given, user.args[1]))
        made.meta = dict(user.meta)
        user.replace_all_uses_with(made)
        captured.replaced[user] = made
        captured.graph.erase_node(user)
    if not counts:
        captured.graph.erase_node(node)
