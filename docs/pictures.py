"""Draw the pictures of the README and the docs, from real graphs and real weights.

    pip install -e '.[docs,examples]' matplotlib && python docs/pictures.py    all of them, or those named

``fusion.svg``: the README's block and a RepMLP block, before and after `reparamkit.fuse`. What is drawn comes from
the two graphs, what is coloured from the report. ``injection.png``: rows of FC3 in a RepMLPNet, before and after
Locality Injection; the net is trained here, on scikit-learn's digits. ``join.svg`` and ``border.svg`` are in
`algebra_pictures`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import networkx as nx
import torch
from algebra_pictures import border, join
from check_snippets import ROOT, namespace, run, snippets
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Curve
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

import reparamkit

sys.path.insert(0, str(ROOT / "examples" / "repmlpnet"))

from data import load_data
from model import RepMLPBlock, RepMLPNet, create_model, randomize_batch_norm

IMAGES = ROOT / "docs" / "img"
STYLE = {"font.family": "DejaVu Sans", "svg.hashsalt": "reparamkit", "svg.fonttype": "path"}
INK, SOFT, LINE = "#1f2933", "#5d6975", "#8a96a3"
PLAIN = ("#f3f5f7", "#b9c2cb")
MERGED = (("#cfe8e4", "#1d8a7d"), ("#fbe0c3", "#c8741a"))
"""Fill and edge of the members of a merge and of the layer they become, per block."""


# --- graphs -----------------------------------------------------------------------------------------

TIMES = "\N{MULTIPLICATION SIGN}"
FUNCTIONS = {"adaptive_avg_pool2d": "mean", "relu": "ReLU", "sigmoid": "sigmoid", "mul": TIMES, "add": "+"}


@dataclass(frozen=True)
class Operation:
    """A box: what is computed, the name of the layer, whether a merge concerns it."""

    kind: str
    path: str
    merged: bool


def before_and_after(block: nn.Module, x: Tensor) -> tuple[nx.DiGraph, nx.DiGraph]:
    """The operations of a block as it is, and fused, with the members of the merge marked in both."""
    before = reparamkit.fuse(block, x, skip="*", as_graph=True)
    after = reparamkit.fuse(block, x, as_graph=True)
    (merge,) = reparamkit.report(after).merges
    return operations(before, x, {*merge.members}), operations(after, x, {merge.path})


def operations(model: nn.Module, x: Tensor, merged: set[str]) -> nx.DiGraph:
    """The operations of a flat graph and who reads whom; views and sizes are left out.

    merged: names of the operations to mark, as the report has them.
    """
    assert isinstance(model, fx.GraphModule)
    ShapeProp(model).propagate(x)
    graph = nx.DiGraph()
    seen: dict[fx.Node, str] = {}
    for node in model.graph.nodes:
        sources = [seen[each] for each in node.all_input_nodes if each in seen]
        found = operation(model, node, merged)
        if found is None and node.op not in ("placeholder", "output"):
            # A view is not drawn: who reads it reads what it views.
            if sources and "tensor_meta" in node.meta:
                seen[node] = sources[0]
            continue
        seen[node] = node.name
        graph.add_node(node.name, box=found)
        graph.add_edges_from((source, node.name) for source in sources)
    return graph


def operation(model: fx.GraphModule, node: fx.Node, merged: set[str]) -> Operation | None:
    """What to write into the box of a node; None for views, sizes, inputs and outputs."""
    if node.op == "call_module":
        return Operation(kind(model.get_submodule(str(node.target)), node), str(node.target), node.target in merged)
    name = getattr(node.target, "__name__", node.target)
    return Operation(FUNCTIONS[name], "", name in merged) if name in FUNCTIONS else None


def kind(module: nn.Module, node: fx.Node) -> str:
    """A layer in two words."""
    if not isinstance(module, nn.Conv2d):
        return {nn.BatchNorm2d: "batch norm", nn.ReLU: "ReLU"}[type(module)]
    # A 1x1 convolution of a map of one pixel is a fully connected layer.
    if node.all_input_nodes[0].meta["tensor_meta"].shape[2:] == (1, 1):
        return "FC"
    return f"conv {TIMES.join(map(str, module.kernel_size))}"


# --- layout: rows by longest path, columns by the mean of the neighbours --------------------------------

Place = tuple[float, float]
ACROSS, DOWN = 1.22, 0.84
"""Between the middles of two boxes."""


def layout(graph: nx.DiGraph) -> tuple[nx.DiGraph, dict[str, Place]]:
    """The graph with an invisible node wherever an edge crosses a row, and a place for each node."""
    row = {name: k for k, names in enumerate(nx.topological_generations(graph)) for name in names}
    drawn = nx.DiGraph()
    drawn.add_nodes_from(graph.nodes(data=True))
    for a, b in graph.edges:
        between = [f"{a}>{b}@{k}" for k in range(row[a] + 1, row[b])]
        row |= {name: row[a] + 1 + k for k, name in enumerate(between)}
        nx.add_path(drawn, [a, *between, b])
    rows: list[list[str]] = [[] for _ in range(max(row.values()) + 1)]
    for name in nx.dfs_preorder_nodes(drawn, next(iter(graph))):
        rows[row[name]].append(name)
    column = {name: ACROSS * k for names in rows for k, name in enumerate(names)}
    for sweep in range(400):
        for names in rows if sweep % 2 else rows[::-1]:
            relax(names, drawn, column)
    left = min(column.values())
    return drawn, {name: (column[name] - left, -DOWN * row[name]) for name in drawn}


def relax(names: list[str], graph: nx.DiGraph, column: dict[str, float]) -> None:
    """Move the nodes of a row to the mean of their neighbours, as far as they leave each other room."""
    wanted = {}
    for name in names:
        edges = [*((n, name) for n in graph.predecessors(name)), *((name, n) for n in graph.successors(name))]
        pulls = [(pull(graph, a, b), column[b if a == name else a]) for a, b in edges]
        wanted[name] = column[name] = sum(w * x for w, x in pulls) / sum(w for w, _ in pulls)
    for a, b in pairwise(names):
        column[b] = max(column[b], column[a] + room(graph.nodes[a], graph.nodes[b]))
    drift = sum(column[n] - wanted[n] for n in names) / len(names)
    for name in names:
        column[name] -= drift


def pull(graph: nx.DiGraph, a: str, b: str) -> float:
    """Layers in a row want to stand straight."""
    return 30 if graph.out_degree(a) == graph.in_degree(b) == 1 else 1


def room(*sides: Mapping[str, object]) -> float:
    """How far two neighbours in a row stay apart; what has no layer's name is narrow."""
    wide = [isinstance(found := side.get("box"), Operation) and bool(found.path) for side in sides]
    return ACROSS * (0.6 + 0.2 * sum(wide))


# --- drawing ----------------------------------------------------------------------------------------

WIDTH, HEIGHT = 1.08, 0.52


def fusion(blocks: Mapping[str, tuple[nn.Module, Tensor]]) -> None:
    """Blocks side by side, each before and after."""
    figure, axes = plt.subplots()
    left, bottom = 0.0, 0.0
    for (title, (block, x)), colours in zip(blocks.items(), MERGED, strict=True):
        before, after = before_and_after(block, x)
        right, low = draw(axes, before, left, colours)
        arrow = {"arrowstyle": "simple,head_width=.7,head_length=.7,tail_width=.25", "color": colours[1]}
        axes.annotate("", (right + 1.3, low / 2), (right + 0.75, low / 2), arrowprops={**arrow, "mutation_scale": 24})
        end, _ = draw(axes, after, right + 2.1, colours)
        axes.text((left + end) / 2, 0.45, title, ha="center", color=INK, size=13, weight="bold")
        left, bottom = end + 1.75, min(bottom, low)
    axes.set(xlim=(-0.65, left - 1.1), ylim=(bottom - 0.2, 0.8), aspect="equal")
    axes.axis("off")
    figure.set_size_inches(left - 0.45, 1.0 - bottom)
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(IMAGES / "fusion.svg", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def draw(axes: Axes, graph: nx.DiGraph, left: float, colours: tuple[str, str]) -> Place:
    """Draw a graph from `left` on; returns its last column and its last row."""
    drawn, place = layout(graph)
    place = {name: (x + left, y) for name, (x, y) in place.items()}
    for a, b in drawn.edges:
        draw_edge(axes, drawn, place, a, b)
    for name in graph:
        draw_box(axes, place[name], graph.nodes[name]["box"], colours)
    return max(x for x, _ in place.values()), min(y for _, y in place.values())


def draw_edge(axes: Axes, graph: nx.DiGraph, place: Mapping[str, Place], a: str, b: str) -> None:
    """A curve that leaves and arrives vertically, so that the pieces of a long one join."""
    (x1, y1), (x2, y2) = place[a], place[b]
    y1, y2 = y1 - margin(graph.nodes[a]), y2 + margin(graph.nodes[b])
    ends = "box" in graph.nodes[b]
    bend, tip = 0.55 * (y1 - y2), 0.08 if ends else 0.0
    curve = Curve([(x1, y1), (x1, y1 - bend), (x2, y2 + bend), (x2, y2 + tip)], [1, 4, 4, 4])
    axes.add_patch(PathPatch(curve, fc="none", ec=LINE, lw=1.3, capstyle="butt"))
    if ends:
        axes.add_patch(Polygon([(x2, y2), (x2 - 0.05, y2 + 0.12), (x2 + 0.05, y2 + 0.12)], fc=LINE, ec="none"))


def margin(node: Mapping[str, object]) -> float:
    """How far from the middle of a node its arrows end."""
    if "box" not in node:
        return 0.0
    return 0.06 if node["box"] is None else HEIGHT / 2


def draw_box(axes: Axes, at: Place, found: Operation | None, colours: tuple[str, str]) -> None:
    """A layer, or the dot of an input or output."""
    x, y = at
    if found is None:
        axes.plot([x], [y], marker="o", ms=6, color=LINE, zorder=3)
        return
    fill, edge = colours if found.merged else PLAIN
    width = WIDTH if found.path else max(0.4, 0.3 + 0.08 * len(found.kind))
    corner, rounded = (x - width / 2, y - HEIGHT / 2), "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch(corner, width, HEIGHT, boxstyle=rounded, fc=fill, ec=edge, lw=1.3, zorder=3))
    style = {"ha": "center", "va": "center", "zorder": 4}
    axes.text(x, y + (0.1 if found.path else 0), found.kind, color=INK, size=11.5, **style)
    axes.text(x, y - 0.12, found.path, color=SOFT, size=9, **style)


def readme_block() -> nn.Module:
    """The block of the README's first example."""
    page = ROOT / "README.md"
    with namespace(page) as names:
        run(next(snippets(page.read_text())), page, names)
    block: nn.Module = names["RepVGGBlock"](64)
    return block.eval()


def repmlp_block() -> nn.Module:
    """A RepMLP block with 8 x 8 partitions."""
    block = RepMLPBlock(64, 8, 8, share_sets=4).eval()
    randomize_batch_norm(block)
    return block


# --- Locality Injection -------------------------------------------------------------------------------

SIDE = 8


def trained(epochs: int = 12) -> RepMLPNet:
    """A small RepMLPNet whose first stage sees the whole map of 8 x 8 patches, trained on the digits."""
    torch.manual_seed(0)
    model = create_model("repmlpnet_tiny32", 10, in_channels=1, partitions=(SIDE, 4, 2))
    batches = load_data("digits", 32).train_batches(64)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * len(batches))
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def injection(model: RepMLPNet) -> None:
    """FC3 of the first block: what some output pixels read of the map, before and after."""
    fused = reparamkit.fuse(model, torch.zeros(1, 1, 32, 32))
    name = "stages.0.0.repmlp_block.fc3.weight"
    before, after = (m.get_parameter(name).detach()[:, :, 0, 0] for m in (model, fused))
    pixels = ((0, 0), (2, 5), (4, 3), (7, 4))
    rows = [[m[i * SIDE + j].reshape(SIDE, SIDE) for i, j in pixels] for m in (before, after)]
    limit = float(torch.stack(rows[1]).abs().max())
    figure, table = plt.subplots(2, len(pixels), figsize=(8.4, 4.3), layout="constrained")
    for line, maps, title in zip(table, rows, ("FC3 as trained", "FC3 after the merge"), strict=True):
        line[0].set_ylabel(title, color=INK, size=11, labelpad=8)
        for axes, weights, pixel in zip(line, maps, pixels, strict=True):
            shown = draw_map(axes, weights, pixel, limit)
    for axes, pixel in zip(table[0], pixels, strict=True):
        axes.set_title(f"output pixel {pixel}", color=INK, size=11)
    bar = figure.colorbar(shown, ax=table, fraction=0.03, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=LINE, labelcolor=SOFT, labelsize=9)
    figure.savefig(IMAGES / "injection.png", dpi=120, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def draw_map(axes: Axes, weights: Tensor, pixel: tuple[int, int], limit: float) -> AxesImage:
    """A row of a matrix as the map it reads; the output pixel has a frame."""
    i, j = pixel
    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="none", ec=INK, lw=1.5, clip_on=False, zorder=3))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_edgecolor(PLAIN[1])
    return axes.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)


def blocks() -> None:
    """The picture of the README."""
    fusion(
        {
            "RepVGG block": (readme_block(), torch.randn(1, 64, 16, 16)),
            "RepMLP block": (repmlp_block(), torch.randn(2, 64, 16, 16)),
        }
    )


PICTURES = {"fusion": blocks, "injection": lambda: injection(trained()), "join": join, "border": border}

if __name__ == "__main__":
    plt.rcParams.update(STYLE)
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
