"""The model as one flat graph, for ``as_graph=True``."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from torch import Tensor, fx

from ..capture.captured import Captured
from ..layers.overwrite import overwrite_
from ..sourcecode import writes
from ..tracing.guards import expect_rank
from .fold import read_lent
from .generated import spare_self

IN_PLACE = {getattr(operator, name): name for name in writes.IN_PLACE}
IN_PLACE[overwrite_] = "setitem"


def in_place(name: str, value: Any, *others: Any) -> Any:
    """An operator that writes into a tensor, which it returns: a plain trace takes ``x += y`` for ``x = x + y``, and no
    ``x[i] = y``.
    """
    if isinstance(value, fx.Proxy) and not hasattr(type(value), "__setitem__"):
        return value.tracer.create_proxy("call_function", in_place, (name, value, *others), {})
    found = getattr(operator, name)(value, *others)
    return value if name == "setitem" else found


def graph_module(captured: Captured) -> fx.GraphModule:
    """The graph with the modules that it calls, the merged layers among them."""
    for name, value in captured.held.items():
        captured.root.register_buffer(name, value, persistent=False)
    # A plain copy: what is unpickled is traced again, as plain graphs are, and knows nothing of our tracer.
    graph, here = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(captured.graph, here))
    if any(frame.ranks for frame in captured.frames):
        _check_ranks(captured, graph, here)
    for node in graph.nodes:
        if node.target in IN_PLACE:
            node.target, node.args = in_place, (IN_PLACE[node.target], *node.args[:3])
    first = next((n for n, p in captured.root.named_parameters() if p.is_floating_point()), "")
    for node, copy in here.items():
        own = partial(graph.get_attr, first) if first else lambda: None
        read_lent(captured, node.meta.get("lent", {}), copy, here, own)
    spare_self(graph)
    return fx.GraphModule(captured.root, graph, type(captured.root).__name__)


def _check_ranks(captured: Captured, graph: fx.Graph, here: dict[fx.Node, fx.Node]) -> None:
    """The code asked for the number of dimensions of a tensor, which follows from those of the inputs."""
    for node in captured.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            with graph.inserting_after(here[node]):
                graph.call_function(expect_rank, (here[node], value.dim()))
