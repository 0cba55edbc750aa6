"""Small graphs as SVG: what runs before and after a fusion, with the operations of one merge in one colour.

The text takes the colour of the page, so that it fits light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from reparamkit.reporting import Node, Report

Place = tuple[float, float]
STEP, HEIGHT, LETTER, GAP = 30, 18, 5.6, 8
"""From row to row, of a box, of a letter, and between boxes, in pixels."""
HUES = (172, 28, 265, 330, 95, 210)
SHORT = {
    **{"BatchNorm": "norm", "Conv": "conv", "Linear": "linear", "LayerNorm": "layer norm", "ReLU": "relu"},
    **{"AvgPool": "pool", "adaptive_avg_pool": "pool", "AdaptiveAvgPool": "pool", "input": "x", "output": "y"},
}


def before_and_after(report: Report) -> str:
    """Both graphs side by side, as one line of HTML that a table cell can hold."""
    return " ".join(svg(graph) for graph in (report.graph_before, report.graph_after))


def svg(nodes: Sequence[Node]) -> str:
    """One graph, rows by longest path."""
    by_name = {node.name: node for node in nodes}
    rows, graph = threaded(shown(nodes))
    widths = {name: 12 + LETTER * len(plain(by_name[name])) if name in by_name else 0.0 for name in graph}
    wide = max(sum(widths[name] + GAP for name in row) for row in rows)
    place: dict[str, Place] = {}
    for k, row in enumerate(rows):
        place |= centred(ordered(row, graph, place), widths, wide, k)
    parts = [edge(place[a], place[b], widths[a] > 0, widths[b] > 0) for a, b in graph.edges]
    parts += [box(by_name[name], *place[name], widths[name]) for name in graph if name in by_name]
    size = f'width="{wide:.0f}" height="{STEP * len(rows):.0f}"'
    style = 'font-size="9" fill="currentColor" style="vertical-align:top;max-width:none"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>'


def threaded(graph: nx.DiGraph) -> tuple[list[list[str]], nx.DiGraph]:
    """The rows, and the graph with a point wherever an edge crosses a row, so that edges go between the boxes."""
    rows = [list(row) for row in nx.topological_generations(graph)]
    number = {name: k for k, row in enumerate(rows) for name in row}
    made = nx.DiGraph()
    made.add_nodes_from(graph)
    for a, b in graph.edges:
        between = {f"{a}>{b}@{k}": k for k in range(number[a] + 1, number[b])}
        for name, k in between.items():
            rows[k].append(name)
        nx.add_path(made, [a, *between, b])
    return rows, made


def ordered(row: Sequence[str], graph: nx.DiGraph, place: dict[str, Place]) -> list[str]:
    """A row from left to right, each by the mean of what it reads."""

    def mean(name: str) -> float:
        above = [place[source][0] for source in graph.predecessors(name)]
        return sum(above) / len(above) if above else 0.0

    return sorted(row, key=mean)


def shown(nodes: Sequence[Node]) -> nx.DiGraph:
    """What computes something, and who reads whom through views."""
    graph, seen = nx.DiGraph(), {}
    for node in nodes:
        sources = list(dict.fromkeys(seen[name] for name in node.inputs if name in seen))
        if node.role in ("compute", "input", "output"):
            seen[node.name] = node.name
            graph.add_node(node.name)
            graph.add_edges_from((source, node.name) for source in sources)
        elif node.role == "view" and sources:
            seen[node.name] = sources[0]
    # An input that only sizes or parameters read, and constants that nobody shown reads, would stand alone.
    graph.remove_nodes_from([name for name in list(graph) if graph.degree(name) == 0 and len(graph) > 1])
    return graph


def centred(row: Sequence[str], widths: dict[str, float], wide: float, number: int) -> dict[str, Place]:
    """The middles of the boxes of a row."""
    x, found = (wide - sum(widths[name] + GAP for name in row)) / 2, {}
    for name in row:
        found[name] = x + (GAP + widths[name]) / 2, STEP * (number + 0.5)
        x += widths[name] + GAP
    return found


def edge(start: Place, end: Place, leaves: bool, arrives: bool) -> str:
    """A curve from row to row; leaves, arrives: whether it begins and ends at a box."""
    (x1, y1), (x2, y2) = start, end
    y1, y2 = y1 + leaves * HEIGHT / 2, y2 - arrives * HEIGHT / 2
    bend = (y2 - y1) / 2
    path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity=".45"/>'


def box(node: Node, x: float, y: float, width: float) -> str:
    """A box with its label; merged operations have the colour of their merge."""
    colour = f"hsl({HUES[node.sites[-1] % len(HUES)]} 55% 50%)" if node.sites else "currentColor"
    opacity = ".28" if node.sites else ".06"
    frame = f'x="{x - width / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{width:.1f}" height="{HEIGHT}" rx="4"'
    rect = f'<rect {frame} fill="{colour}" fill-opacity="{opacity}" stroke="{colour}" stroke-opacity=".7"/>'
    return f'{rect}<text x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle">{label(node)}</text>'


def label(node: Node) -> str:
    """The word for a page."""
    return plain(node).replace("_", "&#95;").replace("<", "&lt;")


def plain(node: Node) -> str:
    """A kind of operation in a word."""
    kind = node.kind[:-2] if node.kind.endswith(("1d", "2d", "3d")) else node.kind
    return SHORT.get(kind, kind)
