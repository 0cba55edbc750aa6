"""Lazy weights: numbers that are computed in float64, and only when a layer is written.

Structure comes before numbers: an operator knows its roles and shapes at once, its weight is a recipe.
``tensor()`` always returns a fresh tensor which the caller may write into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..errors import NotFusable
from ..reasons import Kind


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


@final
@dataclass(frozen=True, eq=False)
class Vector:
    """Real numbers along one dimension, made of a layer's own when they are needed."""

    size: int
    compute: Callable[[], Tensor]

    def numel(self) -> int:
        """How many there are."""
        return self.size


def leaf(tensor: Tensor | Vector, shape: Sequence[int] | None = None) -> Weight:
    """A layer's own weight, viewed in `shape`; read when needed, copied to float64 on the CPU.

    Raises `NotFusable`: its numbers are complex.
    """
    if isinstance(tensor, Tensor) and tensor.is_complex():
        raise NotFusable("numbers that are complex", Kind.DTYPE)

    def compute() -> Tensor:
        numbers = tensor if isinstance(tensor, Tensor) else tensor.compute()
        copy = numbers.detach().to("cpu", torch.float64, copy=True)
        return copy.reshape(tuple(shape)) if shape is not None else copy

    return Computed(compute)


@final
@dataclass(frozen=True)
class Spent(Weight):
    """Stands for a weight that was written and is not needed any more, so that its numbers can be freed."""

    def tensor(self) -> Tensor:
        raise AssertionError("the weight was let go")


@final
@dataclass(frozen=True)
class One(Weight):
    """The weight without legs, 1: that of an identity. Another weight without legs is a factor."""

    def tensor(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)


@final
@dataclass(frozen=True)
class Ones(Weight):
    """A weight known to be 1 everywhere: that of a crop, or of zero padding."""

    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        return torch.ones(self.shape, dtype=torch.float64)


@final
@dataclass(frozen=True)
class Zeros(Weight):
    """The weight of a tensor of zeros, of which nothing is left in a sum with another."""

    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.float64)


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
        self._scatter(_Target(buffer, tuple(range(buffer.dim())), {}), self._base().tensor())

    def _base(self) -> Weight:
        return self.inner._base() if isinstance(self.inner, Diagonals) else self.inner

    def _scatter(self, target: _Target, base: Tensor) -> None:
        """Descend through nested axes: each tap of each axis picks a diagonal, the base fills what is left."""
        for number, tap in enumerate(self.taps):
            part = self._picked(target, number, tap)
            if isinstance(self.inner, Diagonals):
                self.inner._scatter(part, base)
            else:
                part.fill(base)

    def _picked(self, target: _Target, number: int, tap: int) -> _Target:
        """The diagonal of one tap, with the legs of the inner weight."""
        rename = {leg: inner for inner, leg in enumerate(self._kept_legs()) if leg is not None}
        row, column = target.legs.index(self.row), target.legs.index(self.column)
        others = [d for d in range(target.buffer.dim()) if d not in (row, column)]
        legs = [None if leg is None else rename[leg] for leg in (target.legs[d] for d in others)]
        picked = {rename[leg]: n for leg, n in target.picked.items()}
        if self.leg is not None and not self.along:
            picked[self.leg] = number
        view = _diagonal(target.buffer, row, column, tap, self.stride)
        return _Target(view, (*legs, self.leg if self.along else None), picked)

    def _kept_legs(self) -> list[int | None]:
        """Per leg of the inner weight the leg of the result that it is; None for the axis itself."""
        kept: list[int | None] = [d for d in range(len(self.shape)) if d not in (self.row, self.column)]
        if self.leg is not None:
            kept.insert(self.leg, None)
        return kept


@final
@dataclass(frozen=True)
class _Target:
    """Where numbers go: a view of the buffer, which leg each of its dimensions is (None: repeats), and the legs
    of which one tap was picked.
    """

    buffer: Tensor
    legs: tuple[int | None, ...]
    picked: dict[int, int]

    def fill(self, base: Tensor) -> None:
        """``buffer += base``, taps picked, legs in the buffer's order."""
        left = [leg for leg in range(base.dim()) if leg not in self.picked]
        values = base[tuple(self.picked.get(leg, slice(None)) for leg in range(base.dim()))]
        values = values.permute([left.index(leg) for leg in self.legs if leg is not None])
        for dim, leg in enumerate(self.legs):
            if leg is None:
                values = values.unsqueeze(dim)
        self.buffer.add_(values)


def _diagonal(buffer: Tensor, row: int, column: int, tap: int, stride: int) -> Tensor:
    """The entries (stride * j + tap, j) of two dimensions, as a view whose last dimension is j."""
    n_in, n_out = buffer.shape[row], buffer.shape[column]
    first = max(0, -(tap // stride))
    length = max(0, min(n_out - 1, (n_in - 1 - tap) // stride) - first + 1)
    start = stride * first + tap if length else 0
    square = buffer.movedim((row, column), (-2, -1))[..., start : start + stride * length : stride, :]
    return square[..., :length, first : first + length].diagonal(dim1=-2, dim2=-1)


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
