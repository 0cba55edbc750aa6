"""The model as one flat graph, for ``as_graph=True``."""

from __future__ import annotations

from functools import partial

from torch import fx

from ..capture.capture import Captured
from .frames import read_lent


def graph_module(captured: Captured) -> fx.GraphModule:
    """The graph with the modules that it calls, the merged layers among them."""
    for name, value in captured.held.items():
        captured.root.register_buffer(name, value, persistent=False)
    # A plain copy: what is unpickled is traced again, as plain graphs are, and knows nothing of our tracer.
    graph, here = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(captured.graph, here))
    first = next((n for n, p in captured.root.named_parameters() if p.is_floating_point()), "")
    for node, copy in here.items():
        own = partial(graph.get_attr, first) if first else lambda: None
        read_lent(captured, node.meta.get("lent", {}), copy, here, own)
    return fx.GraphModule(captured.root, graph, type(captured.root).__name__)
