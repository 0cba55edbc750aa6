"""What a real run of a model changes in it is undone: attributes, containers, buffers, and numbers of tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from .buffers import other_buffers
from .dispatch import AllOperators
from .memory import memory
from .state import State, kept
from .trees import leaves


class Changes:
    """What runs of a model have changed in it: true if there is something."""

    def __init__(self, state: State, writes: Writes) -> None:
        self._state, self._writes = state, writes

    def __bool__(self) -> bool:
        return self._writes.found or not self._state.stays

    def wrote(self, tensor: Tensor) -> bool:
        """Whether one of the tensors has, or had, other numbers."""
        return self._writes.wrote(tensor)


@contextmanager
def undone(model: nn.Module) -> Iterator[Changes]:
    """At the end the model is what it was, whatever its forward has changed; yields what that is."""
    with other_buffers(model, Tensor.clone), kept(model) as (state,):
        held = (value for value in state.now() if isinstance(value, Tensor))
        writes = Writes(itertools.chain(model.parameters(), held))
        try:
            with writes:
                yield Changes(state, writes)
        finally:
            writes.undo()


class Writes(AllOperators):
    """Keeps the numbers of tensors before an operation writes into their memory, be it through a view or `.data`."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # A second tensor of each memory: code may also exchange it (`p.data = ...`).
        self._twins = {id(tensor): (tensor, tensor.data) for tensor in tensors}
        self._memories = {memory(twin) for _, twin in self._twins.values()}
        self._saved: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @property
    def found(self) -> bool:
        """Whether one of the tensors has other numbers, or others were written."""
        return bool(self._saved) or any(_is_elsewhere(*pair) for pair in self._twins.values())

    def wrote(self, tensor: Tensor) -> bool:
        """Whether something was written into one of the tensors, or it has other memory."""
        known, twin = self._twins.get(id(tensor), (tensor, tensor))
        return memory(twin) in self._saved or _is_elsewhere(known, twin)

    def undo(self) -> None:
        """Let all tensors have the memory and the numbers that they had."""
        for tensor, twin in self._twins.values():
            if _is_elsewhere(tensor, twin):
                tensor.data = twin
        with torch.no_grad():
            for twin, numbers in itertools.chain.from_iterable(self._saved.values()):
                twin.copy_(numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # An operator on functions, such as `torch.cond`, has no schema; torch lets these write into nothing.
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
            written = [given.get(each.name) for each in func._schema.arguments if _is_written(each)]
            for tensor in leaves(written):
                self._save(tensor)
        return func(*args, **kwargs)

    def _save(self, tensor: Any) -> None:
        place = memory(tensor) if isinstance(tensor, Tensor) else 0
        if place in self._memories and place not in self._saved:
            of_memory = (twin for _, twin in self._twins.values() if memory(twin) == place)
            self._saved[place] = [(twin, twin.clone()) for twin in of_memory]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _is_elsewhere(tensor: Tensor, twin: Tensor) -> bool:
    """Whether a tensor has another memory than it had, or is another view of it."""
    if memory(tensor) != memory(twin) or tensor.shape != twin.shape:
        return True
    return tensor.layout is torch.strided and tensor.stride() != twin.stride()
