"""The regions of a graph: no merge reaches from one into another, so each is chosen on its own.

A region is affine from end to end. Between regions are the values that are no affine function of what came before;
these are computed in every plan.
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
from torch import fx

from ..capture.captured import Captured

Region = list[fx.Node]
"""In program order: affine values, constants and sizes, and the other values that read them."""


def regions(captured: Captured, is_inside: Callable[[fx.Node], bool]) -> list[Region]:
    """All regions. is_inside: whether a merge may begin, pass or end at a value."""
    joined: nx.utils.UnionFind[fx.Node] = nx.utils.UnionFind()
    called: dict[int, fx.Node] = {}
    for node in filter(is_inside, captured.graph.nodes):
        joined.union(node, *filter(is_inside, node.all_input_nodes))
        if node.op == "call_module":
            # All calls of a module merge alike, or none does.
            joined.union(node, called.setdefault(id(captured.module(node)), node))
    found: dict[fx.Node, Region] = {}
    for node in captured.graph.nodes:
        around = [node] if is_inside(node) else filter(is_inside, node.all_input_nodes)
        for name in dict.fromkeys(joined[inner] for inner in around):
            found.setdefault(name, []).append(node)
    return list(found.values())
