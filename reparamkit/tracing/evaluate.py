"""The value of a node of the graph on fake values: a meta tensor that knows its device."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..running.buffers import other_buffers
from ..running.draws import Draws
from ..running.state import Contents
from ..running.trees import filled, leaves, map_leaves
from .constants import called, constant, positions
from .fakes import as_fake
from .known import made_by, normed_by
from .observers import without_observers
from .proxies import attribute

NOTHING = nn.Identity()
"""A module without buffers."""


def is_known(node: fx.Node) -> bool:
    """Whether the value of a node follows from the inputs that are known, and from the model's own tensors."""
    return all("val" in each.meta or each.op == "get_attr" for each in node.all_input_nodes)


def evaluate_node(node: fx.Node, root: nn.Module, mode: FakeTensorMode) -> Any:
    """The value of a node on the fake values of its arguments."""

    def known(made: fx.Node) -> Any:
        if "val" not in made.meta:
            # fx makes nodes of constant tensors by itself.
            made.meta["val"] = evaluate_node(made, root, mode)
        return made.meta["val"]

    args, kwargs = filled((node.args, node.kwargs), known)
    if node.target is operator.getitem:
        args = (args[0], positions(args[1], node.args[1], partial(constant, root=root)))
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else NOTHING
    # A norm in training mode counts its batches in a buffer, and may read the count.
    with torch.no_grad(), other_buffers(module, Tensor.clone), mode, Draws() as draws:
        before, given = [_versions(known(n)) for n in node.all_input_nodes], Contents((args, kwargs))
        found = _result(node, module, root, mode, args, kwargs)
        after = [_versions(known(n)) for n in node.all_input_nodes]
    writes = [a != b for a, b in zip(before, after, strict=True)]
    node.meta.update(random=draws.found, writes=writes, fills=node.op == "call_function" and not given.stay)
    return found


def _versions(value: Any) -> list[int]:
    """How often the tensors in a value were written into. (Those of inference mode do not tell.)"""
    return [leaf._version for leaf in leaves(value) if isinstance(leaf, Tensor) and not leaf.is_inference()]


def _result(node: fx.Node, module: nn.Module, root: nn.Module, mode: FakeTensorMode, args: Any, kwargs: Any) -> Any:
    """module: what the node calls, if it calls one."""
    if node.op == "get_attr":
        return map_leaves(as_fake(mode), attribute(root, str(node.target)))
    if node.op == "call_module":
        if (made := made_by(module, args, kwargs)) is not None:
            return made
        with without_observers(module):
            return module(*args, **kwargs)
    normed = normed_by(node.target, args, kwargs)
    return called(node, args, kwargs) if normed is None else normed
