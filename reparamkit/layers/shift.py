"""What zero padding makes of a shift before it: a bias that differs at the borders of a map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from ..algebra.build import bordered
from ..algebra.form import Form
from ..errors import GuardError
from .registry import READERS

Borders = Sequence[tuple[int, int]]
"""Per axis, from the last ones of a tensor, how many positions at its beginning and at its end are its border."""


def with_borders(x: Tensor, bias: Tensor, borders: Borders) -> Tensor:
    """``x + bias`` for a bias with a number per position of a border, and one for all between the borders.

    x: any shape. bias: broadcasts to x, but for the axes of `borders`; along one of (low, high) it has
        ``low + 1 + high`` entries.
    Raises `GuardError`: x has no room for the borders at both of its ends.
    """
    for dim, (low, high) in zip(range(-len(borders), 0), borders, strict=True):
        if low + high:
            bias = _stretched(bias, dim, x.shape[dim] - low - high, low, high)
    return x + bias


fx.wrap("with_borders")


def _stretched(bias: Tensor, dim: int, middle: int, low: int, high: int) -> Tensor:
    """The bias with its middle entry `middle` times; a border at one end alone is cut where x is smaller."""
    if middle < 0 and not (low and high):
        return bias.narrow(dim, 0 if low else 1 - middle, low + high + middle)
    if middle < 0:
        raise GuardError(
            f"this model was fused for maps of at least {low + high} positions in dimension {dim}, found"
            f" {middle + low + high}: leave the layers before this one unmerged with skip=[...]"
        )
    before, inside, after = torch.split(bias, [low, 1, high], dim)
    shape = list(inside.shape)
    shape[dim] = middle
    return torch.cat([before, inside.expand(shape), after], dim)


class Shift(nn.Module):
    """``x + bias`` with a bias that differs at the borders, for any size that has room for them.

    bias, borders: as `with_borders` takes them.
    """

    def __init__(self, bias: Tensor, borders: Borders) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)
        self.borders = tuple(borders)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n1, ..., nr), r the number of borders; so is the result."""
        return with_borders(x, self.bias, self.borders)

    def extra_repr(self) -> str:
        """Shape and borders, for print(model)."""
        return f"bias={tuple(self.bias.shape)}, borders={self.borders}"


@READERS.reader(Shift)
def read_shift_layer(layer: Shift, input: Form) -> Form:
    """A bias that differs at the borders: BORDER links along the last dimensions."""
    return bordered(input, layer.bias, layer.borders)


@READERS.reader(with_borders)
def read_with_borders(x: Form, bias: Tensor, borders: Borders) -> Form:
    """A bias that differs at the borders. bias, borders: as `with_borders` takes them."""
    return bordered(x, bias, borders)
