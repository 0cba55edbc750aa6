"""Name the parts of a tensor that code splits, so that each is a value of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx

from ..algebra.size import Size
from ..capture.aliases import position_range
from ..capture.captured import Captured
from ..layers.parts import chunk, even_part, part, section, taken
from ..running.trees import leaves, map_leaves
from ..tracing.proxies import UNPACKED


class Split(NamedTuple):
    """How a call splits. part: the function that gives one part, of the tensor, how it is split if there are ways, the
    dimension, and the number of the part. names: of these arguments of the call. dim: the one if the call names none.
    """

    part: Callable[..., Any]
    names: tuple[str, ...]
    dim: int = 0


SPLITS: dict[object, Split] = {
    torch.split: Split(part, ("tensor", "split_size_or_sections", "dim")),
    "split": Split(part, ("self", "split_size", "dim")),
    "split_with_sizes": Split(part, ("self", "split_sizes", "dim")),
    torch.chunk: Split(chunk, ("input", "chunks", "dim")),
    "chunk": Split(chunk, ("self", "chunks", "dim")),
    torch.tensor_split: Split(section, ("input", "indices_or_sections", "dim")),
    "tensor_split": Split(section, ("self", "indices_or_sections", "dim")),
    torch.unbind: Split(taken, ("input", "dim")),
    "unbind": Split(taken, ("self", "dim")),
    torch.hsplit: Split(even_part, ("input", "indices_or_sections"), 1),
    "hsplit": Split(even_part, ("self", "indices_or_sections"), 1),
    torch.dsplit: Split(even_part, ("input", "indices_or_sections"), 2),
    "dsplit": Split(even_part, ("self", "indices_or_sections"), 2),
}
"""Per call that splits, how."""


OF = "of"
"""What the meta of a part has: how many parts there are, if the code says so."""


def name_parts(captured: Captured) -> None:
    """``torch.split(x, n, d)[k]`` becomes ``part(x, n, d, k)`` and so on, where the code takes parts one by one."""
    _spell_results(captured)
    passed = captured.passed
    for node in list(captured.graph.nodes):
        found = SPLITS.get(node.target)
        if found is not None and node not in passed and all(_takes_one(user) for user in node.users):
            _named(captured, node, found)
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
    (value, *how), _ = _arguments(split, found)
    if found.part in (even_part, section):
        return len(how[0]) + 1 if isinstance(how[0], (list, tuple)) else how[0] if isinstance(how[0], int) else None
    if not all(isinstance(each, int) for each in how) or not isinstance(value, fx.Node) or not sizes(value):
        return None
    size = sizes(value)[how[-1]]
    return _counted(found.part, size.factor, how[0]) if size.known else None


def _counted(function: Callable[..., Any], size: int, how: int) -> int:
    """how: the length of every part, or their number."""
    if function is taken:
        return size
    length = how if function is part else -(-size // how)
    return -(-size // length)


def all_parts(node: fx.Node) -> tuple[fx.Node, int, list[fx.Node]] | None:
    """Of the first part of a value: the value, the dimension, and all of its parts, in order; None if the code does not
    say how many there are, or does not take all of them.
    """
    count = node.meta.get(OF)
    if node.target not in (part, chunk, section, even_part) or node.args[3] != 0 or count is None:
        return None
    (whole, dim), alike = node.args[::2], (node.target, *node.args[:3])
    if not (isinstance(whole, fx.Node) and isinstance(dim, int)):
        return None
    found = {user.args[3]: user for user in whole.users if (user.target, *user.args[:3]) == alike}
    row = [found[number] for number in range(count) if number in found]
    return (whole, dim, row) if len(row) == count else None


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


def _arguments(node: fx.Node, split: Split) -> tuple[list[Any], dict[str, Any]]:
    """The tensor, how it is split if there are ways, and the dimension; and what else there is."""
    arguments = dict(zip(split.names, node.args, strict=False)) | node.kwargs
    given = [arguments.pop(name, 0) for name in split.names if name != "dim"]
    return [*given, arguments.pop("dim", split.dim)], arguments


def _named(captured: Captured, node: fx.Node, split: Split) -> None:
    given, more = _arguments(node, split)
    if more:
        return
    counts = [user for user in node.users if user.target is len]
    for user in [user for user in node.users if user not in counts]:
        with captured.graph.inserting_before(user):
            made = captured.graph.call_function(split.part, (*given, user.args[1]))
        made.meta = {**user.meta, OF: node.meta.get(UNPACKED)}
        user.replace_all_uses_with(made)
        captured.replaced[user] = made
        captured.graph.erase_node(user)
    if not counts:
        captured.graph.erase_node(node)
