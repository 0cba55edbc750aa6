"""Take norms apart: a normalisation, and a scale and a shift that what reads them may absorb. Join what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ..algebra.form import source_form
from ..capture.captured import Captured
from ..capture.facts import Apart
from ..errors import NotFusable
from ..layers.normalize import CHANNELS, FUNCTIONS, affine, arguments, norm_class, read_affine, without_affine
from ..reasons import Kind, Reason
from .placing import layer_cost
from .reading import Reading
from .scope import WATCHED, Scope, called_at, watched

Refused = Callable[[fx.Node, Reason], None]
PARAMETERS: tuple[str, ...] = ("weight", "bias")


@dataclass(frozen=True)
class _Second:
    """The part of a norm that scales and shifts: shapes as in `normalize.affine`, a shift by zeros left out."""

    weight: Tensor | None
    bias: Tensor | None
    channels: bool


def take_apart(captured: Captured, scope: Scope, reading: Reading, no: Refused) -> None:
    """Make every norm that scales or shifts two nodes: the first normalises, the second does the rest.

    The second is the old node, so that whatever refers to the value of the norm still does; see `Captured.apart`.
    no: is told why a norm beside a linear layer stays whole.
    """
    for node in list(captured.graph.nodes):
        second = _second(reading, node)
        reason = None if second is None else _stays_whole(captured, scope, node)
        if reason is not None and any(user in reading.read for user in node.users):
            no(node, reason)
        elif second is not None and reason is None:
            _take_apart(captured, node, second)
    captured.forget()


def has_norms(captured: Captured) -> bool:
    """Whether there is something to take apart."""
    return any(_kind(captured, node) is not None for node in captured.graph.nodes)


def _kind(captured: Captured, node: fx.Node) -> object | None:
    """The class or the function of a norm, None for other nodes."""
    if node.op == "call_module":
        return norm_class(captured.module(node))
    return node.target if node.op == "call_function" and node.target in FUNCTIONS else None


def _stays_whole(captured: Captured, scope: Scope, node: fx.Node) -> Reason | None:
    return WATCHED if watched(captured, node) else scope.refusal(node) or _needed_whole(captured, node)


def _needed_whole(captured: Captured, node: fx.Node) -> Reason | None:
    """Why other code needs a norm module as it is, or None."""
    calls = captured.calls_left(id(captured.module(node))) if node.op == "call_module" else 1
    if calls > 1:
        return called_at(calls)
    return _read_by_code(captured, node)


def _read_by_code(captured: Captured, node: fx.Node) -> Reason | None:
    """Why the parameters of a norm module must stay, or None."""
    paths = {f"{node.target}.{name}" for name in PARAMETERS} if node.op == "call_module" else set()
    read = not captured.code.attributes.keys().isdisjoint(paths)
    return Reason("the model's code reads its parameters: in use elsewhere", Kind.SHARED) if read else None


def join(captured: Captured) -> None:
    """Make the norms whose second part nothing absorbed one node again, but for those that are not called any more."""
    left = set(captured.graph.nodes)
    for node, apart in captured.apart.items():
        captured.held.pop(str(apart.target), None)
        parts = node.all_input_nodes
        if node in left:
            restore(captured, node, apart)
        for part in parts:
            if not part.users:
                captured.graph.erase_node(part)
    captured.apart.clear()
    captured.forget()


def restore(captured: Captured, node: fx.Node, apart: Apart) -> None:
    """Make a node the call that it was, of what has the values of its arguments now."""
    node.op, node.target = apart.op, apart.target
    node.meta.pop("place", None)
    if not node._erased:
        node.args, node.kwargs = fx.node.map_arg((apart.args, apart.kwargs), captured.current)


def second_flops(reading: Reading) -> int:
    """The operations of the second parts of all norms that are whole; a single node is no affine layer."""
    return sum(_flops(reading, node) for node in reading.captured.graph.nodes)


def _flops(reading: Reading, node: fx.Node) -> int:
    second = _second(reading, node)
    if second is None:
        return 0
    try:
        form = read_affine(source_form(node.name, *reading.shapes[node]), second.weight, second.bias, second.channels)
    except NotFusable:
        return 0
    return layer_cost(form, 0).flops


def _second(reading: Reading, node: fx.Node) -> _Second | None:
    """The second part of a norm, None for other nodes and for norms without."""
    if node not in reading.shapes:
        # Of parameters only: its value is a constant.
        return None
    kind = _kind(reading.captured, node)
    if kind is None:
        return None
    if node.op == "call_module":
        found: dict[str, Any] = dict(reading.captured.module(node).named_parameters())
    else:
        given = arguments(node.target, node.args, node.kwargs)
        found = {name: given[name] for name in PARAMETERS if given.get(name) is not None}
        if any(parameter not in reading.constants for parameter in found.values()):
            return None
        found = {name: reading.constants[parameter] for name, parameter in found.items()}
    if "bias" in found and not bool(found["bias"].any()):
        del found["bias"]
    return _Second(found.get("weight"), found.get("bias"), kind in CHANNELS) if found else None


def _take_apart(captured: Captured, node: fx.Node, second: _Second) -> None:
    names = [name for name in PARAMETERS if getattr(second, name) is not None]
    with captured.graph.inserting_before(node):
        first, read = _module_parts(captured, node, names) if node.op == "call_module" else _call_parts(captured, node)
    first.meta = dict(node.meta)
    captured.apart[node] = Apart(node.op, node.target, node.args, node.kwargs)
    weight, bias = (read[name] if name in names else None for name in PARAMETERS)
    node.op, node.target, node.args, node.kwargs = "call_function", affine, (first, weight, bias, second.channels), {}


def _module_parts(captured: Captured, node: fx.Node, names: list[str]) -> tuple[fx.Node, dict[str, fx.Node]]:
    """The call that normalises, and the parameters; from now on, the path means the module without them."""
    path = str(node.target)
    first = captured.graph.create_node("call_module", path, node.args, node.kwargs)
    read = {name: captured.graph.create_node("get_attr", f"{path}.{name}") for name in names}
    for made in read.values():
        made.meta = {name: value for name, value in node.meta.items() if name != "val"}
    captured.held[path] = without_affine(captured.module(node))
    node.meta["place"] = path
    return first, read


def _call_parts(captured: Captured, node: fx.Node) -> tuple[fx.Node, dict[str, Any]]:
    """The call that normalises, and the parameters."""
    given = arguments(node.target, node.args, node.kwargs)
    read = {name: given.pop(name) for name in PARAMETERS if name in given}
    return captured.graph.create_node("call_function", node.target, (given.pop("input"),), given), read
