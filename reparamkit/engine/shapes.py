"""The shape of a value, as its form, what it is computed from, the arguments of a view or a trace tell it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from ..algebra.form import Form
from ..algebra.operator import identity, open_sizes, with_rank
from ..algebra.size import ONE, Pin, Size, Symbol, broadcast, free_size, is_of_rank, roots
from ..capture.capture import SIZES
from ..layers.registry import Function
from .counting import MAY_BROADCAST, SAME_SHAPE, Shape, called_name, least_rank, plain_name
from .ranks import RANK, certain_rank
from .reading import Reading
from .windows import keeps_sizes


@dataclass(frozen=True)
class Shapes:
    """Of the value of one node."""

    out: Reading
    node: fx.Node

    def of_form(self) -> Shape | None:
        """The shape that the form of the value has."""
        form = self.out.read.get(self.node)
        if form is None or (form.guards and not self._has_read_shape(form)):
            return None
        return form.sizes, form.open_rank

    def guessed(self) -> Shape:
        """What the value itself tells; nothing, but the sizes of a form whose guards may fail serve for prices."""
        form = self.out.read.get(self.node)
        sizes, open_rank = own_shape(self.node)
        probably = () if form is None else tuple(size.hint for size in form.sizes)
        if not open_rank:
            unseen = certain_rank(self.node) == len(probably) and not isinstance(self.node.meta.get("val"), Tensor)
            return (_of_likely(self.node, probably) if unseen else sizes), open_rank
        return open_sizes(self.node.name, probably, least_rank(self.node), _told(self.node)), True

    def _has_read_shape(self, form: Form) -> bool:
        """Whether a value has the sizes of its form even where the guards of the form fail: where only the rank was
        guarded, and a real run had it or calls fail with any other. (Beside a constant of another size, the code may
        take another way.)
        """
        traced = isinstance(self.node.meta.get("val"), Tensor)
        return all(is_of_rank(*guard) and (traced or self._is_certain(*guard)) for guard in form.guards)

    def _is_certain(self, symbol: Symbol, pin: Pin) -> bool:
        """Whether a guard of a rank, or of a dimension, cannot fail."""
        name, dim = symbol.origin
        rank = certain_rank(self.out.captured.named[str(name)])
        assert isinstance(dim, int)
        return rank is not None and (rank - dim == pin if symbol.stands_for_dims else rank >= -dim)

    def kept(self) -> Shape | None:
        """The shape of the first input, for calls known to keep it; never one that traced values contradict."""
        name = plain_name(called_name(self.node, self.out.captured.module))
        tensors = [n for n in self.node.all_input_nodes if n in self.out.shapes]
        if not tensors or not (name in SAME_SHAPE or keeps_sizes(self.node, self.out.captured.module)):
            return None
        if name in MAY_BROADCAST and not self._equal_shapes(tensors):
            return self._broadcast(tensors)
        shape = self.out.shapes[tensors[0]]
        value = self.node.meta.get("val")
        if isinstance(value, Tensor) and [s.hint for s in shape[0]] != list(value.shape):
            return None
        return shape

    def given(self, shape: Function, rest: Sequence[Any]) -> Shape | None:
        """The sizes that a view's own arguments give. shape: what they are, of the sizes of its input and the rest."""
        before, open_rank = self.out.shape_of(self.node.all_input_nodes[0])
        own = own_shape(self.node)
        sizes = shape(() if open_rank else before, *rest)
        if own[1] and not open_rank and sizes and all(sizes):
            return tuple(size for size in sizes if size), False
        if own[1] or len(sizes) != len(own[0]):
            return None
        return tuple(size or free for size, free in zip(sizes, own[0], strict=True)), False

    def padded(self) -> Shape | None:
        """The shape of the first input, but for the last dimensions, around which a run puts more or less."""
        given: dict[str, Any] = dict(zip(("input", "pad"), self.node.args, strict=False)) | self.node.kwargs
        source: Any = given.get("input")
        widths = given.get("pad")
        known = isinstance(source, fx.Node) and source in self.out.shapes and own_shape(self.node)[1]
        if self.node.target is not F.pad or not (known and widths and isinstance(widths, (tuple, list))):
            return None
        around = with_rank(identity(*self.out.shapes[source]), len(widths) // 2)
        own = open_sizes(self.node.name, least=len(widths) // 2 + 1)[1:]
        return around.value_sizes[: -len(own)] + own, around.open_rank

    def _broadcast(self, tensors: list[fx.Node]) -> Shape | None:
        """The sizes that the inputs agree on; those of the value itself where they do not, or constants say more."""
        own, open_rank = own_shape(self.node)
        given = [self.out.sizes_of(n) for n in tensors]
        if open_rank or any(self.out.shapes[n][1] or len(self.out.shapes[n][0]) != len(own) for n in tensors):
            return None
        for ends in zip(*given, strict=True):
            if any(size.known and size != ONE for size in ends):
                self.out.meet((s, s.hint) for size in ends for s in roots(size))
        agreed = [broadcast(ends) for ends in zip(*given, strict=True)]
        pairs = zip(agreed, own, strict=True)
        return tuple(size if size is not None and size.hint == free.hint else free for size, free in pairs), False

    def _equal_shapes(self, tensors: list[fx.Node]) -> bool:
        return all(self.out.shapes[n] == self.out.shapes[tensors[0]] for n in tensors)


def own_shape(node: fx.Node) -> Shape:
    """What a value itself tells of its shape, by its value in the trace or by what calls tell of it."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        rank = value.dim()
        return tuple(free_size(node.name, d - rank, n) for d, n in enumerate(value.shape)), False
    if SIZES in node.meta:
        return _of_likely(node, node.meta[SIZES]), False
    if (known := certain_rank(node)) is not None:
        return tuple(free_size(node.name, dim) for dim in range(-known, 0)), False
    return open_sizes(node.name, dims=_told(node)), True


def _of_likely(node: fx.Node, numbers: Sequence[int]) -> tuple[Size, ...]:
    """The sizes of a value of which no run was seen; numbers: what they probably are."""
    return tuple(Size(1, (Symbol((node.name, d - len(numbers)), n),)) for d, n in enumerate(numbers))


def _told(node: fx.Node) -> int | None:
    """The rank of a value, where calls tell it."""
    told = node.meta.get(RANK)
    return None if told is None else told[0]
