"""Calls of modules on constants: arithmetic on parameters like any other, though code writes it as a call."""

from __future__ import annotations

import inspect

from torch import fx

from ..sourcecode.parse import forward_of, is_torchs
from ..tracing.frame import Frame
from ..tracing.lending import lender
from ..tracing.observers import has_forward_hooks
from ..tracing.torch_calls import FACTORIES
from .captured import Captured


def fold_calls(captured: Captured) -> Captured:
    """Of a module that is called elsewhere too, ``lora_B(lora_A(eye))`` becomes what its forward does with the
    parameters. `captured.folded` receives these calls: the model's own code goes on making them where it is not written
    again.
    """
    several = {module for module, calls in captured.module_calls.items() if calls > 1}
    constants = _constants(captured) if several else set()
    calls = [n for n in captured.graph.nodes if n in constants and n.op == "call_module"]
    inside = {n: _traced(captured, n) for n in calls if id(captured.module(n)) in several}
    stuck = {node for node, graph in inside.items() if graph is None}
    for frame in captured.frames:
        if id(frame.module) in several and _is_folded(captured, constants - stuck, frame):
            captured.open_call(frame)
    for node, graph in inside.items():
        if graph is not None:
            _insert(captured, node, graph)
    return captured


def _constants(captured: Captured) -> set[fx.Node]:
    """What follows from parameters alone, and is written into by nothing."""
    found = set[fx.Node]()
    for node in captured.graph.nodes:
        inputs = {*node.all_input_nodes} - {lender(node)}
        made = node.op == "get_attr" or (node.op.startswith("call") and bool(inputs)) or node.target in FACTORIES
        same = not (node.meta.get("random") or node in captured.aliases.writers)
        training = node.op == "call_module" and captured.module(node).training
        if made and same and not training and inputs <= found:
            found.add(node)
    return found


def _is_folded(captured: Captured, constants: set[fx.Node], frame: Frame) -> bool:
    """Whether all that a call is given and makes are constants."""
    made = captured.made_in.get(frame, [])
    plain = not (frame.fills or id(frame.module) in captured.code.changed.setters or has_forward_hooks(frame.module))
    return plain and bool(made) and captured.nodes_in(made, frame.args, frame.kwargs) <= constants


def _traced(captured: Captured, node: fx.Node) -> fx.Graph | None:
    """What the forward of a layer of torch does with its input, if it takes no branch by that."""
    module = captured.module(node)
    plain = is_torchs(type(module)) and is_torchs(forward_of(module)) and not has_forward_hooks(module)
    alone = len(inspect.signature(module.forward).parameters) == 1 and not any(True for _ in module.children())
    if not (plain and alone) or node.meta["opaque"]:
        return None
    try:
        return fx.Tracer().trace(module)
    except Exception:
        return None


def _insert(captured: Captured, node: fx.Node, inside: fx.Graph) -> None:
    """Let what a layer does with its input take the place of its call."""
    given, *made, output = inside.nodes
    here = {given: node.all_input_nodes[0]}
    with captured.graph.inserting_before(node):
        for each in made:
            here[each] = copy = captured.graph.node_copy(each, here.__getitem__)
            copy.meta = {key: value for key, value in node.meta.items() if key != "val"}
            copy.target = f"{node.target}.{each.target}" if each.op == "get_attr" else each.target
    result = here[output.all_input_nodes[0]]
    result.meta.setdefault("val", node.meta.get("val"))
    captured.fold(node, result, [here[each] for each in made])
