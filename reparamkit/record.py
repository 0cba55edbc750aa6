"""What a report shows of a model: its graph before and after, and small pictures of the weights."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, fx, nn

from .algebra.size import Size
from .capture.aliases import target_of
from .capture.captured import Captured
from .engine.counting import Shape
from .engine.naming import place_of
from .engine.reading import Reading
from .reporting import Node, Part, Picture
from .write.splice import Written

Sketch = dict[fx.Node, Node]
"""The nodes of one graph, in program order, and what the report says of each."""
PLAIN = (bool, int, float, str, torch.dtype, type(None))


# --- graphs -------------------------------------------------------------------------------------------


def sketch(reading: Reading, part: int, computing: set[fx.Node]) -> Sketch:
    """The graph as it is now. part: number of the captured part. computing: the nodes that compute something."""
    prefix = f"{part}:" if part else ""
    roles = {node: "compute" if node in computing else _role(reading, node) for node in reading.captured.graph.nodes}
    return {node: _node(reading, node, prefix, roles[node]) for node in reading.captured.graph.nodes}


def described(captured: Captured, drawn: Sketch) -> Part:
    """What the report says of a graph. drawn: the graph as it was captured."""
    layers = sum(node.is_layer for node in drawn.values())
    return Part(captured.frames[0].path, captured.origin.tier, layers, captured.origin.times, captured.origin.why)


def marked(sketches: Sequence[Sketch], sites: Mapping[fx.Node, Sequence[int]]) -> tuple[Node, ...]:
    """The nodes of all parts, with the numbers of the merges each is part of."""
    return tuple(
        replace(found, sites=tuple(sites[node])) if node in sites else found
        for each in sketches
        for node, found in each.items()
    )


def _node(reading: Reading, node: fx.Node, prefix: str, role: str) -> Node:
    captured = reading.captured
    return Node(
        prefix + node.name,
        node.op,
        _kind(captured, node),
        captured.path(node) if node.op not in ("placeholder", "output") else "",
        shorten(_detail(captured, node), 120),
        tuple(prefix + each.name for each in node.all_input_nodes),
        _shape(node, reading.shapes.get(node)),
        (),
        role,
        node in reading.read,
    )


def _role(reading: Reading, node: fx.Node) -> str:
    """Of a node that computes nothing."""
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    if node.op == "get_attr" or node in reading.constants:
        return "constant"
    return "size" if node in reading.sizes else "view"


def _kind(captured: Captured, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(captured.module(node)).__name__
    if node.op in ("placeholder", "output", "get_attr"):
        return {"placeholder": "input", "output": "output", "get_attr": "parameter"}[node.op]
    return target_of(node)


def _settings(module: nn.Module) -> str:
    # An attribute that was set later may be one that the forward takes, and torch does not know how to show.
    with suppress(AttributeError, TypeError):
        return module.extra_repr() if type(module).__module__.startswith("torch.nn") else ""
    return ""


def _detail(captured: Captured, node: fx.Node) -> str:
    """The settings of torch's own layers, and the plain arguments of a function."""
    if node.op == "call_module":
        return _settings(captured.module(node))
    if node.op in ("placeholder", "output", "get_attr"):
        return str(node.target) if node.op == "placeholder" else ""
    plain = [repr(value) for value in node.args if _is_plain(value)]
    return ", ".join([*plain, *(f"{name}={value!r}" for name, value in node.kwargs.items() if _is_plain(value))])


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, (list, tuple)) and all(isinstance(v, PLAIN) for v in value))


def _shape(node: fx.Node, known: Shape | None) -> tuple[int, ...] | None:
    """Sizes of the example inputs where there are any; -1 for a free size."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return tuple(map(int, value.shape))
    if known is None or known[1]:
        return None
    return tuple(_size(size) for size in known[0])


def _size(size: Size) -> int:
    return size.hint if size.known or size.traced else -1


# --- pictures -----------------------------------------------------------------------------------------

SIDE = 36
"""Rows and columns of a picture, at most."""
PIXELS = 3
"""Output pixels of which a full matrix over a map shows the row."""
INJECTION = "locality_injection"


@dataclass(frozen=True)
class _Weight:
    """A weight to be shown. name: of its layer. tensor: shape (out, in, *kernel)."""

    name: str
    tensor: Tensor
    merged: bool


def pictures(reading: Reading, written: Written) -> tuple[Picture, ...]:
    """Weights of the layers of a merge, and of what it made, while both are in the model."""
    captured = reading.captured
    weights = list(_weights(captured, written))
    found = _maps(reading, written, weights) if INJECTION in written.site.rules else []
    return tuple(found or [picture for weight in weights if (picture := _picture(weight)) is not None][-4:])


def _weights(captured: Captured, written: Written) -> Iterator[_Weight]:
    """The weights of layers that mix, the members' first."""
    for node in sorted(written.site.members, key=lambda n: (not place_of(n), n.name)):
        tensor = getattr(captured.module(node), "weight", None) if node.op == "call_module" else None
        if isinstance(tensor, Tensor) and tensor.dim() > 1:
            yield _Weight(place_of(node), tensor.detach(), False)
    for name, module in written.layers.items():
        tensor = getattr(module, "weight", None)
        if isinstance(tensor, Tensor) and tensor.dim() > 1:
            yield _Weight(place_of(written.anchors[name]) or type(module).__name__, tensor.detach(), True)


def _picture(weight: _Weight) -> Picture | None:
    """Kernels side by side, or the matrix if each has one number."""
    tensor = weight.tensor
    if tensor.numel() == 0:
        return None
    rows, columns = tensor.shape[:2]
    if math.prod(tensor.shape[2:]) == 1:
        return _drawn(weight, f"{rows} x {columns} matrix", tensor.reshape(rows, columns)[None, None, :SIDE, :SIDE])
    kernel = tensor.reshape(rows, columns, -1, tensor.shape[-1])
    height, width = kernel.shape[2:]
    tiles = kernel[: max(1, SIDE // height), : max(1, SIDE // width), :SIDE, :SIDE]
    shown = f"{tiles.shape[0]} x {tiles.shape[1]} of {rows} x {columns} kernels"
    return _drawn(weight, shown, tiles)


def _maps(reading: Reading, written: Written, weights: Sequence[_Weight]) -> list[Picture]:
    """Rows of a full matrix over a map, each as the map it reads, before and after; and the kernels beside it."""
    full = next((w for w in weights if w.merged and math.prod(w.tensor.shape[2:]) == 1), None)
    size = None if full is None else _map_size(reading, written, full.tensor.shape[:2])
    if full is None or size is None:
        return []
    pixels = _pixels(size)
    before = [w for w in weights if not w.merged and w.tensor.shape == full.tensor.shape][:1]
    kernels = [w for w in weights if not w.merged and w.tensor.shape[:2] != full.tensor.shape[:2]]
    kernels.sort(key=lambda w: -math.prod(w.tensor.shape[2:]))
    return [
        *(picture for w in kernels[:2] if (picture := _picture(w)) is not None),
        *(_rows(w, size, pixels) for w in (*before, full)),
    ]


def _map_size(reading: Reading, written: Written, matrix: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the map that a convolution among the members sees, if the matrix, of which these are the
    sizes, is from such maps to such maps.
    """
    for node in written.site.members:
        shape = _shape(node, reading.shapes.get(node))
        op = reading.captured.module(node) if node.op == "call_module" else None
        if isinstance(op, (nn.Conv1d, nn.Conv2d)) and shape is not None:
            height, width = shape[-2:] if isinstance(op, nn.Conv2d) else (1, shape[-1])
            if min(height, width) > 0 and height * width > 1 and not any(n % (height * width) for n in matrix):
                return height, width
    return None


def _pixels(size: tuple[int, int]) -> list[tuple[int, int]]:
    """A corner, a pixel inside and one on the right border."""
    height, width = size
    return list(dict.fromkeys([(0, 0), (height // 2, width // 2), (height - 1 - height // 4, width - 1)]))[:PIXELS]


def _rows(weight: _Weight, size: tuple[int, int], pixels: Sequence[tuple[int, int]]) -> Picture:
    height, width = size
    matrix = weight.tensor.flatten(1)
    rows = [matrix[i * width + j, : height * width].reshape(height, width)[:SIDE, :SIDE] for i, j in pixels]
    shown = "what output pixels " + ", ".join(map(str, pixels)) + " read of the map"
    return _drawn(weight, shown, torch.stack(rows)[None])


def _drawn(weight: _Weight, shown: str, tiles: Tensor) -> Picture:
    """tiles: shape (down, across, height, width)."""
    down, across, height, width = tiles.shape
    image = tiles.permute(0, 2, 1, 3).reshape(down * height, across * width).to("cpu", torch.float64)
    image = image.nan_to_num(0.0, 0.0, 0.0)
    largest = float(image.abs().max())
    scaled = (image / largest * 127 if largest else image).round().to(torch.int8)
    pixels = base64.b64encode(bytes(scaled.flatten().view(torch.uint8).tolist())).decode()
    title = f"{weight.name}: {shown}"
    return Picture(title, weight.merged, down * height, across * width, (height, width), largest, pixels)
