"""Constants that are given sizes of a value: zeros of its shape, a parameter for every sample of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..algebra.form import Form
from ..algebra.operator import pin
from ..algebra.size import Size, fixed
from ..algebra.spread import spread
from ..errors import NotFusable
from ..reasons import Kind
from .elementwise import constant
from .registry import READERS
from .views import flat
from .wide import wide


def _sizes(size: tuple[Any, ...]) -> list[Size]:
    return [n if isinstance(n, Size) else fixed(n) for n in flat(size)]


@READERS.spread(torch.zeros, moves=1)
def read_zeros(like: Form, *size: Any, dtype: object = None, device: object = None) -> Form:
    """Zeros of sizes that `like` has, for a sum to begin with."""
    return spread(like, _sizes(size))


@READERS.spread(torch.ones, moves=1)
def read_ones(like: Form, *size: Any, dtype: object = None, device: object = None) -> Form:
    """Ones of sizes that `like` has."""
    return spread(like, _sizes(size), torch.ones((), dtype=torch.float64))


@READERS.spread(torch.full, moves=1)
def read_full(like: Form, size: Any, fill_value: Any, *, dtype: object = None, device: object = None) -> Form:
    """One number in all places of sizes that `like` has."""
    return spread(like, _sizes(size), constant(fill_value))


@READERS.spread("new_zeros", moves=1)
def read_new_zeros(like: Form, input: Form, *size: Any) -> Form:
    """Zeros of sizes that `like` has, which is the value that the method is called of."""
    return spread(like, _sizes(size))


@READERS.spread("expand", "broadcast_to", torch.broadcast_to, moves=0)
def read_expanded(like: Form, input: Tensor, *size: Any) -> Form:
    """A parameter of which an axis of size 1, or a new one, is as long as one of `like`."""
    sizes = _sizes(size)
    shape = [1] * (len(sizes) - input.dim()) + list(input.shape)
    given = [*zip(shape, sizes, strict=True)]
    wanted = [size if n == 1 and size != fixed(-1) else fixed(n) for n, size in given]
    # Any other size is an error.
    checked = {s.symbols[0]: n for n, s in given if n != 1 and s.factor == 1 and len(s.symbols) == 1}
    return spread(like.mapped(lambda op: pin(op, checked)), wanted, wide(input).reshape(shape))


@READERS.spread("repeat", torch.tile, "tile", moves=1)
def read_repeated(like: Form, input: Tensor, *dims: Any) -> Form:
    """A parameter that is repeated as often as an axis of `like` is long."""
    counts = _sizes(dims)
    shape = [1] * (len(counts) - input.dim()) + list(input.shape)
    if any(n != 1 and not count.known for n, count in zip(shape, counts, strict=True)):
        raise NotFusable("a constant of several positions, repeated as often as a size that is free", Kind.SIZES)
    repeated = wide(input).repeat([count.factor if count.known else 1 for count in counts])
    return spread(like, [count * fixed(n) for n, count in zip(shape, counts, strict=True)], repeated)
