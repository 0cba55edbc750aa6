"""Draw the pictures of the README and the docs, from real graphs and real weights.

    pip install -e '.[docs,examples]' matplotlib && python docs/pictures.py

`fusion.svg`: the README's block and a RepMLP block, before and after `reparamkit.fuse`. What is drawn comes from the
two captured graphs, what is coloured from the report. `injection.png`: rows of FC3 of a RepMLPNet that is trained here
on scikit-learn's digits, before and after Locality Injection.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import networkx as nx
import torch
from check_snippets import ROOT, pages, run_page
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import reparamkit

sys.path.insert(0, str(ROOT / "examples" / "repmlpnet"))

from data import load_data
from model import RepMLPBlock, create_model, randomize_batch_norm

IMAGES = ROOT / "docs" / "img"
STYLE = {"font.family": "DejaVu Sans", "svg.hashsalt": "reparamkit", "svg.fonttype": "path"}
INK, SOFT, LINE = "#1f2933", "#66727f", "#8a96a3"
PLAIN = ("#f3f5f7", "#b9c2cb")
MERGED = (("#cfe8e4", "#1d8a7d"), ("#fbe0c3", "#c8741a"))
"""Fill and edge of the pieces of a merge and of what they become, per block."""


# --- graphs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """A box: what is computed, and the name of the layer."""

    kind: str
    path: str
    merged: bool


def operations(model: fx.GraphModule, merged: Iterable[str]) -> nx.DiGraph:
    """The operations of a graph and who reads whom; views and sizes are left out.

    merged: names of the operations to colour, as the report has them.
    """
    names = set(merged)
    graph = nx.DiGraph()
    shown: dict[fx.Node, str | None] = {}
    for node in model.graph.nodes:
        if node.op in ("placeholder", "output"):
            graph.add_node(node.op, box=None)
            shown[node] = node.op
        elif (box := operation(model, node, names)) is not None:
            graph.add_node(node.name, box=box)
            shown[node] = node.name
        else:
            # A view stands for the tensor it views; its other arguments are sizes.
            shown[node] = shown[node.args[0]] if isinstance(node.args[0], fx.Node) else None
            continue
        for each in node.all_input_nodes:
            if shown[each] is not None:
                graph.add_edge(shown[each], shown[node])
    return graph


def operation(model: fx.GraphModule, node: fx.Node, merged: set[str]) -> Operation | None:
    """The box of a node; None for views and sizes."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return Operation(kind(module), str(node.target), str(node.target) in merged)
    name = str(getattr(node.target, "__name__", node.target))
    shown = {"adaptive_avg_pool2d": "mean", "relu": "ReLU", "sigmoid": "sigmoid", "mul": "×", "add": "+"}
    return Operation(shown[name], "", name in merged) if name in shown else None


def kind(module: nn.Module) -> str:
    """A layer in a word or two."""
    if isinstance(module, nn.Conv2d):
        return f"conv {module.kernel_size[0]}×{module.kernel_size[1]}"
    return {nn.BatchNorm2d: "batch norm", nn.ReLU: "ReLU", nn.Linear: "linear"}[type(module)]


def before_and_after(block: nn.Module, x: Tensor) -> tuple[nx.DiGraph, nx.DiGraph]:
    """The operations of a block as it is, and fused, with the members of its merge marked in both."""
    found = reparamkit.explain(block, x)
    members = [name for merge in found.merges for name in merge.members]
    before = reparamkit.fuse(block, x, skip="*", as_graph=True)
    after = reparamkit.fuse(block, x, as_graph=True)
    assert isinstance(before, fx.GraphModule)
    assert isinstance(after, fx.GraphModule)
    return operations(before, members), operations(after, [merge.path for merge in found.merges])


# --- layout: rows by longest path, columns by the mean of the neighbours --------------------------------


def layout(graph: nx.DiGraph) -> tuple[nx.DiGraph, dict[str, tuple[float, float]]]:
    """The graph with an invisible node wherever an edge crosses a row, and a place (column, row) for each node."""
    row = {name: k for k, names in enumerate(nx.topological_generations(graph)) for name in names}
    drawn = nx.DiGraph()
    drawn.add_nodes_from(graph.nodes(data=True))
    for a, b in graph.edges:
        between = [f"{a}>{b}@{k}" for k in range(row[a] + 1, row[b])]
        row |= {name: row[a] + 1 + k for k, name in enumerate(between)}
        nx.add_path(drawn, [a, *between, b])
    column = {name: 0.0 for name in drawn}
    rows = [[n for n in drawn if row[n] == k] for k in range(max(row.values()) + 1)]
    for sweep in range(200):
        for names in rows if sweep % 2 else reversed(rows):
            spread(names, drawn, column)
    middle = column["placeholder"]
    return drawn, {name: (column[name] - middle, float(row[name])) for name in drawn}


def spread(names: list[str], graph: nx.DiGraph, column: dict[str, float]) -> None:
    """Move the nodes of a row towards their neighbours, keeping their order and one column between them."""
    for name in names:
        near = [column[n] for n in (*graph.predecessors(name), *graph.successors(name))]
        column[name] = sum(near) / len(near)
    for a, b in zip(names, names[1:], strict=False):
        column[b] = max(column[b], column[a] + 1)
    drift = sum(column[n] for n in names) / len(names)
    wanted = [column[m] for n in names for m in (*graph.predecessors(n), *graph.successors(n))]
    for name in names:
        column[name] += sum(wanted) / len(wanted) - drift


# --- drawing ----------------------------------------------------------------------------------------


def draw(axes: Axes, graph: nx.DiGraph, left: float, down: float, colours: tuple[str, str]) -> float:
    """Draw a graph with its leftmost column at `left`, moved `down` rows; returns its last column."""
    drawn, place = layout(graph)
    first = min(x for x, _ in place.values())
    place = {name: (x - first + left, -(y + down)) for name, (x, y) in place.items()}
    for a, b in drawn.edges:
        arrow(axes, place[a], place[b], "@" not in b, *(drawn.nodes[n].get("box") for n in (a, b)))
    for name in graph:
        box(axes, place[name], graph.nodes[name]["box"], colours)
    return max(x for x, _ in place.values())


WIDTH, HEIGHT, SMALL = 0.88, 0.60, 0.34


def extent(box: Operation | None, dummy: bool = False) -> float:
    """Half the height of a box."""
    if dummy:
        return 0.0
    return 0.16 if box is None else HEIGHT / 2


def arrow(
    axes: Axes, a: tuple[float, float], b: tuple[float, float], head: bool, box_a: Any, box_b: Any
) -> None:
    start = (a[0], a[1] - (extent(box_a) if box_a is not None else 0.0))
    stop = (b[0], b[1] + (extent(box_b) if head else 0.0))
    style = {"arrowstyle": "-|>" if head else "-", "color": LINE, "lw": 1.3, "shrinkA": 0, "shrinkB": 1 if head else 0}
    axes.annotate("", stop, start, arrowprops={**style, "mutation_scale": 10})


def box(axes: Axes, at: tuple[float, float], found: Operation | None, colours: tuple[str, str]) -> None:
    x, y = at
    if found is None:
        axes.plot([x], [y], marker="o", ms=6, color=LINE, zorder=3)
        return
    fill, edge = colours if found.merged else PLAIN
    width = WIDTH if found.path else SMALL + 0.30 * (len(found.kind) > 1)
    patch = FancyBboxPatch(
        (x - width / 2, y - HEIGHT / 2), width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08",
        fc=fill, ec=edge, lw=1.3, zorder=3,
    )
    axes.add_patch(patch)
    axes.text(x, y + (0.10 if found.path else 0), found.kind, ha="center", va="center", color=INK, size=11, zorder=4)
    if found.path:
        axes.text(x, y - 0.15, found.path, ha="center", va="center", color=SOFT, size=8.5, zorder=4)


def fusion(blocks: Mapping[str, tuple[nn.Module, Tensor]]) -> None:
    """Blocks side by side, each before and after."""
    figure, axes = plt.subplots()
    column, bottom = 0.0, 0.0
    for (title, (block, x)), colours in zip(blocks.items(), MERGED, strict=True):
        before, after = before_and_after(block, x)
        last = draw(axes, before, column, 0, colours)
        start = last + 1.75
        draw_after = draw(axes, after, start, 0, colours)
        column = draw_after + 1.6
        bottom = max(bottom, *(len(list(nx.topological_generations(g))) for g in (before, after)))
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.axis("off")
    figure.set_size_inches(column * 1.0, bottom * 0.9)
    figure.savefig(IMAGES / "fusion.svg", bbox_inches="tight", pad_inches=0.15, facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    pass
