"""Random tensors of small integers, and random layers on a tensor of a given shape.

Sums and products of small integers are exact in float64, so every law must hold bit for bit. Averages are
drawn over 1, 2 or 4 values, whose reciprocals are exact too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from . import pairs
from .pairs import Layer

Shape = tuple[int, ...]
Axis = tuple[int, int, int, tuple[int, int]]
"""A window along one axis: kernel, stride, dilation, (low, high) padding."""

BROAD = settings(max_examples=5 * settings.default.max_examples)
"""For the laws over random chains and sums, of which there are many kinds."""

VALUES = torch.tensor([-3, -2, -1, 1, 2, 3], dtype=torch.float64)
"""No zero: a weight that is lost is seen."""


@st.composite
def tensors(draw: DrawFn, *shape: int) -> Tensor:
    """Small integers in float64."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return VALUES[torch.randint(len(VALUES), shape, generator=generator)]


def maybe(*shape: int) -> SearchStrategy[Tensor | None]:
    """A bias, or none."""
    return st.none() | tensors(*shape)


def divisors(n: int) -> SearchStrategy[int]:
    """The divisors of n."""
    return st.sampled_from([k for k in range(1, n + 1) if n % k == 0])


@st.composite
def shapes(draw: DrawFn, rank: int = 2, channels: Sequence[int] = (1, 2, 3, 4, 6), largest: int = 6) -> Shape:
    """(N, C, n1, ..., nr)."""
    sizes = [draw(st.integers(1, largest)) for _ in range(rank)]
    return (draw(st.integers(1, 2)), draw(st.sampled_from(channels)), *sizes)


# --- windows ------------------------------------------------------------------------------------------


@st.composite
def axes(draw: DrawFn, n: int, same: bool = False) -> Axis:
    """A window that an axis of n positions accepts; if `same`, one that keeps its size."""
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    reach = dilation * (kernel - 1)
    if same:
        low = draw(st.integers(0, reach))
        return kernel, 1, dilation, (low, reach - low)
    low = draw(st.integers(0, 3))
    high = draw(st.integers(max(0, reach + 1 - n - low), max(3, reach + 1 - n - low)))
    if draw(st.booleans()):
        low = high = max(low, high)
    return kernel, draw(st.integers(1, 3)), dilation, (low, high)


@st.composite
def convs(
    draw: DrawFn,
    shape: Shape,
    rank: int | None = None,
    same: bool = False,
    bias: bool = True,
    groups: int | None = None,
) -> Layer:
    """A convolution on (..., C, n1, ..., nr): any groups, windows, padding; if `same`, of the same shape."""
    rank = len(shape) - 2 if rank is None else rank
    channels = shape[-1 - rank]
    groups = draw(divisors(channels)) if groups is None else groups
    outs = channels if same else groups * draw(st.integers(1, 3))
    windows = [draw(axes(n, same)) for n in shape[len(shape) - rank :]]
    kernel, stride, dilation, padding = (list(column) for column in zip(*windows, strict=True))
    weight = draw(tensors(outs, channels // groups, *kernel))
    return pairs.conv(weight, draw(maybe(outs)) if bias else None, stride, padding, dilation, groups)


@st.composite
def transposed_convs(draw: DrawFn, shape: Shape) -> Layer:
    """A transposed convolution on (N, C, n1, ..., nr): any groups, strides, paddings that leave something."""
    channels = shape[1]
    groups = draw(divisors(channels))
    windows = [draw(transposed_axes(n)) for n in shape[2:]]
    kernel, stride, dilation, padding, extra = (list(column) for column in zip(*windows, strict=True))
    outs = draw(st.integers(1, 3))
    weight = draw(tensors(channels, outs, *kernel))
    return pairs.conv_transposed(weight, draw(maybe(groups * outs)), stride, padding, extra, groups, dilation)


@st.composite
def transposed_axes(draw: DrawFn, n: int) -> tuple[int, int, int, int, int]:
    """Kernel, stride, dilation, padding and output padding that give at least one position."""
    kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    whole = (n - 1) * stride + dilation * (kernel - 1) + 1
    padding = draw(st.integers(0, min(3, (whole - 1) // 2)))
    return kernel, stride, dilation, padding, draw(st.integers(0, max(stride, dilation) - 1))


@st.composite
def repeats(draw: DrawFn, shape: Shape) -> Layer:
    """Nearest up-sampling by any factors."""
    return pairs.repeated([draw(st.integers(1, 3)) for _ in shape[2:]])


@st.composite
def crops(draw: DrawFn, shape: Shape) -> Layer:
    """A slice of one of the last dimensions that leaves something."""
    dim = draw(st.integers(1 - len(shape), -1))
    n = shape[dim]
    start = draw(st.integers(0, n - 1))
    stop = draw(st.none() | st.integers(start + 1, n))
    return pairs.cropped(dim, start, stop, draw(st.integers(1, 2)))


@st.composite
def pools(draw: DrawFn, shape: Shape, same: bool = False) -> Layer:
    """An average pool; if `same`, of odd windows that keep the shape (their average is not exact)."""
    spatial = shape[2:]
    if same:
        # torch's 3-d average wants a tensor no smaller than the window.
        kernel = [draw(st.sampled_from((1, 3) if n > 2 else (1,))) for n in spatial]
        return pairs.pool(kernel, [1] * len(kernel), [k // 2 for k in kernel])
    kernel = [draw(st.sampled_from([k for k in (1, 2, 4) if k <= n])) for n in spatial]
    stride = [draw(st.integers(1, 3)) for _ in kernel]
    return pairs.pool(kernel, stride, [draw(st.integers(0, k // 2)) for k in kernel])


@st.composite
def pads(draw: DrawFn, shape: Shape, rank: int = 2) -> Layer:
    """Each of the last axes padded or cropped; something is left."""
    amounts = []
    for n in shape[len(shape) - rank :]:
        cropped = draw(st.integers(0, n - 1))
        low = draw(st.integers(0, cropped))
        crop, pad = (-low, low - cropped), (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        amounts.append(draw(st.sampled_from((crop, pad))))
    return pairs.padded(amounts)


# --- layers without windows -----------------------------------------------------------------------------


@st.composite
def matrices(draw: DrawFn, shape: Shape, dim: int | None = None) -> Layer:
    """A full matrix along one dimension."""
    dim = draw(st.integers(-len(shape), -1)) if dim is None else dim
    outs = draw(st.integers(1, 4))
    return pairs.matrix(draw(tensors(outs, shape[dim])), dim, draw(maybe(outs)))


@st.composite
def scales(draw: DrawFn, shape: Shape, dim: int = 1) -> Layer:
    """A factor and maybe a shift per position of one dimension, as a batch norm."""
    return pairs.scale(draw(tensors(shape[dim])), dim, draw(maybe(shape[dim])))


@st.composite
def constants(draw: DrawFn, shape: Shape) -> Tensor:
    """A tensor that broadcasts to `shape`."""
    rank = draw(st.integers(0, len(shape)))
    return draw(tensors(*(draw(st.sampled_from((1, n))) for n in shape[len(shape) - rank :])))


@st.composite
def means(draw: DrawFn, shape: Shape) -> Layer:
    """An average over whole dimensions of 1, 2 or 4 positions; none if there is no such dimension."""
    able = [d - len(shape) for d, n in enumerate(shape) if n in (1, 2, 4)]
    dims = draw(st.lists(st.sampled_from(able), unique=True)) if able else []
    return pairs.mean(dims, keepdim=True) if dims else pairs.IDENTITY


def layers(shape: Shape) -> SearchStrategy[Layer]:
    """Any layer on (N, C, n1, ..., nr) that gives a tensor of as many dimensions."""
    return st.one_of(
        convs(shape),
        transposed_convs(shape),
        repeats(shape),
        crops(shape),
        pools(shape),
        pads(shape, len(shape) - 2),
        matrices(shape),
        scales(shape),
        means(shape),
        constants(shape).map(pairs.multiply),
        constants(shape).map(pairs.offset),
        chunked(shape),
        stacked(shape),
    )


@st.composite
def chains(draw: DrawFn, shape: Shape, length: int) -> Layer:
    """`length` layers in a row."""
    chain = draw(layers(shape))
    for _ in range(length - 1):
        chain = chain >> draw(layers(shape_after(chain, shape)))
    return chain


def shape_after(layer: Layer, shape: Shape) -> Shape:
    """The shape that a layer gives."""
    return tuple(layer.run(torch.zeros(shape, dtype=torch.float64)).shape)


# --- branches: layers that keep the shape of (N, C, h, w) -------------------------------------------------


def branches(shape: Shape) -> SearchStrategy[Layer]:
    """Any branch that keeps the shape: through views of all kinds, but exact."""
    return st.one_of(
        st.just(pairs.IDENTITY),
        convs(shape, same=True),
        shared_kernels(shape),
        share_sets(shape),
        token_mixings(shape),
        full_matrices(shape),
        channel_mixings(shape),
        scales(shape),
        constants(shape).map(pairs.multiply),
        constants(shape).map(pairs.offset),
        shifts(shape),
        chunked(shape),
    )


@st.composite
def shared_kernels(draw: DrawFn, shape: Shape) -> Layer:
    """One kernel for all channels: a conv on (N * C, 1, h, w)."""
    n, c, *spatial = shape
    return pairs.reshape(n * c, 1, *spatial) >> draw(convs((n * c, 1, *spatial), same=True)) >> pairs.reshape(*shape)


@st.composite
def share_sets(draw: DrawFn, shape: Shape) -> Layer:
    """RepMLP: channels in sets of S share weights, (N * C/S, S, h, w): a depthwise conv or a grouped FC."""
    n, c, *spatial = shape
    sets = draw(divisors(c))
    rows = n * c // sets
    area = sets * math.prod(spatial)
    if draw(st.booleans()):
        return (
            pairs.reshape(rows, sets, *spatial)
            >> draw(convs((rows, sets, *spatial), same=True, groups=sets))
            >> pairs.reshape(*shape)
        )
    groups = draw(st.sampled_from((1, sets)))
    weight, bias = draw(tensors(area, area // groups, *(1 for _ in spatial))), draw(maybe(area))
    ones = [1] * len(spatial)
    return pairs.reshape(rows, area, *ones) >> pairs.conv(weight, bias, groups=groups) >> pairs.reshape(*shape)


@st.composite
def token_mixings(draw: DrawFn, shape: Shape) -> Layer:
    """ResMLP: a Linear over the h * w tokens of every channel, tokens last or in the middle."""
    area = math.prod(shape[2:])
    weight, bias = draw(tensors(area, area)), draw(maybe(area))
    if draw(st.booleans()):
        mixed = pairs.linear(weight, bias)
        return pairs.reshape(*shape[:2], area) >> mixed >> pairs.reshape(*shape)
    tokens = pairs.reshape(*shape[:2], area) >> pairs.permute(0, 2, 1) >> pairs.matrix(weight, 1, bias)
    return tokens >> pairs.permute(0, 2, 1) >> pairs.reshape(*shape)


@st.composite
def full_matrices(draw: DrawFn, shape: Shape) -> Layer:
    """A Linear over the flattened map C * h * w."""
    area = math.prod(shape[1:])
    weight, bias = draw(tensors(area, area)), draw(maybe(area))
    return pairs.reshape(shape[0], area) >> pairs.linear(weight, bias) >> pairs.reshape(*shape)


@st.composite
def channel_mixings(draw: DrawFn, shape: Shape) -> Layer:
    """A Linear over the channels, moved last and back."""
    c = shape[1]
    mixed = pairs.linear(draw(tensors(c, c)), draw(maybe(c)))
    last, back = (0, *range(2, len(shape)), 1), (0, len(shape) - 1, *range(1, len(shape) - 1))
    return pairs.permute(*last) >> mixed >> pairs.permute(*back)


@st.composite
def shifts(draw: DrawFn, shape: Shape) -> Layer:
    """Pad and crop by the same amount: the map moves, zeros come in."""
    amounts = [draw(st.integers(-2, 2)) for _ in shape[2:]]
    return pairs.padded([(max(a, 0), max(-a, 0)) for a in amounts]) >> pairs.padded(
        [(min(-a, 0), min(a, 0)) for a in amounts]
    )


@st.composite
def parts(draw: DrawFn, shape: Shape, dim: int) -> list[Layer]:
    """A dimension split in one to three parts, in order."""
    inner = draw(st.lists(st.integers(1, shape[dim] - 1), unique=True, max_size=2)) if shape[dim] > 1 else []
    bounds = [0, *sorted(inner), shape[dim]]
    return [pairs.cropped(dim, a, b, 1) for a, b in itertools.pairwise(bounds)]


@st.composite
def chunked(draw: DrawFn, shape: Shape) -> Layer:
    """Split along the channels, a layer (or none) on each part, and concatenated in any order."""
    dim = 1 - len(shape)
    split = draw(parts(shape, dim))
    sizes = [shape_after(part, shape) for part in split]
    made = [
        part >> draw(st.one_of(convs(size, same=True), scales(size), st.just(pairs.IDENTITY)))
        for part, size in zip(split, sizes, strict=True)
    ]
    return pairs.concatenated(draw(st.permutations(made)), dim)


@st.composite
def stacked(draw: DrawFn, shape: Shape) -> Layer:
    """Branches of one shape, one after the other along any dimension."""
    made = draw(st.lists(st.one_of(convs(shape, same=True), scales(shape)), min_size=1, max_size=2))
    return pairs.concatenated([pairs.IDENTITY, *made], draw(st.integers(-len(shape), -1)))


@st.composite
def through_views(draw: DrawFn, shape: Shape) -> Layer:
    """Other dimensions, other order, a layer there, and back: groups need not nest with those of `shape`."""
    sizes = draw(factorizations(math.prod(shape)))
    order = draw(st.permutations(range(len(sizes))))
    seen = tuple(sizes[d] for d in order)
    layer = draw(same_shape(seen))
    return (
        pairs.reshape(*sizes)
        >> pairs.permute(*order)
        >> layer
        >> pairs.permute(*(order.index(d) for d in range(len(order))))
        >> pairs.reshape(*shape)
    )


@st.composite
def factorizations(draw: DrawFn, n: int, length: int = 4) -> Shape:
    """Sizes with product n."""
    sizes = []
    for _ in range(length - 1):
        sizes.append(draw(divisors(n)))
        n //= sizes[-1]
    return (*sizes, n)


@st.composite
def same_shape(draw: DrawFn, shape: Shape) -> Layer:
    """A layer on four dimensions that keeps their sizes."""
    dim = draw(st.integers(-len(shape), -1))
    square = pairs.matrix(draw(tensors(shape[dim], shape[dim])), dim, draw(maybe(shape[dim])))
    return draw(st.one_of(st.just(square), convs(shape, same=True), constants(shape).map(pairs.multiply)))


def some(*shape: int) -> Tensor:
    """Small integers, without a strategy."""
    return VALUES[torch.randint(len(VALUES), shape)]


# --- einsum -------------------------------------------------------------------------------------------

SIZES = dict(zip("abcdefg", (2, 3, 1, 4, 2, 3, 5), strict=True))


@st.composite
def einsums(draw: DrawFn) -> tuple[str, Tensor, list[Tensor]]:
    """An equation of a value and one or two constants, and these: dimensions of size 1 that broadcast, an ellipsis, and
    no output included.
    """
    rest = draw(st.lists(st.integers(1, 3), max_size=2))
    parts, tensors_ = [], []
    for names in ("abcd", *["abcdefg"] * draw(st.integers(1, 2))):
        part = draw(st.permutations(draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=4))))
        sizes = [SIZES[n] if not parts or draw(st.integers(0, 7)) else 1 for n in part]
        if rest and (not parts or draw(st.booleans())):
            place = draw(st.integers(0, len(part)))
            kept = rest if not parts else rest[draw(st.integers(0, len(rest) - 1)) :]
            part, sizes = [*part[:place], "...", *part[place:]], [*sizes[:place], *kept, *sizes[place:]]
        parts.append("".join(part))
        tensors_.append(draw(tensors(*sizes)))
    names = sorted({*"".join(parts)} - {"."})
    out = draw(st.permutations(draw(st.lists(st.sampled_from(names), unique=True, max_size=4))))
    place = draw(st.integers(0, len(out)))
    output = "->" + "".join([*out[:place], *["..."] * bool(rest), *out[place:]])
    return ",".join(parts) + draw(st.sampled_from((output, ""))), tensors_[0], tensors_[1:]
