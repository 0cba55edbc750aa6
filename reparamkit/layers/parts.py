"""Concatenations and the parts of a value that is split: each reads or fills a part of one axis."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..algebra.build import matrix, multiply, offset, repeated, resampled
from ..algebra.form import Form
from ..algebra.operator import FLIP, Resampling
from ..algebra.probe import PROBE
from ..algebra.regroup import NO_RANK, in_sight, known_rank, same
from ..algebra.segments import MIXES_BATCH, concatenated, cropped, fixed_dim, selected
from ..algebra.size import Size, fixed
from ..errors import NotFusable
from ..reasons import Kind
from .normalize import affine
from .registry import READERS, either
from .views import flat, read_getitem, read_transpose, read_unsqueeze

STACK_LAYERS = "stack_layers"
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
Lengths = int | Sequence[int]
Order = Callable[[int], Sequence[int]]
"""Of each position of an axis of a size, the one whose numbers it gets."""


@READERS.reader(*CONCATENATIONS, moves=1)
def read_cat(tensors: Sequence[Form], dim: int = 0) -> Form:
    """The sum of the values with zeros around each, their sizes along `dim` fixed by guards; refuses the batch."""
    seen = [_seen(x, dim) for x in _values(tensors)]
    return concatenated([x for x, _ in seen], seen[0][1])


def stacked(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The results of layers that read one value, one after the other: of one layer that has them all."""
    return torch.cat(list(tensors), dim)


@READERS.reader(stacked, moves=0)
def read_stacked(tensors: Sequence[Form], dim: int) -> Form:
    """A concatenation, by a permission of its own: `STACK_LAYERS`."""
    return read_cat(tensors, dim).made_by(STACK_LAYERS)


Span = tuple[int, int, int]
"""A part of a tensor: the dimension (from the right), where it begins, and how many positions follow it."""


def rescaled(input: Tensor, span: Span | None, weight: Tensor | None, bias: Tensor | None, *made_of: Any) -> Tensor:
    """``input * weight + bias`` on one part of it (None: on all), the rest as it is, while a model is being fused.

    weight, bias: any shape that broadcasts to the part, or None. made_of: the constants that they were computed from.
    """
    if span is None:
        return affine(input, weight, bias, False)
    dim, first, last = span
    before, part, after = torch.split(input, [first, input.shape[dim] - first - last, last], dim)
    return torch.cat([before, affine(part, weight, bias, False), after], dim)


@READERS.reader(rescaled)
def read_rescaled(input: Form, span: Span | None, weight: Tensor | None, bias: Tensor | None, *made_of: Any) -> Form:
    """The parts before and behind as they are, and between them the part with its scale and shift."""
    if span is None:
        return _affine(input, weight, bias)
    dim, first, last = span
    x = fixed_dim(input, dim)
    ends = (0, first, x.sizes[dim].factor - last, x.sizes[dim].factor)
    parts = [cropped(x, dim, a, b, 1) if a < b else None for a, b in itertools.pairwise(ends)]
    assert parts[1] is not None
    parts[1] = _affine(parts[1], weight, bias)
    # What stays is no view of its own: the whole is one step.
    return replace(concatenated([x for x in parts if x is not None], dim), recent=(None,))


def _affine(x: Form, weight: Tensor | None, bias: Tensor | None) -> Form:
    scaled = x if weight is None else multiply(x, weight)
    return scaled if bias is None else offset(scaled, bias)


@READERS.reader(torch.hstack, torch.column_stack, moves=1)
def read_hstack(tensors: Sequence[Form]) -> Form:
    """A concatenation along dimension 1; refuses vectors."""
    if any(len(x.sizes) == 1 and not x.open_rank for x in _values(tensors)):
        raise NotFusable(MIXES_BATCH)
    return read_cat(tensors, 1)


@READERS.reader(torch.stack, moves=1)
def read_stack(tensors: Sequence[Form], dim: int = 0) -> Form:
    """A concatenation along a new dimension of the values, whose rank must be known."""
    return read_cat([_layer(read_unsqueeze(x, dim)) for x in _values(tensors)], dim)


def _layer(x: Form) -> Form:
    """A step with views inside, of which no layer is written in the middle."""
    return replace(x, recent=(None,))


def _values(tensors: object) -> list[Form]:
    parts = list(tensors) if isinstance(tensors, (list, tuple)) else []
    values = [x for x in parts if isinstance(x, Form)]
    if not values or len(values) < len(parts):
        raise NotFusable("a concatenation with something that is no value", Kind.UNREAD)
    return values


@READERS.reader(torch.index_select, "index_select", moves=1)
def read_index_select(input: Form, dim: int, index: Tensor) -> Form:
    """Rows of an identity matrix along `dim`; refuses the batch. index: (positions,)."""
    x, dim = _seen(input, dim)
    if not isinstance(index, Tensor):
        raise NotFusable("positions that are computed at run time", Kind.SIZES)
    return selected(x, dim, index.reshape(-1).tolist())


@READERS.reader(torch.take_along_dim, "take_along_dim", moves=1)
def read_take_along_dim(input: Form, indices: Tensor, dim: int | None = None) -> Form:
    """The same positions of `dim` everywhere; refuses others in other places. indices: of size 1 in all dimensions but
    `dim`.
    """
    if dim is None or not isinstance(indices, Tensor):
        raise NotFusable("positions that are computed at run time, or of all dimensions as one", Kind.SIZES)
    x, right = _seen(known_rank(input, [indices.dim()], certain=True), dim)
    if indices.shape[right] != indices.numel():
        raise NotFusable("no single layer computes this: positions that differ from place to place", Kind.SHAPES)
    return selected(x, right, indices.reshape(-1).tolist())


@READERS.reader(torch.flip, "flip", moves=1)
def read_flip(input: Form, *dims: Any) -> tuple[Form, ...]:
    """Positions last to first, along each of `dims`; refuses the batch."""
    return _in_order(input, {dim: (*FLIP, lambda size: range(size)[::-1]) for dim in flat(dims)})


@READERS.reader(torch.rot90, "rot90", moves=1)
def read_rot90(input: Form, k: int = 1, dims: Sequence[int] = (0, 1)) -> tuple[Form, ...]:
    """A flip and an exchange of two dimensions; of both flips, if it is turned twice."""
    first, second = dims
    if k % 4 == 0:
        return (same(input),)
    flipped = read_flip(input, [(), (second,), (first, second), (first,)][k % 4])
    return tuple(x if k % 2 == 0 else read_transpose(x, first, second) for x in flipped)


@READERS.reader(torch.roll, "roll", moves=1)
def read_roll(input: Form, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> tuple[Form, ...]:
    """Positions rotated, along each of `dims`; refuses the batch, and a roll without `dims`."""
    shifts, dims = flat((shifts,)), flat((dims,))
    if not dims or len(shifts) != len({*dims}):
        raise NotFusable("a roll over all dimensions at once, or one of them twice", Kind.UNREAD)
    return _in_order(input, {d: (f"roll {n}", partial(_rolled, n)) for n, d in zip(shifts, dims, strict=True)})


def _in_order(x: Form, orders: Mapping[int, tuple[str, Order]]) -> tuple[Form, ...]:
    """The positions of dimensions in another order, which has a name: rows of an identity matrix, or, of sizes that are
    free, a resampling.
    """
    return either(lambda: _permuted(x, orders), lambda: _resampled(x, orders))


def _permuted(x: Form, orders: Mapping[int, tuple[str, Order]]) -> Form:
    for dim, (_, order) in orders.items():
        x = _moved(x, dim, order)
    return x


def _resampled(x: Form, orders: Mapping[int, tuple[str, Order]]) -> Form:
    """Each position is one of the axis, whatever is done to the channels there."""
    maps: dict[int, Resampling] = {}
    for dim, (name, _) in orders.items():
        x, right, size = _free_axis(x, dim)
        maps[right] = Resampling((name,), size, size)
    return resampled(x, maps)


def _free_axis(x: Form, dim: int) -> tuple[Form, int, Size]:
    """The form with dimension `dim` in sight, its number from the right, and its size, which is free."""
    x, right = _seen(x, dim)
    size = x.sizes[right]
    # Dimension 1 may be of channels, whose number a later layer tells.
    if size.known or right == -len(x.sizes) or (right == 1 - len(x.sizes) and not size.traced):
        raise NotFusable("positions of a batch, or of channels, in another order or several times", Kind.SHAPES)
    return x, right, size


@READERS.reader(torch.cumsum, "cumsum")
def read_cumsum(input: Form, dim: int) -> Form:
    """Each position of `dim` the sum of those up to it: a triangular matrix of ones; refuses the batch."""
    x, right = _seen(input, dim)
    x = fixed_dim(x, right)
    size = x.sizes[right].factor
    # What it costs is not what such a matrix would.
    return matrix(x, torch.ones(size, size, dtype=torch.float64).tril(), right).made_by(PROBE)


@READERS.reader(torch.repeat_interleave, "repeat_interleave", moves=1)
def read_repeat_interleave(input: Form, repeats: int, dim: int | None = None) -> tuple[Form, ...]:
    """Each position of `dim` so many times in a row: rows of an identity matrix, or, of a size that is free, nearest
    up-sampling; refuses the batch, and numbers per position.
    """
    if dim is None or not isinstance(repeats, int) or repeats < 1:
        raise NotFusable(
            "repeats of all dimensions as one, none, or of some positions more than of others", Kind.UNREAD
        )

    def resample() -> Form:
        x, right, size = _free_axis(input, dim)
        return resampled(x, {right: Resampling(("repeat", repeats), size, size * fixed(repeats))})

    def repeat() -> Form:
        x, right, _ = _free_axis(input, dim)
        return repeated(x, [repeats] + [1] * (-1 - right))

    def select() -> Form:
        return _moved(input, dim, lambda size: [k // repeats for k in range(size * repeats)])

    return either(resample, repeat, select)


@READERS.reader("repeat", torch.tile, "tile", moves=1)
def read_repeat(input: Form, *dims: Any) -> Form:
    """The value so many times in a row along each dimension; refuses the batch, and new dimensions."""
    counts = flat(dims)
    x = known_rank(input, [len(counts)], certain=False)
    for dim, times in enumerate(counts, start=-len(counts)):
        x = x if times == 1 else _moved(x, dim, partial(_repeated, times))
    return same(x) if x.recent == input.recent else x


def _repeated(times: int, size: int) -> list[int]:
    return list(range(size)) * times


@READERS.reader("expand", moves=0, sizes=True)
def read_expand(input: Form, *sizes: int | Size | Sequence[int | Size]) -> Form:
    """The one position of an axis of size 1 so many times; refuses a number that is free, and new dimensions."""
    wanted = flat(sizes)
    x = known_rank(input, [len(wanted)], certain=False)
    for dim, size in enumerate(wanted, start=-len(wanted)):
        if size not in (-1, x.sizes[dim]) and fixed(-1) != size:
            x = _expanded(x, dim, size)
    return same(x) if x.recent == input.recent else x


def _expanded(x: Form, dim: int, size: int | Size) -> Form:
    number = size if isinstance(size, int) else size.factor if size.known else None
    if number is None or x.sizes[dim].hint not in (1, number):
        raise NotFusable("expands an axis to a size that is free", Kind.SIZES)
    x = fixed_dim(x, dim)
    return x if x.sizes[dim].factor == number else selected(x, dim, [0] * number)


def _rolled(shift: int, size: int) -> list[int]:
    return [(k - shift) % size for k in range(size)]


def _moved(x: Form, dim: int, order: Order) -> Form:
    x, right = _seen(x, dim)
    x = fixed_dim(x, right)
    return selected(x, right, order(x.sizes[right].factor))


def part(input: Tensor, lengths: Lengths, dim: int, number: int) -> Tensor:
    """Element `number` of ``torch.split(input, lengths, dim)``: a view.

    input: any shape. lengths: of every part, or that of each.
    """
    return torch.split(input, lengths if isinstance(lengths, int) else list(lengths), dim)[number]


def chunk(input: Tensor, chunks: int, dim: int, number: int) -> Tensor:
    """Element `number` of ``torch.chunk(input, chunks, dim)``: a view."""
    return torch.chunk(input, chunks, dim)[number]


def part_sizes(before: Sequence[Size], lengths: Any, dim: int, number: int) -> list[Size | None]:
    """The sizes of a part of a tensor of sizes `before`; None for one that only the traced value tells."""
    if not before:
        return []
    length = lengths[number] if isinstance(lengths, (list, tuple)) else None
    sizes: list[Size | None] = list(before)
    sizes[dim] = fixed(length) if isinstance(length, int) else None
    return sizes


@READERS.reader(part, moves=0, shape=part_sizes)
def read_part(input: Form, lengths: Lengths, dim: int, number: int) -> Form:
    """One part of a dimension. lengths: of each part, whose sum is the size of the dimension; or one for all parts,
    where a free size is guarded.
    """
    x, dim = _seen(input, dim)
    # A list of lengths makes up the whole size, or the call fails.
    x = fixed_dim(x, dim, None if isinstance(lengths, int) else sum(lengths))
    size = x.sizes[dim].factor
    if isinstance(lengths, int):
        lengths = [min(lengths, size - start) for start in range(0, size, lengths)]
    if sum(lengths) != size:
        raise NotFusable(f"a split of {size} into {sum(lengths)}", Kind.UNREAD)
    ends = [0, *itertools.accumulate(lengths)]
    number %= len(lengths)
    return cropped(x, dim, ends[number], ends[number + 1], 1)


@READERS.reader(chunk, moves=0, shape=part_sizes)
def read_chunk(input: Form, chunks: int, dim: int, number: int) -> Form:
    """One part of ``ceil(size / chunks)`` positions, or of what is left at the end; a free size is guarded."""
    x, dim = _seen(input, dim)
    x = fixed_dim(x, dim)
    return read_part(x, -(-x.sizes[dim].factor // chunks), dim, number)


def section(input: Tensor, where: Lengths, dim: int, number: int) -> Tensor:
    """Element `number` of ``torch.tensor_split(input, where, dim)``: a view.

    input: any shape. where: how many parts, or the positions at which they begin, from the second on.
    """
    return torch.tensor_split(input, where if isinstance(where, int) else list(where), dim)[number]


def section_sizes(before: Sequence[Size], where: Any, dim: int, number: int) -> list[Size | None]:
    """The sizes of a part of a tensor of sizes `before`; None for that of the dimension that is split."""
    return part_sizes(before, None, dim, number)


@READERS.reader(section, moves=0, shape=section_sizes)
def read_section(input: Form, where: Lengths, dim: int, number: int) -> Form:
    """One of so many parts, of which the first may be longer by one; or of those between positions, as a slice."""
    if isinstance(where, int):
        x, dim = _seen(input, dim)
        x = fixed_dim(x, dim)
        each, more = divmod(x.sizes[dim].factor, where)
        return read_part(x, [each + (k < more) for k in range(where)], dim, number)
    ends = [None, *where, None]
    number %= len(where) + 1
    before, after = (slice(None),) * dim, (slice(None),) * (-dim - 1)
    key = slice(ends[number], ends[number + 1])
    return read_getitem(input, (*before, key) if dim >= 0 else (Ellipsis, key, *after))


def even_part(input: Tensor, where: Lengths, dim: int, number: int) -> Tensor:
    """Element `number` of ``torch.hsplit(input, where)``, of dimension 1, or of ``torch.dsplit``: a view."""
    split = torch.hsplit if dim == 1 else torch.dsplit
    return split(input, where if isinstance(where, int) else list(where))[number]


@READERS.reader(even_part, moves=0)
def read_even_part(input: Form, where: Lengths, dim: int, number: int) -> Form:
    """A part as `read_section` has it, of a dimension that is a multiple of how many parts there are; of a vector,
    dimension 1 would be the batch.
    """
    x, right = _seen(input, dim)
    if right >= 0:
        raise NotFusable(MIXES_BATCH)
    if isinstance(where, int) and fixed_dim(x, right).sizes[right].factor % where:
        raise NotFusable(
            f"a split into {where} equal parts of a size that is not known to be a multiple of {where}", Kind.SIZES
        )
    return read_section(x, where, right, number)


def taken(input: Tensor, dim: int, index: int) -> Tensor:
    """Element `index` of ``torch.unbind(input, dim)``: a view without the dimension."""
    return torch.select(input, dim, index)


@READERS.reader(taken, torch.select, "select", moves=0)
def read_taken(input: Form, dim: int, index: int) -> Form:
    """One position of a dimension, without the dimension."""
    before, after = (slice(None),) * dim, (slice(None),) * (-dim - 1)
    return read_getitem(input, (*before, index) if dim >= 0 else (Ellipsis, index, *after))


def _seen(x: Form, dim: int) -> tuple[Form, int]:
    """The form with dimension `dim` in sight, and its number from the right. Where the rank is open, a batch of one
    dimension is assumed, and guarded; not of a linear layer, which takes any number of them.
    """
    if dim < 0:
        return in_sight(x, -dim), dim
    if x.open_rank and (dim >= len(x.sizes) or len(x.sizes) < 3):
        raise NotFusable(NO_RANK)
    if x.open_rank:
        x = known_rank(x, [len(x.sizes)], certain=False)
    return x, dim - len(x.sizes)
