"""Layers as operators: what readers are written with.

Each function takes the form of a layer's input and returns the form of its output, so a reader looks like
the forward of the layer it reads. Weights are read only when a merged layer is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import NotFusable
from ..reasons import Kind
from .align import Face, align
from .builder import Builder
from .form import OPEN_SUM, SUM_BROADCASTS, Form, added_bias, apply, repeated_bias
from .laws import CHAIN
from .operator import Dims, Operator, Resampling, Role, pin
from .regroup import NO_RANK, beside, in_sight, with_dim
from .size import fixed
from .views import Mean, Resampled
from .weight import Computed, One, Ones, Vector, Weight, leaf

F, D, S, IN, OUT = Role.FREE, Role.DIAGONAL, Role.STENCIL, Role.IN, Role.OUT


def linear(x: Form, weight: Tensor, bias: Tensor | None = None) -> Form:
    """``x @ weight.T + bias`` along the last dimension.

    weight: (out, in). bias: (out,).
    """
    _expect(weight.dim() == 2, f"a linear weight of shape {tuple(weight.shape)}")
    return matrix(x, weight, -1, bias)


def matrix(x: Form, weight: Tensor, dim: int, bias: Tensor | None = None) -> Form:
    """A full matrix along dimension `dim`: value[.., o, ..] = sum over i of weight[o, i] x[.., i, ..].

    weight: (out, in). bias: (out,).
    """
    rows, columns = weight.shape

    def build(below: Operator) -> Operator:
        made = Builder(below)
        value, source = made.atom(OUT, fixed(rows)), made.atom(IN, fixed(columns))
        made.along(dim, source, value)
        return made.done(leaf(weight, [n for n in (rows, columns) if n != 1]))

    return shift(apply(with_dim(x, dim), build), bias, dim)


Names = Sequence[str]
"""Of the dimensions of a tensor, one each."""


def contracted(x: Form, of_x: Names, constants: Sequence[tuple[Tensor, Names]], of_value: Names) -> Form:
    """The product of x with constants, summed over what `of_value` does not name, as einsum does it.

    of_x, of_value: the names of the last dimensions; those before them pass through. A constant may be of size 1 along
    any dimension.
    Raises `NotFusable`: a dimension that only x has is summed, and its size is free.
    """
    _expect(len({*of_x}) == len(of_x), f"an einsum with a diagonal of its value: {''.join(of_x)}")
    x = in_sight(x, len(of_x))
    counts, sizes = _counts(constants), dict(zip(of_x, x.sizes[len(x.sizes) - len(of_x) :], strict=True))
    alone = {name: size for name, size in sizes.items() if name not in of_value and counts.get(name, 1) == 1}
    if not all(size.known for size in alone.values()):
        raise NotFusable(OPEN_SUM)
    counts |= {name: size.factor for name, size in alone.items()}
    legs = {n: k for n, k in counts.items() if n in {*of_x, *of_value} and k != 1}
    weights = [(leaf(constant), names) for constant, names in constants]
    weights += [(Ones((size.factor,)), (name,)) for name, size in alone.items()]

    def build(below: Operator) -> Operator:
        made = Builder(below)
        atoms = dict.fromkeys(alone, ()) | {n: made.atom(_role(n, of_x, of_value), fixed(k)) for n, k in legs.items()}
        atoms |= {n: made.copied(d) for d, n in enumerate(of_x, start=-len(of_x)) if n not in atoms}
        before = [made.copied(dim) for dim in range(len(below.value) - len(of_x))]
        source, value = ([*before, *(atoms.get(name, ()) for name in names)] for names in (of_x, of_value))
        weight = Computed(lambda: _product(weights, legs))
        return Operator(tuple(made.links), tuple(source), tuple(value), weight, below.open_rank)

    return apply(x, build, trusted=False)


def _counts(constants: Sequence[tuple[Tensor, Names]]) -> dict[str, int]:
    """The size of each named dimension; 1 broadcasts."""
    counts: dict[str, int] = {}
    for constant, names in constants:
        for name, size in zip(names, constant.shape, strict=True):
            counts[name] = max(size, counts.get(name, 1))
    return counts


def _role(name: str, of_x: Names, of_value: Names) -> Role:
    if name in of_x:
        return D if name in of_value else IN
    return OUT


def _product(weights: Sequence[tuple[Weight, Names]], wanted: Iterable[str]) -> Tensor:
    """The product of tensors, summed over what is not wanted."""
    number = {name: n for n, name in enumerate(dict.fromkeys(n for _, names in weights for n in names))}
    operands = [part for weight, names in weights for part in (weight.tensor(), [number[n] for n in names])]
    product: Tensor = torch.einsum(*operands, [number[name] for name in wanted])
    return product


def scale(x: Form, factor: Tensor | Vector, dim: int = 1, bias: Tensor | Vector | None = None) -> Form:
    """``factor * x + bias`` along dimension `dim`, as a batch norm with fixed statistics.

    factor, bias: (size of dim,).
    """
    n = factor.numel()

    def build(below: Operator) -> Operator:
        made = Builder(below)
        made.through(dim, made.atom(D, fixed(n)))
        return made.done(leaf(factor, [n] if n != 1 else []))

    return shift(apply(with_dim(x, dim), build), bias, dim)


def multiply(x: Form, factor: Tensor) -> Form:
    """``x * factor`` with the usual broadcasting of `factor` (not of x)."""
    x = beside(x, factor.shape)

    def build(below: Operator) -> Operator:
        made = Builder(below)
        for d in range(-factor.dim(), 0):
            if factor.shape[d] != 1:
                made.through(d, made.atom(D, fixed(factor.shape[d])))
        return made.done(leaf(factor, [n for n in factor.shape if n != 1]))

    return apply(x, build, trusted=False)


def conv(
    x: Form,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int | tuple[int, int]] | int = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Form:
    """A convolution over the last dimensions of x, zero padded.

    weight: (out, in / groups, k1, ..., kr). bias: (out,). x: (..., in, n1, ..., nr).
    padding: per axis, one number for both sides or (low, high).
    """
    rank = weight.dim() - 2
    strides, dilations = _per_axis(stride, rank), _per_axis(dilation, rank)
    pads = [p if isinstance(p, tuple) else (p, p) for p in _per_axis(padding, rank)]
    outs, ins, *kernel = weight.shape

    def build(below: Operator) -> Operator:
        made = Builder(below)
        group = made.atom(D, fixed(groups))
        value, source = made.atom(OUT, fixed(outs // groups)), made.atom(IN, fixed(ins))
        made.along(-1 - rank, group + source, group + value)
        shape = [n for n in (groups, outs // groups, ins) if n != 1]
        for axis in range(rank):
            shape += window(made, axis - rank, kernel[axis], strides[axis], pads[axis], dilations[axis])
        return made.done(leaf(weight, shape))

    return shift(apply(_batched(x, rank), build), bias, -1 - rank)


def conv_transposed(
    x: Form,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
) -> Form:
    """A transposed convolution over the last dimensions of x.

    Input i adds ``weight[t] x[i]`` to output ``stride * i - padding + dilation * t``.
    weight: (in, out / groups, k1, ..., kr). bias: (out,). x: (..., in, n1, ..., nr).
    """
    rank = weight.dim() - 2
    ins, outs, *kernel = weight.shape
    axes = list(zip(*(_per_axis(value, rank) for value in (stride, padding, output_padding, dilation)), strict=True))

    def compute() -> Tensor:
        wide = weight.detach().to("cpu", torch.float64, copy=True).reshape(groups, ins // groups, outs, *kernel)
        # Taps ascend as the kernel index falls.
        return wide.transpose(1, 2).flip(tuple(range(3, 3 + rank)))

    def build(below: Operator) -> Operator:
        made = Builder(below)
        group = made.atom(D, fixed(groups))
        value, source = made.atom(OUT, fixed(outs)), made.atom(IN, fixed(ins // groups))
        made.along(-1 - rank, group + source, group + value)
        for dim, k, (s, p, extra, d) in zip(range(-rank, 0), kernel, axes, strict=True):
            taps = tuple(p - d * t for t in reversed(range(k)))
            c = -s - 2 * p + d * (k - 1) + extra
            made.through(dim, made.atom(S, made.size(dim), taps=taps, c=c, up=s))
        shape = [n for n in (groups, outs, ins // groups) if n != 1] + kernel
        return made.done(Computed(lambda: compute().reshape(shape)))

    return shift(apply(_batched(x, rank), build), bias, -1 - rank)


def window(made: Builder, dim: int, k: int, stride: int, pads: tuple[int, int], dilation: int) -> list[int]:
    """A stencil along one dimension; returns the leg it adds to the weight's shape."""
    low, high = pads
    if (k, stride, low, high) == (1, 1, 0, 0):
        return []
    taps = tuple(dilation * j - low for j in range(k))
    c = low + high - dilation * (k - 1) - 1
    made.through(dim, made.atom(S, made.size(dim), taps=taps, stride=stride, c=c))
    return [k]


def pool(
    x: Form,
    kernel: Sequence[int],
    stride: Sequence[int] | int,
    padding: Sequence[int] | int = 0,
    divisor: int | None = None,
) -> Form:
    """An average over windows of the last dimensions, zeros of the padding counted; or their sum by a divisor."""
    rank, size = len(kernel), divisor or math.prod(kernel)
    strides, pads = _per_axis(stride, rank), _per_axis(padding, rank)

    def build(below: Operator) -> Operator:
        made = Builder(below)
        shape: list[int] = []
        for axis, (k, p) in enumerate(zip(kernel, pads, strict=True)):
            shape += window(made, axis - rank, k, strides[axis], (p, p), 1)
        return made.done(Computed(lambda: torch.full(shape, 1 / size, dtype=torch.float64)))

    return apply(_batched(x, rank), build)


def unfolded(
    x: Form, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Form:
    """What a window over the last dimensions reads, as channels: tap t of channel c is channel ``c * taps + t``.

    x: (..., c, n1, ..., nr).
    """
    rank, taps = len(kernel), math.prod(kernel)

    def build(below: Operator) -> Operator:
        made = Builder(below)
        read = tuple(n for k in kernel for n in made.atom(OUT, fixed(k)))
        channels = made.copied(-1 - rank)
        made.along(-1 - rank, channels, channels + read)
        shape = [k for k in kernel if k != 1]
        for axis, (k, s, p, d) in enumerate(zip(kernel, stride, padding, dilation, strict=True)):
            shape += window(made, axis - rank, k, s, (p, p), d)
        return made.done(Computed(lambda: torch.eye(taps, dtype=torch.float64).reshape(shape)))

    return apply(_batched(x, rank), build)


def windows_of(x: Form, dim: int, size: int, step: int) -> Form:
    """Every `step`-th window of `size` positions along dimension `dim` (from the right); what is in it is a new last
    dimension.
    """

    def build(below: Operator) -> Operator:
        made = Builder(below)
        read = made.atom(OUT, fixed(size))
        shape = [n for n in (size,) if n != 1] + window(made, dim, size, step, (0, 0), 1)
        op = made.done(Computed(lambda: torch.eye(size, dtype=torch.float64).reshape(shape)))
        return replace(op, value=(*op.value, read))

    return apply(in_sight(x, -dim), build)


def resampled(x: Form, maps: Mapping[int, Resampling]) -> Form:
    """Dimensions (from the right) resampled, by one call."""

    def build(below: Operator) -> Operator:
        made = Builder(below)
        for dim, each in maps.items():
            made.through(dim, made.atom(F, each.after, maps=(each,)))
        return made.done(One())

    return replace(apply(x, build), recent=(*x.recent, Resampled(tuple(maps.items()))))


def repeated(x: Form, counts: Sequence[int]) -> Form:
    """Each position of the last dimensions ``counts[d]`` times in a row: up-sampling to the nearest position."""

    def build(below: Operator) -> Operator:
        made = Builder(below)
        axes = [(d, r) for d, r in zip(range(-len(counts), 0), counts, strict=True) if r > 1]
        for dim, r in axes:
            made.through(dim, made.atom(S, made.size(dim), taps=tuple(range(1 - r, 1)), up=r))
        shape = [r for _, r in axes]
        return made.done(Ones(tuple(shape)) if shape else One())

    x = in_sight(x, len(counts))
    made, bias = apply(replace(x, bias=None), build), x.bias
    for dim, r in zip(range(-len(counts), 0), counts, strict=True):
        if bias is not None and r > 1:
            bias = repeated_bias(bias, dim, r)
    return replace(made, bias=bias)


def mean(x: Form, dims: Sequence[int], keepdim: bool = False) -> Form:
    """The average over whole dimensions, given from the right (negative)."""
    x = in_sight(x, max((-d for d in dims), default=0))

    def build(below: Operator) -> Operator:
        made = Builder(below)
        for d in dims:
            atoms = (made.atom(Role.MEAN, below.links[i].size_out) for i in below.value[d])
            made.along(d, tuple(n for atom in atoms for n in atom), ())
        return made.done(One())

    averaged = _without_dims(apply(x, build), dims, keepdim)
    # An average over what is not in the source (a stack of branches) is a layer like others.
    view = Mean(tuple(dims), keepdim) if averaged.sample.has(Role.MEAN) else None
    return replace(averaged, recent=(*x.recent, view))


def _without_dims(x: Form, dims: Sequence[int], keepdim: bool) -> Form:
    if keepdim:
        return x
    gone = {len(x.sizes) + d for d in dims}

    def drop(all_dims: Dims) -> Dims:
        return tuple(dim for d, dim in enumerate(all_dims) if d not in gone)

    kept = x.mapped(lambda op: replace(op, value=drop(op.value)))
    bias = kept.bias
    return replace(kept, bias=None if bias is None else replace(bias, source=drop(bias.source)))


def shift(x: Form, bias: Tensor | Vector | None, dim: int = -1) -> Form:
    """``x + bias`` with a bias of one dimension, along dimension `dim`."""
    if bias is None:
        return x
    trailing = len(x.sizes) - 1 - dim if dim >= 0 else -1 - dim
    return _offset(x, bias, (bias.numel(), *[1] * trailing))


def offset(x: Form, constant: Tensor) -> Form:
    """``x + constant`` with the usual broadcasting of the constant (not of x)."""
    # A layer's own bias is no chain, a constant added to a layer is.
    via = frozenset() if _is_bare(x) else frozenset({CHAIN})
    return added(x, constant).mapped(lambda op: replace(op, via=op.via | via))


def added(x: Form, constant: Tensor) -> Form:
    """The same, as a layer's own."""
    return _offset(x, constant, tuple(constant.shape))


def bordered(x: Form, constant: Tensor, borders: Sequence[tuple[int, int]]) -> Form:
    """``x + constant``, a constant with numbers of its own only at the borders of the last dimensions.

    constant: broadcasts to x, but along a dimension of border (low, high) it has ``low + 1 + high`` entries.
    """
    links = {dim - len(borders): border for dim, border in enumerate(borders) if any(border)}
    return _offset(x, constant, tuple(constant.shape), links).mapped(lambda op: replace(op, via=op.via | {CHAIN}))


def _offset(
    x: Form,
    constant: Tensor | Vector,
    shape: Sequence[int],
    borders: Mapping[int, tuple[int, int]] = MappingProxyType({}),
) -> Form:
    """``x + constant``, the constant viewed in `shape`; borders: (low, high) of some dimensions, from the right."""
    x = beside(x, shape)
    if len(shape) > len(x.sizes):
        raise NotFusable(SUM_BROADCASTS)
    return biased(x, _field(x.sample, constant, shape, borders))


def biased(x: Form, field: Operator) -> Form:
    """The value plus a diagonal operator on a tensor of ones with its dimensions."""
    value, bias = align(Face(x.sample, "value"), Face(field, "value"), trusted=False)
    pins, guards = dict(value.op.pins), value.op.guards
    x = replace(x, bias=added_bias(x.bias, bias.op), recent=(*x.recent, None))
    return x.mapped(lambda op: replace(pin(op, pins), guards=op.guards | guards))


def _is_bare(x: Form) -> bool:
    """Whether the value is taken as it is."""
    return x.bias is None and all(term.op.is_identity for term in x.terms.values())


def _field(
    below: Operator, constant: Tensor | Vector, shape: Sequence[int], borders: Mapping[int, tuple[int, int]]
) -> Operator:
    """The constant as a diagonal operator on a tensor of ones with the dimensions of below's value."""
    made = Builder(below)
    for d in range(-len(shape), 0):
        if d in borders:
            low, high = borders[d]
            made.through(d, made.atom(Role.BORDER, made.size(d), low=low, high=high))
        elif shape[d] != 1:
            made.through(d, made.atom(D, fixed(shape[d])))
    return replace(made.done(leaf(constant, [n for n in shape if n != 1])), pins=below.pins)


def _batched(x: Form, rank: int) -> Form:
    """A form that a window over the last `rank` dimensions reads; an assumed rank has room for a batch."""
    x = in_sight(x, rank + 1)
    if len(x.sizes) == rank + 1 and not x.open_rank and any(symbol.stands_for_dims for symbol, _ in x.guards):
        raise NotFusable(NO_RANK)
    return x


def _per_axis(value: Sequence[int | tuple[int, int]] | int, rank: int) -> list:  # type: ignore[type-arg]
    if isinstance(value, int):
        return [value] * rank
    values = list(value)
    return values * rank if len(values) == 1 else values


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise NotFusable(f"cannot read {found}", Kind.UNREAD)
