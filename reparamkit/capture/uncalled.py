"""The modules of a model that nothing calls, such as heads for training, or the other half of a model for two tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from .captured import Captured
from .paths import children_of, has_tensors, module_at


def uncalled(
    model: nn.Module, called: Set[nn.Module], is_leaf: Callable[[nn.Module], bool], path: str = ""
) -> Iterator[str]:
    """The paths of the outermost modules with code and tensors of which nothing is `called`, but for what computes the
    weight of another.
    """
    for name, child in children_of(model, path):
        if is_leaf(child) or isinstance(child, ParametrizationList) or type(child).forward is nn.Module.forward:
            continue
        if not called.isdisjoint(child.modules()):
            yield from uncalled(child, called, is_leaf, name)
        elif has_tensors(child):
            yield name


def called(
    model: nn.Module, captured: Iterable[Captured], left: Iterable[str], calls: Mapping[str, int]
) -> set[nn.Module]:
    """The modules that a run or the code that was traced calls. left: paths of those that were not traced. calls: how
    often a run called each, by path.
    """
    found = {module for path in (*left, *calls) if (module := module_at(model, path)) is not None}
    for part in captured:
        found |= {frame.module for frame in part.frames}
        found |= {part.module(node) for node in part.graph.find_nodes(op="call_module")}
        found |= {module for path in part.code.callers if (module := module_at(model, path)) is not None}
    return found
