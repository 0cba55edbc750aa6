"""Find where code fills the border of a padded tensor by slice assignment, and make it one call."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import fx

from ..capture.captured import Captured
from ..layers.borders import pad_with
from .ranks import certain_rank

Region = tuple[int, int, int]
"""A border: the dimension (from the right), the positions at its begin and at its end that are filled."""


def join_borders(captured: Captured) -> None:
    """``y = F.pad(x, p); y[..., :1] = v; y[..., -1:] = v`` becomes ``y = pad_with(x, p, v)`` if all is filled."""
    padded = [node for node in captured.graph.nodes if node.target is F.pad and _is_zero_padding(node)]
    for node in padded:
        _join(captured, node)
    if padded:
        captured.forget()


def _pads(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else None


def _is_zero_padding(node: fx.Node) -> bool:
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    pad = _pads(node)
    return (
        isinstance(pad, Sequence)
        and all(isinstance(n, int) and n >= 0 for n in pad)
        and (mode, value or 0)
        == (
            "constant",
            0,
        )
    )


def _join(captured: Captured, node: fx.Node) -> None:
    users = sorted(node.users, key=captured.aliases.order.__getitem__)
    writes = [user for user in users if user.target is operator.setitem and user.args[0] is node]
    values = {user.args[2] for user in writes if isinstance(user.args[2], fx.Node)}
    if not writes or users[: len(writes)] != writes or len(values) != 1 or not all(_plain(w) for w in writes):
        return
    value, pad = values.pop(), _pads(node)
    wanted = {(-1 - k, low, high) for k, (low, high) in enumerate(zip(pad[0::2], pad[1::2], strict=True))}
    if _filled(writes) != {region for region in wanted if region[1] or region[2]}:
        return
    with captured.graph.inserting_after(writes[-1]):
        joined = captured.graph.call_function(pad_with, (node.args[0], pad, value))
    joined.meta = dict(node.meta)
    for write in writes:
        captured.graph.erase_node(write)
    node.replace_all_uses_with(joined)
    captured.replaced[node] = joined
    captured.graph.erase_node(node)


def _plain(write: fx.Node) -> bool:
    return isinstance(write.args[2], fx.Node) and len(list(_regions(write))) == 1


def _filled(writes: list[fx.Node]) -> set[Region]:
    """Per dimension what the assignments fill."""
    found: dict[int, tuple[int, int]] = {}
    for write in writes:
        for dim, low, high in _regions(write):
            before = found.get(dim, (0, 0))
            found[dim] = max(before[0], low), max(before[1], high)
    return {(dim, low, high) for dim, (low, high) in found.items()}


def _regions(write: fx.Node) -> Iterator[Region]:
    """The border that ``y[:, :, 0:2]`` or ``y[..., -2:]`` is."""
    key = write.args[1] if isinstance(write.args[1], tuple) else (write.args[1],)
    written = certain_rank(write.all_input_nodes[0])
    for number, part in enumerate(key):
        if part in (Ellipsis, slice(None)):
            continue
        rank = len(key) if Ellipsis in key[:number] else written
        if not isinstance(part, slice) or rank is None:
            yield 0, 0, 0
            return
        dim = number - rank
        if part.step is None and part.start in (None, 0) and isinstance(part.stop, int) and part.stop > 0:
            yield dim, part.stop, 0
        elif part.step is None and part.stop is None and isinstance(part.start, int) and part.start < 0:
            yield dim, 0, -part.start
        else:
            yield 0, 0, 0
