"""Lazy weights: numbers that are computed in float64, and only when a layer is written.

Structure comes before numbers: an operator knows its roles and shapes at once, its weight is a recipe.
``tensor()`` always returns a fresh tensor which the caller may write into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


class Weight(ABC):
    """A float64 tensor to be; one dimension per leg of its operator."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """Compute the values into a fresh float64 tensor."""

    def add_to(self, buffer: Tensor) -> None:
        """``buffer += tensor()`` without needing a second tensor of that shape where possible."""
        buffer.add_(self.tensor())


@final
@dataclass(frozen=True, eq=False)
class Computed(Weight):
    """A weight given by a function that returns a fresh tensor."""

    compute: Callable[[], Tensor]

    def tensor(self) -> Tensor:
        return self.compute()


def leaf(tensor: Tensor, shape: Sequence[int] | None = None) -> Weight:
    """A layer's own weight, viewed in `shape`; read when needed, copied to float64 on the CPU."""

    def compute() -> Tensor:
        copy = tensor.detach().to("cpu", torch.float64, copy=True)
        return copy.reshape(tuple(shape)) if shape is not None else copy

    return Computed(compute)


@final
@dataclass(frozen=True)
class One(Weight):
    """The weight without legs, 1: that of an identity. Another weight without legs is a factor."""

    def tensor(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)


@final
@dataclass(frozen=True, eq=False)
class Diagonals(Weight):
    """A stencil (or diagonal, or identity) axis written as a full matrix between two axes.

    Tap ``o`` of output ``j`` reads input ``stride * j + o``: it fills one diagonal of the matrix, and no
    other entry is touched. This is the paper's conversion of a conv kernel into an FC kernel (RepMLPNet,
    section 3.3), without convolving an identity batch.

    inner: the weight with the axis as a stencil; its leg `leg` holds the taps (None: one tap of value 1),
        or, if `along`, one value per position.
    row, column: the legs of the input and output position in the result; other legs keep their order.
    """

    inner: Weight
    leg: int | None
    along: bool
    row: int
    column: int
    shape: tuple[int, ...]
    taps: tuple[int, ...]
    stride: int

    def tensor(self) -> Tensor:
        buffer = torch.zeros(self.shape, dtype=torch.float64)
        self.add_to(buffer)
        return buffer

    def add_to(self, buffer: Tensor) -> None:
        inner = self.inner.tensor()
        if self.leg is not None:
            inner = inner.movedim(self.leg, -1)
        for number, (diagonal, positions) in enumerate(self._diagonals(buffer)):
            diagonal.add_(self._values(inner, number, positions))

    def _values(self, inner: Tensor, number: int, positions: slice) -> Tensor:
        if self.along:
            return inner[..., positions]
        return inner.unsqueeze(-1) if self.leg is None else inner[..., number : number + 1]

    def _diagonals(self, buffer: Tensor) -> Iterator[tuple[Tensor, slice]]:
        n_in, n_out = buffer.shape[self.row], buffer.shape[self.column]
        for tap in self.taps:
            first = max(0, -(tap // self.stride))
            last = min(n_out - 1, (n_in - 1 - tap) // self.stride)
            length = max(0, last - first + 1)
            yield self._diagonal(buffer, tap, first, length), slice(first, first + length)

    def _diagonal(self, buffer: Tensor, tap: int, first: int, length: int) -> Tensor:
        """The entries (stride * j + tap, j), j = first ..., as a view whose last dimension is j."""
        others = [d for d in range(buffer.dim()) if d not in (self.row, self.column)]
        step_row, step_column = buffer.stride(self.row), buffer.stride(self.column)
        start = (self.stride * first + tap) * step_row + first * step_column if length else 0
        return buffer.as_strided(
            [*(buffer.shape[d] for d in others), length],
            [*(buffer.stride(d) for d in others), self.stride * step_row + step_column],
            buffer.storage_offset() + start,
        )


@final
@dataclass(frozen=True, eq=False)
class Sum(Weight):
    """``first + second``, the legs of `second` permuted by `order` to lie as those of `first`."""

    first: Weight
    second: Weight
    order: tuple[int, ...]

    def tensor(self) -> Tensor:
        if isinstance(self.first, Diagonals) and not isinstance(self.second, Diagonals):
            total = self.second.tensor().permute(self.order)
            self.first.add_to(total)
            return total
        total = self.first.tensor()
        self.second.add_to(total.permute(_inverse(self.order)))
        return total


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(i) for i in range(len(order)))
