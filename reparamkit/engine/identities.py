"""Take layers that do nothing at inference out of the graph, so that they hide no neighbour."""

from __future__ import annotations

import inspect

from torch import fx

from ..algebra.form import Form
from ..capture.aliases import target_name
from ..capture.captured import Captured
from ..layers.hooks import has_hooks
from ..tracing.frame import Frame
from .reading import Reading

RETURN_THEIR_INPUT = ("identity", "dropout", "alpha_dropout", "feature_alpha_dropout")
"""Beginnings of the names of calls that return the tensor they get, not a copy of it."""


def drop_identities(captured: Captured, reading: Reading) -> None:
    """Let every reader of an identity read its input; the model still calls the module."""
    for node in list(captured.graph.nodes):
        form = reading.read.get(node)
        if form is not None and does_nothing(form) and _returns_input(captured, node):
            captured.dropped.add(node)
            captured.replaced[node] = source = node.all_input_nodes[0]
            node.replace_all_uses_with(source)
            captured.graph.erase_node(node)
    captured.forget()


def does_nothing(form: Form) -> bool:
    """Whether a form gives the numbers of its source, in their order."""
    term = next(iter(form.terms.values()))
    views = any(step.views for trail in term.trails for step in trail)
    return len(form.terms) == 1 and term.op.is_identity and form.bias is None and not (views or form.guards)


def computes_the_same(captured: Captured, node: fx.Node) -> bool:
    """Whether a call that gives the numbers it gets runs nevertheless: it adds the 0 that sums begin with, or its code
    multiplies by 1. (As an argument of a forward, or the default of one, other numbers may be given.)
    """
    numbers = [a for a in node.args if isinstance(a, (int, float))]
    return any(a == 0 or (a == 1 and a not in _given_numbers(captured.frame(node))) for a in numbers)


def _given_numbers(frame: Frame) -> list[float]:
    """The numbers among the arguments of a call, and of the calls around it."""
    found: list[float] = []
    for each in frame.stack:
        bound = inspect.signature(each.module.forward).bind(*each.args, **each.kwargs)
        bound.apply_defaults()
        found += [value for value in bound.arguments.values() if isinstance(value, (int, float))]
    return found


def _returns_input(captured: Captured, node: fx.Node) -> bool:
    hooked = node.op == "call_module" and has_hooks(captured.module(node))
    return not hooked and target_name(node, captured.module).startswith(RETURN_THEIR_INPUT)
