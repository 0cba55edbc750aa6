"""Where two models that should compute the same part ways."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .capture.arguments import Inputs
from .compare import compare, tensors, undisturbed


@dataclass(eq=False)
class _Call:
    """The first call of a module: its tensors, and the numbers they had then (a later layer may write into them)."""

    inputs: list[Tensor]
    outputs: list[Tensor]

    def __post_init__(self) -> None:
        self.read, self.made = [t.clone() for t in self.inputs], [t.clone() for t in self.outputs]


def first_difference(a: nn.Module, b: nn.Module, inputs: Inputs) -> str | None:
    """The path of the first module that reads the same in both models and makes something else of it.

    A merged layer differs from the layer whose place it took until the layers it swallowed have passed, so a difference
    that is gone behind the module around it, or behind the next one, is none. None: no module of a path that both
    models have stands out.
    """
    mine, theirs = _recorded(a, inputs), _recorded(b, inputs)
    paths = [path for path in theirs if path and path in mine]
    made = {p: compare(mine[p].made, theirs[p].made).passed for p in paths}
    read = {p: compare(mine[p].read, theirs[p].read).passed for p in paths}
    apart = [p for p in paths if read[p] and not made[p]]
    return next((p for p in apart if not any(made[after] for after in _after(p, paths, mine))), None)


def _recorded(model: nn.Module, inputs: Inputs) -> dict[str, _Call]:
    """The first call of each module of a copy, in the order in which they end."""
    calls: dict[str, _Call] = {}
    twin = copy.deepcopy(model)

    def record(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.setdefault(path, _Call(tensors((args, kwargs)), tensors(output)))

        return hook

    for path, module in twin.named_modules():
        module.register_forward_hook(record(path), with_kwargs=True)
    undisturbed(twin, inputs)
    return calls


def _after(path: str, paths: list[str], calls: dict[str, _Call]) -> Iterator[str]:
    """The modules around one, and those that read what it made."""
    made = {id(t) for t in calls[path].outputs}
    for other in paths:
        around = path.startswith(f"{other}.")
        reads = other != path and not made.isdisjoint(id(t) for t in calls[other].inputs)
        if around or (reads and not other.startswith(f"{path}.")):
            yield other
