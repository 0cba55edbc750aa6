"""The arguments of a call of a model: as they are, with every tensor named, and run."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..running.draws import random_state_kept
from ..running.precision import full_precision
from ..running.trees import leaves, map_leaves
from ..tracing.tracer import Named


@dataclass(frozen=True)
class Inputs:
    """Example inputs of a model: the positional and keyword arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _leaves(self) -> list[Any]:
        return leaves((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in them."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    @property
    def out_of_sight(self) -> str | None:
        """The name of a class in which tensors are given that is neither a container of torch's nor a dataclass, if
        there are no others.
        """
        held = (leaf for leaf in self._leaves if any(isinstance(each, Tensor) for each in _inside(leaf)))
        return None if self.tensors else next((type(leaf).__name__ for leaf in held), None)

    def copied(self) -> Inputs:
        """The same inputs in other memory: a forward may write into its arguments."""
        return Inputs(*copy.deepcopy((self.args, dict(self.kwargs))))


def _inside(held: object) -> list[Any]:
    """What an object has as attributes, or a dictionary of a class of its own as values."""
    own = getattr(held, "__dict__", {}) if not isinstance(held, (type, nn.Module)) else {}
    return leaves([*own.values(), *(held.values() if isinstance(held, dict) else ())])


@dataclass(frozen=True)
class _Names:
    """Arguments of a call in which every tensor is named, and the tensors by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: dict[str, Tensor]


def named_arguments(model: nn.Module, inputs: Inputs | None) -> _Names:
    """The arguments of a call of a model; without inputs those that it has to be given."""
    signature = inspect.signature(model.forward)
    values: dict[str, Tensor] = {}
    kwargs: dict[str, Any] = {p.name: Named(p.name) for p in signature.parameters.values() if _required(p)}
    if inputs is not None:
        # What is no tensor (a cache, a list) stays itself while it is traced, and may be written into.
        own = inputs.copied()
        bound = signature.bind(*own.args, **own.kwargs)
        kwargs = {name: _named(name, value, values) for name, value in bound.arguments.items()}
    args: tuple[Any, ...] = ()
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= kwargs.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and parameter.name in kwargs:
            before = [n for n in signature.parameters if n in kwargs]
            before = before[: before.index(parameter.name)]
            args = (*args, *(kwargs.pop(n) for n in before), *kwargs.pop(parameter.name))
        elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in kwargs:
            args = (*args, kwargs.pop(parameter.name))
    return _Names(args, kwargs, values)


def _required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _named(name: str, value: Any, values: dict[str, Tensor]) -> Any:
    """The argument with names in the place of tensors; `values` receives the tensors."""
    numbers = itertools.count()

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = name if leaf is value else f"{name}_{next(numbers)}"
        values[own] = leaf
        return Named(own)

    return map_leaves(change, value)


def run(model: nn.Module, inputs: Inputs) -> Any:
    """One real run without gradients, with all digits of float32; the random state of the process stays as it was."""
    with random_state_kept(), full_precision(), torch.no_grad():
        return model(*inputs.args, **inputs.kwargs)
