"""Parameter arithmetic: values that depend on parameters only, computed in float64 while a graph is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from ..algebra.size import Size
from ..capture.captured import Captured
from ..capture.reach import reached
from ..errors import CaptureError
from ..layers.wide import CASTS, wide_call, wide_module
from ..running.draws import Draws
from ..running.trees import filled
from ..tracing.lending import lender
from ..tracing.torch_calls import FACTORIES

Known = Mapping[fx.Node, Any]


def is_constant(captured: Captured, node: fx.Node, constants: Known, sizes: Known) -> bool:
    """Whether a call gives the same value each time: it is not random, reads constants only, and writes into nothing
    that is read by another name.
    """
    lent = None if lender(node) in constants else lender(node)
    inputs = [n for n in node.all_input_nodes if n is not lent]
    if lent is None and not inputs and node.target not in FACTORIES:
        return False
    if not all(n in constants or _plain(sizes.get(n)) for n in inputs) or _varies(captured, node):
        return False
    return node not in captured.aliases.writers or _owns(captured, node, constants)


def is_random(node: fx.Node) -> bool:
    """Whether a call of a function or method drew random numbers on the values that are known."""
    return bool(node.meta.get("random"))


def _varies(captured: Captured, node: fx.Node) -> bool:
    return is_random(node) or (node.op == "call_module" and captured.module(node).training)


def _owns(captured: Captured, writer: fx.Node, constants: Known) -> bool:
    """Whether what is written into was made of constants by the forward, and no older name of it is read afterwards."""
    aliases = captured.aliases
    older = [n for n in aliases.of(writer) if aliases.order[n] < aliases.order[writer]]
    others = [n for n in older if n is not aliases.written(writer)]
    made = all(n in constants and n.op != "get_attr" for n in older)
    return made and all(aliases.order[user] <= aliases.order[writer] for n in others for user in n.users)


def rounded_to(captured: Captured, node: fx.Node) -> torch.dtype | None:
    """The dtype that a call of constants casts real numbers to, if that loses digits: they would not be the model's
    own in float64, nor would what is computed from them.
    """
    after = dtype_of(captured, node)
    befores = [dtype_of(captured, n) for n in node.all_input_nodes]
    return after if any(_eps(after) > _eps(before) > 0 for before in befores) else None


def _eps(dtype: torch.dtype | None) -> float:
    """The precision of a floating dtype, 0 for any other."""
    return 0.0 if dtype is None or not dtype.is_floating_point else torch.finfo(dtype).eps


def dtype_of(captured: Captured, node: fx.Node) -> torch.dtype | None:
    """The dtype that a constant has in the model; None if it has none."""
    found: dict[fx.Node, torch.dtype | None] = {}
    # Values that are computed of one another in several ways are asked once each.
    for each in sorted(reached([node], _decisive)):
        dtypes = [dtype for n in _decisive(each) if (dtype := found[n]) is not None]
        found[each] = reduce(torch.promote_types, dtypes) if dtypes else _own_dtype(captured, each)
    return found[node]


def _decisive(node: fx.Node) -> list[fx.Node]:
    """What a value has its dtype from, if it does not tell it."""
    value = node.meta.get("val")
    if node.op == "get_attr" or isinstance(value, Tensor) or node.target in CASTS or _named_dtypes(node):
        return []
    return node.all_input_nodes[-1:] if node.target == "type_as" else node.all_input_nodes


def _own_dtype(captured: Captured, node: fx.Node) -> torch.dtype | None:
    value = captured.attribute(node) if node.op == "get_attr" else node.meta.get("val")
    if isinstance(value, Tensor) or node.op == "get_attr":
        return getattr(value, "dtype", None)
    return CASTS.get(str(node.target), next(iter(_named_dtypes(node)), None))


def _named_dtypes(node: fx.Node) -> list[torch.dtype]:
    return [a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, torch.dtype)]


def evaluated(captured: Captured, node: fx.Node, constants: Known, sizes: Known) -> Any:
    """The value of a call of constants: a tensor, a tuple of tensors, a number; None for a guard."""

    def known(n: fx.Node) -> Any:
        if n in sizes:
            size = sizes[n]
            return tuple(s.factor for s in size) if isinstance(size, tuple) else size.factor
        if n not in constants:
            return torch.zeros((), dtype=torch.float64)
        return tree_map(widened, constants[n])

    args, kwargs = filled((node.args, node.kwargs), known)
    with torch.no_grad(), Draws() as draws:
        if node.op == "call_module":
            found = wide_module(captured.module(node))(*args, **kwargs)
        else:
            found = wide_call(node.target, args, kwargs)
    if draws.found:
        raise CaptureError("it draws random numbers")
    return found


def widened(value: Any) -> Any:
    """A tensor of real numbers in float64, where it is; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().double() if value.is_floating_point() else value.detach()


def _plain(value: Any) -> bool:
    """Whether a size is a number, or all of a tuple of sizes are."""
    sizes = value if isinstance(value, tuple) else (value,)
    return all(isinstance(size, Size) and size.known for size in sizes)
