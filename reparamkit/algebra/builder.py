"""The frame of a layer: what it does along the dimensions it speaks of; the others pass through."""

from __future__ import annotations

from .operator import Dims, Link, Operator, Role
from .size import Size, fixed
from .weight import Weight


class Builder:
    """An operator on the dimensions of `below`'s value, FREE along every dimension not spoken for."""

    def __init__(self, below: Operator) -> None:
        self.below = below
        self.links: list[Link] = []
        self.source: list[tuple[int, ...] | None] = [None] * len(below.value)
        self.value: list[tuple[int, ...] | None] = [None] * len(below.value)

    def size(self, dim: int) -> Size:
        """The size of a dimension."""
        return self.below.value_sizes[dim]

    def atom(self, role: Role, size: Size, **stencil: object) -> tuple[int, ...]:
        """A new atom; none for a size of 1, which needs no name."""
        if size == fixed(1) and role is not Role.STENCIL and not stencil:
            return ()
        self.links.append(Link(role, size, **stencil))  # type: ignore[arg-type]
        return (len(self.links) - 1,)

    def along(self, dim: int, source: tuple[int, ...], value: tuple[int, ...]) -> None:
        """These atoms are a dimension of the source, and those of the value."""
        self.source[dim], self.value[dim] = source, value

    def through(self, dim: int, atoms: tuple[int, ...]) -> None:
        """The same atoms on both sides."""
        self.along(dim, atoms, atoms)

    def copied(self, dim: int) -> tuple[int, ...]:
        """FREE atoms for those of a dimension, atom by atom."""
        # Those of size 1 too: a window of the layer below may end in one position.
        atoms = self.below.value[dim]
        self.links += [Link(Role.FREE, self.below.links[i].size_out) for i in atoms]
        return tuple(range(len(self.links) - len(atoms), len(self.links)))

    def done(self, weight: Weight) -> Operator:
        """The operator with this weight, one leg per atom that was named and is not FREE."""
        for dim in range(len(self.below.value)):
            if self.source[dim] is None:
                self.through(dim, self.copied(dim))
        return Operator(tuple(self.links), _dims(self.source), _dims(self.value), weight, self.below.open_rank)


def _dims(dims: list[tuple[int, ...] | None]) -> Dims:
    return tuple(dim or () for dim in dims)
