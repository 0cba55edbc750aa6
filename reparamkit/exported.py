"""Programs of torch.export: flat graphs of ATen operators, put into the words of torch, which readers know."""

from __future__ import annotations

import inspect
from functools import cache
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from .errors import InvalidInputError
from .layers.registry import READERS


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph of torch functions, in eval mode.

    Its inputs are the tensors that the program takes, one after the other; so are its outputs, or there is one.
    Raises `InvalidInputError`: the program calls what writes into a tensor and has no name in torch.
    """
    # Guards of the program are code that cannot be traced; reparamkit has its own. Older versions of torch put none in.
    guards = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    return _flat(program.module(**guards), program.call_spec.out_spec.is_leaf())


def tensors_in(inputs: Any) -> tuple[Tensor, ...]:
    """The tensors among the arguments of a program, one after the other."""
    return tuple(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))


def _flat(program: fx.GraphModule, single: bool) -> fx.GraphModule:
    """The graph in the words of torch instead of ATen, without the structure of inputs and outputs."""
    graph = program.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            _spell(node, node.target)
        if node.op == "output" and single:
            node.args = (node.args[0][0],)
    made = fx.GraphModule(program, graph, "Program")
    # A program has its modes in the arguments of its calls, and refuses eval().
    nn.Module.train(made, False)
    return made


def _spell(node: fx.Node, operator: OpOverload) -> None:
    """Name the function or method that an ATen operator is: they take the same arguments in the same order.

    What writes in place, or is a view, must be seen to be one: by a name that the aliases of a graph know.
    """
    name = operator.overloadpacket.__name__
    functions = [getattr(home, name) for home in (torch, F, torch._C._nn) if hasattr(home, name)]
    known = [each for each in functions if each in _known()]
    aliases = any(value.alias_info is not None for value in (*operator._schema.arguments, *operator._schema.returns))
    if known:
        node.target = known[0]
    elif name == "alias":
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)
    elif name == "slice":
        _spell_slice(node, *node.args, **node.kwargs)
    elif aliases and hasattr(Tensor, name):
        node.op, node.target = "call_method", name
    elif aliases and functions:
        node.target = functions[0]
    elif aliases:
        raise InvalidInputError(
            f"the program calls {operator}, which writes into its input or is a view of it: fuse the model that it was"
            " exported from"
        )


def _spell_slice(node: fx.Node, x: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> None:
    dim = dim if dim >= 0 else dim + x.meta["val"].dim()
    node.target, node.args, node.kwargs = getitem, (x, (*[slice(None)] * dim, slice(start, end, step))), {}


@cache
def _known() -> frozenset[Any]:
    """What is read."""
    return frozenset(target for each in READERS for target in each.targets)
