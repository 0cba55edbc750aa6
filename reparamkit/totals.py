"""What a model costs: operations, FLOPs and stored numbers, from the graphs of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from torch import Tensor, fx, nn

from .capture.aliases import target_name, target_of
from .engine.norms import second_flops
from .engine.placing import layer_cost, node_cost
from .engine.reading import Reading
from .layers.price import Cost, numel
from .record import Sketch, sketch
from .reporting import Totals


class Measured(NamedTuple):
    """What a model costs, and a sketch of each of its parts."""

    totals: Totals
    sketches: list[Sketch]


def measured(model: nn.Module, readings: Sequence[Reading]) -> Measured:
    """Measure a model by readings of its parts."""
    sketches = [sketch(reading, number, counted(reading)) for number, reading in enumerate(readings)]
    return Measured(_totals(model, readings), sketches)


def _totals(model: nn.Module, readings: Sequence[Reading]) -> Totals:
    """Count a model from the graphs of its parts."""
    parameters = sum(p.numel() for p in model.parameters())
    paths = [{*reading.captured.names(reading.captured.frames[0].path)} for reading in readings]
    parts = set().union(*paths)
    counts = [_counted(reading, parts - own) for reading, own in zip(readings, paths, strict=True)]
    launches, flops = map(sum, zip(*counts, strict=True))
    return Totals(parameters, numbers(model), launches, flops)


def _counted(reading: Reading, parts: Set[str]) -> tuple[int, int]:
    """The operations and FLOPs of a part, in all its runs. parts: paths of others, whose calls are counted there."""
    own = [node for node in reading.captured.graph.nodes if node.op != "call_module" or node.target not in parts]
    affine = sum((node_cost(reading, node) for node in own if node in reading.read), Cost())
    opaque = [node for node in own if _is_opaque(node, reading)]
    flops = affine.flops + second_flops(reading) + _sums(reading, opaque)
    times = reading.captured.origin.times
    return times * (affine.launches + len(opaque)), times * flops


def numbers(model: nn.Module) -> int:
    """Floating-point numbers in parameters and buffers (counters are not weights)."""
    return sum(t.numel() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())


def counted(reading: Reading) -> set[fx.Node]:
    """The nodes that compute something: the operations that are counted."""
    affine = {n for n in reading.read if node_cost(reading, n).launches}
    return affine | {node for node in reading.captured.graph.nodes if _is_opaque(node, reading)}


def _sums(reading: Reading, opaque: Iterable[fx.Node]) -> int:
    """FLOPs of sums that were not read as affine by themselves, one per element; nominal sizes where the rank is open.

    A merge over earlier values counts such sums in its price, so the totals have to.
    """
    names = ((node, target_name(node, reading.captured.module)) for node in opaque if node in reading.shapes)
    passes = [node for node, name in names if name.rstrip("_") in PASSES]
    summed = sum((layer_cost(reading.sums[node], 0) for node in passes if node in reading.sums), Cost())
    others = [node for node in passes if node not in reading.sums]
    return summed.flops + sum(numel(reading.sizes_of(node) or reading.shapes[node][0]) for node in others)


PASSES = frozenset(["add", "iadd", "sub", "isub", "sum", "mean", "stack", "cat", "concat"])
"""Sums, and what puts values side by side."""


def _is_opaque(node: fx.Node, reading: Reading) -> bool:
    """Whether a node computes a tensor and is not affine: activations, gates, attention."""
    known = node in reading.read or node in reading.sizes or node in reading.constants
    return node.op.startswith("call") and not known and _computes(node)


VIEWS = frozenset(
    str.split("""
    chunk diagonal dsplit even_part expand expand_as flatten getitem hsplit mT movedim moveaxis narrow
    part permute reshape reshape_as section select split squeeze swapaxes swapdims T t taken tensor_split transpose
    unbind unflatten unsqueeze view view_as vsplit
    """)
)
IDLE = VIEWS | {"getattr", "size", "_assert"}
"""Calls that compute no numbers: views, questions and checks."""


def _computes(node: fx.Node) -> bool:
    value = node.meta.get("val")
    name = target_of(node)
    return name not in IDLE and not name.startswith("expect") and (value is None or isinstance(value, Tensor))
