"""Which merges are faster where the model runs: each old piece is timed against the new one, on the example's sizes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from .capture.captured import Captured
from .errors import NotFusable
from .proof import needed
from .reasons import Kind
from .timing import FEWEST, clock, in_turns
from .write.splice import Written

SECONDS = 0.05
"""For one merge; more only if the fewest rounds take longer."""
Pair = tuple[fx.Node, frozenset[fx.Node]]
"""The value and the members of a merge."""


@dataclass(frozen=True)
class Trial:
    """Milliseconds of a piece as it is and merged; speedup: the median of their ratios within the rounds."""

    before: float
    after: float
    speedup: float


@dataclass(eq=False)
class Trials:
    """The judge of merges by time. known: pieces of equal code, sizes and device are timed once. found: per merge."""

    known: dict[str, Trial] = field(default_factory=dict)
    found: dict[Pair, Trial] = field(default_factory=dict)

    def judge(self, captured: Captured, written: Written) -> None:
        """Raises `NotFusable` if a merge is slower than what it replaces, or cannot be timed."""
        sources = _sources(captured, written)
        inputs = [_drawn(node) for node in sources]
        pieces = [
            _piece(captured, result, [captured.current(n) for n in sources] if moved else sources)
            for result, moved in ((written.site.value, False), (written.result, True))
        ]
        key = "\n".join([*map(_described, pieces), *map(_layout, inputs)])
        if key not in self.known:
            self.known[key] = _timed(pieces, inputs)
        trial = self.found[written.site.value, written.site.members] = self.known[key]
        if trial.speedup < 1:
            times = f"{trial.before:.3g} ms as it is, {trial.after:.3g} ms merged"
            raise NotFusable(f"it is slower when merged: {times}, measured on {inputs[0].device.type}", Kind.COST)


def _sources(captured: Captured, written: Written) -> list[fx.Node]:
    """The values a merge reads, in program order."""
    site = written.site
    if site.placed is None:
        assert site.replacement is not None
        return list(dict.fromkeys(site.replacement.inputs))
    return [node for node in captured.graph.nodes if node.name in site.placed.form.terms]


def _drawn(node: fx.Node) -> Tensor:
    """Random numbers of the sizes, dtype, device and layout that the value had in the example."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise NotFusable(f"it cannot be timed: the sizes of {node} are not known", Kind.COST)
    drawn = torch.randn(value.shape).to(value.device, value.dtype)
    channels_last = value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    return drawn.contiguous(memory_format=torch.channels_last) if channels_last else drawn


def _piece(captured: Captured, result: fx.Node, sources: Sequence[fx.Node]) -> fx.GraphModule:
    """The part of the graph from the sources to a value as a module, under names that equal parts share."""
    graph, root = fx.Graph(), dict[str, Any]()

    def moved(given: Any) -> Any:
        return fx.node.map_arg(given, made.__getitem__)

    made: dict[fx.Node, Any] = {node: graph.placeholder(f"x{k}") for k, node in enumerate(sources)}
    for node in needed(captured, result, made, as_traced=True):
        target = node.target
        if node.op in ("call_module", "get_attr"):
            target = f"m{len(root)}"
            root[target] = captured.module(node) if node.op == "call_module" else captured.attribute(node)
        made[node] = graph.create_node(node.op, target, moved(node.args), moved(node.kwargs))
    graph.output(made[result])
    return fx.GraphModule(root, graph)


def _described(piece: fx.GraphModule) -> str:
    """What the time of a piece depends on."""
    state: Mapping[str, Tensor] = piece.state_dict()
    return f"{piece.code}{piece}{[(name, _layout(tensor)) for name, tensor in state.items()]}"


def _layout(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"


def _timed(pieces: Sequence[fx.GraphModule], inputs: Sequence[Tensor]) -> Trial:
    try:
        runs = [partial(piece, *inputs) for piece in pieces]
        before, after = in_turns(runs, FEWEST, SECONDS, clock=clock(inputs[0].device))
    except Exception as error:
        raise NotFusable(f"it cannot be timed ({type(error).__name__}: {error})", Kind.COST) from error
    speedup = statistics.median(a / b for a, b in zip(before, after, strict=True))
    return Trial(statistics.median(before), statistics.median(after), speedup)
