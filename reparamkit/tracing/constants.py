"""What follows from parameters and buffers alone, computed while a model is traced, and again to be recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Target

from ..running.trees import filled
from ..sourcecode.writes import in_place
from .guards import expect
from .proxies import attribute

TAKEN: dict[object, Callable[[Tensor], Tensor]] = {bool: lambda number: number != 0, int: Tensor.long}
"""What code makes of a number that it decides by: other numbers may give the same."""


Call = Callable[[fx.Node, Any, Any], Any]
"""Computes the value of a node of those of its arguments, as `called` does."""


def constant(node: fx.Node, root: nn.Module) -> Any:
    """The real value of a node, if it depends on parameters and buffers only, while these are traced."""
    return _constant(node, lambda each: attribute(root, str(each.target)))


def _constant(node: fx.Node, held: Callable[[fx.Node], Any], call: Call | None = None) -> Any:
    """See `constant`. held: gives a parameter, a buffer, or a tensor that code made."""
    values: dict[fx.Node, Any] = {}
    for each in _made_of(node):
        if each.op == "get_attr":
            values[each] = held(each)
        else:
            args, kwargs = filled((each.args, each.kwargs), values.__getitem__)
            with torch.no_grad():
                values[each] = (call or called)(each, args, kwargs)
    return values.get(node)


def positions(index: Any, spelled: Any, real: Callable[[fx.Node], Any]) -> Any:
    """An index of which fake values tell how many numbers it names: constant masks as the positions that they name.

    index: with fake values. spelled: with nodes. real: gives the value of a node, if it is constant.
    """
    if not isinstance(index, tuple):
        return positions((index,), (spelled,), real) if isinstance(index, Tensor) else index
    found: list[Any] = []
    for fake, node in zip(index, spelled, strict=True):
        is_mask = isinstance(fake, Tensor) and isinstance(node, fx.Node) and fake.dtype is torch.bool and fake.dim() > 0
        mask = real(node) if is_mask else None
        found += [fake] if mask is None else mask.nonzero(as_tuple=True)
    return tuple(found)


def _made_of(node: fx.Node) -> list[fx.Node]:
    """A node, and before it all that its value follows from, each once; nothing if it follows from something else."""
    found, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if not _follows(one):
            return []
        new = [each for each in one.all_input_nodes if each not in found]
        found.update(new)
        waiting += new
    return sorted(found)


def _follows(node: fx.Node) -> bool:
    """Whether the value of a node follows from those of its inputs; a parameter or buffer is there."""
    if node.op == "get_attr":
        return True
    is_call = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
    return is_call and not node.meta.get("random") and not writes(node.target, node.kwargs)


def writes(target: Target, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call writes into an argument, by its name."""
    return in_place(str(getattr(target, "__name__", target))) or kwargs.get("out") is not None


def called(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What the function or method of a node gives for these arguments."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def decide_again(graph: fx.Graph, held: Callable[[fx.Node], Any]) -> None:
    """Compute once more what code of the model decided by that follows from parameters: a branch, an index. A number
    is taken out of its tensor at the end only, so that what is seen of it is the decision. held: see `_constant`.
    """
    for check in graph.nodes:
        if check.op == "call_function" and check.target is expect and isinstance(check.args[0], fx.Node):
            try:
                found = _constant(check.args[0], held, _in_tensors)
            except (TypeError, AttributeError):
                found = _constant(check.args[0], held)
            if isinstance(found, Tensor):
                TAKEN.get(check.meta.get("taken"), Tensor.detach)(found).item()


def _in_tensors(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """As `called`, with tensors of one number in the place of numbers, of the precision that Python has."""
    if node.target not in ("item", Tensor.item):
        return called(node, args, kwargs)
    return args[0].double() if args[0].is_floating_point() else args[0]
