"""A layer to be, and what the layers have in common: which dimension they mix, and a vector along it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.operator import Operator, Role
from ..algebra.relink import as_diagonal, densify
from ..errors import NotFusable
from ..reasons import Kind, Reason
from .price import Cost

MIXES_DIMS = Reason("mixes several dimensions", Kind.SHAPES)
NOTHING_MIXED = Reason("nothing is mixed", Kind.SHAPES)

F, D, IN, BORDER = Role.FREE, Role.DIAGONAL, Role.IN, Role.BORDER


class Scale(nn.Module):
    """``weight * x + bias`` with broadcasting: what is left of a batch norm that nothing can absorb.

    weight, bias: any shape that broadcasts to x, or None.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape that weight and bias broadcast to; so is the result."""
        if self.weight is None:
            return x if self.bias is None else x + self.bias
        scaled = x * self.weight if self.bias is None else torch.addcmul(self.bias, x, self.weight)
        # The layers this replaces take no other size, so neither may broadcasting.
        return scaled.view_as(x)

    def extra_repr(self) -> str:
        """Shapes, for print(model)."""
        shapes = {n: tuple(p.shape) for n, p in self.named_parameters()}
        return ", ".join(f"{name}={shape}" for name, shape in shapes.items())


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """A layer to be.

    kind: "scale", "linear" or "conv". cost: for the sizes of the example inputs.
    build: makes the module; its weights are float64 on the CPU. bias: numbers in the bias of a weight.
    beside: why the bias is added by a layer of its own, if it is.
    checks: the dimension (from the right) whose size the module itself insists on.
    calls: methods of its result that give the value, with their arguments: views, and a copy where they permute.
    joined: dimensions of the source (from the right), side by side, that it reads as one, and whose sizes it leaves
        unchecked.
    """

    kind: str
    cost: Cost
    build: Callable[[], nn.Module]
    bias: int = 0
    beside: Reason | None = None
    checks: int | None = None
    calls: tuple[Call, ...] = ()
    joined: tuple[int, ...] = ()

    @property
    def bare(self) -> bool:
        """Whether nothing is called but the layer."""
        return not (self.calls or self.joined)


Call = tuple[str, tuple[Any, ...]]


Attempt = Callable[[Operator, Operator | None], LayerPlan]


def tried(attempt: Attempt, op: Operator, bias: Operator | None) -> LayerPlan | None:
    """What an attempt gives, None if it cannot write the operator."""
    try:
        return attempt(op, bias)
    except NotFusable:
        return None


def uniform(op: Operator) -> Operator:
    """Make each dimension wholly FREE or wholly DIAGONAL (or one BORDER)."""
    for dim in op.value:
        if any(op.links[i].role is D for i in dim):
            op = all_diagonal(op, dim)
    return op


def all_diagonal(op: Operator, dim: tuple[int, ...]) -> Operator:
    """With a number of its own for each position of a dimension; refuses one that is partly free."""
    for i in dim:
        if op.links[i].role in (F, BORDER):
            if not op.links[i].size.known:
                raise NotFusable("one vector along a dimension that is partly free", Kind.SIZES)
            op = as_diagonal(op, i)
    return op


def broadcast(op: Operator) -> Tensor:
    """The weight of a uniform FREE and DIAGONAL operator, shaped to broadcast against its value."""
    legs = list(op.legs)
    order = [legs.index(i) for dim in op.value for i in dim if i in legs]
    shape = [math.prod(op.links[i].leg_size if i in legs else 1 for i in dim) for dim in op.value]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return op.weight.tensor().permute(order).reshape(shape)


def mixing(op: Operator, dim: int, grouped: bool) -> Operator:
    """Dimension `dim` as groups x (IN -> OUT): leading DIAGONAL atoms in both, then IN and OUT atoms."""
    keep = _leading(op, dim) if grouped else 0
    while sparse := [i for i in op.source[dim][keep:] if op.links[i].role is not IN]:
        op = densify(op, sparse[0])
    if any(op.links[i].through for i in op.value[dim][keep:]) or op.source[dim][:keep] != op.value[dim][:keep]:
        raise NotFusable("atoms of this dimension come from another dimension", Kind.SHAPES)
    return all_diagonal(op, op.source[dim][:keep])


def _leading(op: Operator, dim: int) -> int:
    """How many atoms both sides begin with that pass through."""
    count = 0
    for i, j in zip(op.source[dim], op.value[dim], strict=False):
        if i != j or op.links[i].role not in (F, D) or not op.links[i].size.known:
            break
        count += 1
    return count


def check_passes(op: Operator, dims: range, roles: tuple[Role, ...]) -> None:
    """All atoms of these dimensions pass through in place, with one of these roles."""
    for d in dims:
        if op.source[d] != op.value[d] or any(op.links[i].role not in roles for i in op.source[d]):
            raise NotFusable(MIXES_DIMS)


def vector_along(op: Operator | None, dim: int) -> Operator | None:
    """A bias that varies along `dim` only."""
    if op is None:
        return None
    others = [op.links[i] for d, atoms in enumerate(op.value) for i in atoms if d != dim % len(op.value)]
    if any(link.has_leg and link.leg_size != 1 for link in others):
        raise NotFusable("a bias that differs from place to place", Kind.SHAPES)
    return all_diagonal(op, op.value[dim])


def fill(layer: nn.Module, weight: Tensor, vector: Operator | None, rows: int) -> None:
    """Give a layer its weight, and as bias the vector, of `rows` numbers."""
    layer.weight = nn.Parameter(weight)
    if vector is not None:
        layer.bias = nn.Parameter(broadcast(vector).reshape(-1).expand(rows).contiguous())
