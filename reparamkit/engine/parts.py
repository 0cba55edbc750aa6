"""Name the parts of a tensor that code splits, so that each is a value of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..capture.capture import Captured
from ..layers.parts import chunk, part

SPLITS: dict[object, tuple[Callable[..., Any], tuple[str, ...]]] = {
    torch.split: (part, ("tensor", "split_size_or_sections", "dim")),
    "split": (part, ("self", "split_size", "dim")),
    "split_with_sizes": (part, ("self", "split_sizes", "dim")),
    torch.chunk: (chunk, ("input", "chunks", "dim")),
    "chunk": (chunk, ("self", "chunks", "dim")),
}
"""Per call that splits: the function that gives one part, and the names of the call's arguments."""


def name_parts(captured: Captured) -> None:
    """``torch.split(x, n, d)[k]`` becomes ``part(x, n, d, k)`` where the code takes all parts one by one."""
    passed = captured.passed
    for node in list(captured.graph.nodes):
        found = SPLITS.get(node.target)
        if found is not None and node not in passed and all(_takes_one(user) for user in node.users):
            _named(captured, node, *found)
    captured.forget()


def _takes_one(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int)


def _named(captured: Captured, node: fx.Node, function: Callable[..., Any], names: tuple[str, ...]) -> None:
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    value, how, dim = (arguments.pop(name, 0) for name in names)
    if arguments:
        return
    for user in list(node.users):
        with captured.graph.inserting_before(user):
            made = captured.graph.call_function(function, (value, how, dim, user.args[1]))
        made.meta = dict(user.meta)
        user.replace_all_uses_with(made)
        captured.replaced[user] = made
        captured.graph.erase_node(user)
    captured.graph.erase_node(node)
