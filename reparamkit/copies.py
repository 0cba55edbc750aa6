"""The copy of a model that is worked on: it shares the tensors of the original until it is done."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .capture.captured import storage
from .errors import InvalidInputError
from .layers.hooks import AFTER, BEFORE, GRADIENTS
from .running.state import CONTAINERS, State
from .running.trees import leaves, map_leaves


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the tensors, so that nothing large is copied before it is needed."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    # The weight that a weight norm left behind has a history, and such tensors cannot be copied.
    memo |= {id(t): t.detach() for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    # So has what a forward remembers of its parameters, in a dictionary by device or size.
    remembered = leaves([list(vars(m).values()) for m in model.modules()])
    memo |= {id(t): t.detach() for t in remembered if isinstance(t, Tensor) and not t.is_leaf}
    memo.update((id(each), each) for each in _filled_by_hooks(model))
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:
        raise InvalidInputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); pass inplace=True to change it itself"
        ) from error
    if not _is_copy(made, model):
        raise InvalidInputError(
            "copy.deepcopy of the model gives no copy of it, with the same weights and other modules (has it a"
            " __deepcopy__ or __reduce__ of its own?); pass inplace=True to change it itself"
        )
    _take_modes(made, model)
    _bind_hooks(made, memo)
    return made


def _hooks_of(model: nn.Module) -> Iterator[tuple[dict[Any, Any], Any, FunctionType]]:
    """The hooks of all modules that are plain functions: the table, the key in it, and the function."""
    names = (BEFORE, AFTER, *GRADIENTS)
    tables = (vars(module)[name] for module in model.modules() for name in names if name in vars(module))
    for table in tables:
        yield from ((table, key, hook) for key, hook in table.items() if isinstance(hook, FunctionType))


def _filled_by_hooks(model: nn.Module) -> Iterator[Any]:
    """The containers among the attributes of modules that hooks know by a global name: no copy of a hook fills another,
    so that the copy of the model has the same.
    """
    own = {id(value) for module in model.modules() for value in vars(module).values() if type(value) in CONTAINERS}
    for _, _, hook in _hooks_of(model):
        named = (hook.__globals__.get(name) for name in hook.__code__.co_names)
        yield from (value for value in named if id(value) in own)


def _bind_hooks(made: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let hooks that were made in the code of a model, and know it or its containers, know the copy (deepcopy takes a
    function for a constant).
    """
    for table, key, hook in list(_hooks_of(made)):
        known = [_content(cell) for cell in hook.__closure__ or ()]
        copied = [memo.get(id(each), each) if isinstance(each, (nn.Module, *CONTAINERS)) else each for each in known]
        if any(a is not b for a, b in zip(known, copied, strict=True)):
            closure = tuple(map(CellType, copied))
            bound = FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, closure)
            bound.__kwdefaults__ = hook.__kwdefaults__
            table[key] = bound


def _content(cell: CellType) -> Any:
    """What is in a cell; nothing if its variable was not set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _take_modes(made: nn.Module, model: nn.Module) -> None:
    """Let a copy be in the mode of the original: it may have been made anew, and have another graph for each mode."""
    pairs = [(a, b) for a, b in zip(made.modules(), model.modules(), strict=False) if a.training != b.training]
    if pairs:
        made.train(model.training)
    for a, b in pairs:
        a.training = b.training


def _is_copy(made: nn.Module, model: nn.Module) -> bool:
    """Whether two models have the same tensors, and no module in common."""
    pairs = list(itertools.zip_longest(made.modules(), model.modules()))
    pairs = [(a, b) for a, b in pairs if not isinstance(b, torch.jit.ScriptModule)]
    return all(a is not None and a is not b and _own_tensors(a) == _own_tensors(b) for a, b in pairs)


def _own_tensors(module: nn.Module | None) -> dict[str, int]:
    """The parameters and buffers of a module itself, by identity."""
    tables = () if module is None else (module._parameters, module._buffers)
    return {name: id(tensor) for table in tables for name, tensor in table.items()}


def owning(made: nn.Module, model: nn.Module) -> nn.Module:
    """Give a copy of a model, which shares its tensors, tensors of its own, those in attributes too; ties between
    modules stay ties. A merged layer has its own already.
    """
    memo: dict[int, Any] = {}
    users = Counter(map(storage, _tensors(made)))
    shared = {*map(storage, _tensors(model)), *(each for each, count in users.items() if count > 1)}

    def own(leaf: Any) -> Any:
        stays = not isinstance(leaf, Tensor) or (_is_whole(leaf) and storage(leaf) not in shared)
        return leaf if stays else copy.deepcopy(leaf, memo)

    for container, key, value in _entries(made):
        if not isinstance(container, set):
            container[key] = map_leaves(own, value)
    return made


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that a model holds, each as often as it does."""
    held = (leaf for _, _, value in _entries(model) for leaf in leaves(value))
    return (leaf for leaf in held if isinstance(leaf, Tensor))


def _entries(model: nn.Module) -> Iterator[tuple[Any, Any, Any]]:
    """The tensors and tuples in the containers of a model, each with the container and its key in it."""
    for container in State(model).containers():
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        yield from [(container, key, value) for key, value in entries if isinstance(value, (Tensor, tuple))]


def _is_whole(parameter: Tensor) -> bool:
    """Whether a tensor is a parameter that is all there is in its memory."""
    plain = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    return plain and parameter.nbytes == parameter.untyped_storage().nbytes()
