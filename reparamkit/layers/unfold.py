"""Windows as channels, and channels as windows: what a matrix product between makes a convolution, or patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import nn

from ..algebra.build import unfolded, windows_of
from ..algebra.form import Form
from ..algebra.operator import pin
from ..algebra.probe import probe
from ..algebra.regroup import known_rank, permute, ranked, reshape
from ..algebra.segments import MIXES_BATCH
from ..algebra.size import Size, fixed, joined_pins, whole_multiples
from ..errors import NotFusable
from ..reasons import Kind
from .registry import READERS, either
from .views import read_flatten

PerAxis = int | Sequence[int]
Extents = int | Size | Sequence[int | Size]


@READERS.reader(nn.Unfold, moves=1)
def read_unfold_layer(layer: nn.Unfold, input: Form) -> tuple[Form, ...]:
    """The window around each position, its numbers as channels, the positions as one dimension."""
    return read_unfold(input, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


@READERS.reader(F.unfold, moves=1)
def read_unfold(
    input: Form, kernel_size: PerAxis, dilation: PerAxis = 1, padding: PerAxis = 0, stride: PerAxis = 1
) -> tuple[Form, ...]:
    """The same as windows, and on fixed sizes as a full matrix."""
    kernel, dilations, pads, strides = map(_pair, (kernel_size, dilation, padding, stride))

    def windows() -> Form:
        x = known_rank(input, [4], certain=False)
        # No layer is written between the windows and the view of their positions.
        return replace(read_flatten(unfolded(x, kernel, strides, pads, dilations), 2), recent=(None,))

    def matrix() -> Form:
        _check_batch(input, 4)
        return probe(input, lambda tensor: F.unfold(tensor, kernel, dilations, pads, strides))

    return either(windows, matrix)


@READERS.reader("unfold", moves=0)
def read_unfold_method(input: Form, dimension: int, size: int, step: int) -> Form:
    """The windows along one dimension; what is in them is a new last dimension."""
    rank = len(ranked(input).sizes)
    dim = dimension if dimension < 0 else dimension - rank
    if dim == -rank:
        raise NotFusable(MIXES_BATCH)
    return windows_of(input, dim, size, step)


@READERS.reader(nn.Fold, moves=1)
def read_fold_layer(layer: nn.Fold, input: Form) -> tuple[Form, ...]:
    """The channels of each position as a window of a map."""
    return read_fold(input, layer.output_size, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


@READERS.reader(F.fold, moves=1, sizes=True)
def read_fold(
    input: Form,
    output_size: Extents,
    kernel_size: PerAxis,
    dilation: PerAxis = 1,
    padding: PerAxis = 0,
    stride: PerAxis = 1,
) -> tuple[Form, ...]:
    """Windows side by side are a view; others are added up, on fixed sizes, by a full matrix."""
    kernel, dilations, pads, strides = map(_pair, (kernel_size, dilation, padding, stride))
    _check_batch(input, 3)

    def tiles() -> Form:
        if (dilations, pads, strides) != ((1, 1), (0, 0), kernel):
            raise NotFusable("windows that overlap are added up on fixed sizes only", Kind.SIZES)
        return _tiled(input, [n if isinstance(n, Size) else fixed(n) for n in _each(output_size)], kernel)

    def matrix() -> Form:
        sizes = [n.factor if isinstance(n, Size) and n.known else n for n in _each(output_size)]
        if any(isinstance(n, Size) for n in sizes):
            raise NotFusable("a map whose size is computed at run time", Kind.SIZES)
        return probe(input, lambda tensor: F.fold(tensor, tuple(sizes), kernel, dilations, pads, strides))  # type: ignore[arg-type]

    return either(tiles, matrix)


def _check_batch(x: Form, rank: int) -> None:
    """Refuse a tensor without a batch."""
    if len(ranked(x).sizes) != rank:
        raise NotFusable(f"expected a tensor of rank {rank}, a batch, found {len(x.sizes)}", Kind.SHAPES)


def _tiled(x: Form, sizes: list[Size], kernel: tuple[int, int]) -> Form:
    """``(n, c k l, h w) -> (n, c, h k, w l)``."""
    pins = joined_pins(pair for n, k in zip(sizes, kernel, strict=True) for pair in whole_multiples(n, k).items())
    x = x.mapped(lambda op: pin(op, pins, guard=True))
    sizes = [size.substitute(pins) for size in sizes]
    counts = [size.divide(fixed(k)) for size, k in zip(sizes, kernel, strict=True)]
    channels = x.sizes[1].divide(fixed(math.prod(kernel)))
    if channels is None or None in counts:
        raise NotFusable("a map whose size is not known to be a multiple of the window", Kind.SIZES)
    x = reshape(x, [x.sizes[0], channels, *map(fixed, kernel), *(n for n in counts if n is not None)])
    return reshape(permute(x, (0, 1, 4, 2, 5, 3)), [x.sizes[0], channels, *sizes])


def _each(value: Extents) -> Sequence[int | Size]:
    return (value, value) if isinstance(value, (int, Size)) else value


def _pair(value: PerAxis) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second
