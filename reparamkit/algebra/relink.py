"""The same map, described with other links: atoms split and joined, roles lowered, parts of an axis and the whole."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NotFusable
from ..reasons import Kind
from .operator import FLIP, NO_MAPS, WHOLE, Dims, Edges, Link, Operator, Resampling, Role, dropped, kept
from .size import Size, fixed, product
from .weight import Computed, Diagonals, Ones, Weight


def split(op: Operator, number: int, outer: Size, inner: Size) -> Operator:
    """Split the atom of link `number` in two."""
    link = op.links[number]
    if link.resamples:
        raise NotFusable(NO_MAPS)
    if link.role is Role.BORDER:
        return split(as_diagonal(op, number), number, outer, inner)
    halves = link_halves(link, outer, inner)
    if halves is None:
        # A part of an IN or OUT atom that is no product of two parts.
        return split(widened(op, number), number, outer, inner)
    weight = op.weight
    if link.has_leg:
        weight = _split_leg(weight, op.legs.index(number), *(half.leg_size for half in halves))
    links = (*op.links[:number], *halves, *op.links[number + 1 :])
    return replace(_renumbered(op, number), links=links, weight=weight)


def link_halves(link: Link, outer: Size, inner: Size) -> tuple[Link, Link] | None:
    """A link as an outer and an inner one; None if its part of the axis is no product of two parts.

    Raises `NotFusable` for a stencil.
    """
    if link.role is Role.STENCIL:
        raise NotFusable("a view splits or joins an axis that a convolution or pooling runs along", Kind.SHAPES)
    if not link.segmented:
        return link.resized(outer), link.resized(inner)
    step, (low, high) = inner.factor, link.pad if link.role is Role.OUT else link.cut
    if not any(edge % step for edge in (*link.cut, *link.pad)):
        cut, pad = ((a // step, b // step) for a, b in (link.cut, link.pad))
        return replace(link, size=fixed(link.size.factor // step), cut=cut, pad=pad), Link(link.role, inner)
    first, last = low // step, (link.size.factor - high - 1) // step
    if link.role is Role.DIAGONAL or first != last:
        return None
    # The part lies inside one position of the outer atom.
    around = first, link.size.factor // step - first - 1
    inside = low - first * step, (first + 1) * step - (link.size.factor - high)
    return _part(link.role, outer, around), _part(link.role, inner, inside)


def _part(role: Role, size: Size, edges: Edges) -> Link:
    return Link(role, size, pad=edges) if role is Role.OUT else Link(role, size, cut=edges)


def _split_leg(weight: Weight, leg: int, outer: int, inner: int) -> Weight:
    return Computed(lambda: _unflattened(weight.tensor(), leg, outer, inner))


def _unflattened(tensor: Tensor, leg: int, outer: int, inner: int) -> Tensor:
    return tensor.reshape(*tensor.shape[:leg], outer, inner, *tensor.shape[leg + 1 :])


def _renumbered(op: Operator, number: int) -> Operator:
    """`op` with dims in which link `number` has become the links `number` and `number + 1`."""

    def renamed(dims: Dims) -> Dims:
        return tuple(tuple(n for i in dim for n in _after_split(i, number)) for dim in dims)

    return replace(op, source=renamed(op.source), value=renamed(op.value))


def _after_split(i: int, number: int) -> tuple[int, ...]:
    return (i, i + 1) if i == number else (i + (i > number),)


def densify(op: Operator, number: int) -> Operator:
    """Write the axis of link `number` as a full matrix (a pair of an IN and an OUT atom)."""
    link = op.links[number]
    if not link.size.known:
        raise NotFusable(f"needs a fixed size where the size is free: {link.size}", Kind.SIZES)
    if link.role is Role.MEAN:
        return _mean_as_sum(op, number)
    if link.role is Role.BORDER:
        return densify(as_diagonal(op, number), number)
    links = list(op.links)
    size_out = replace(link, after=()).size_out
    links[number : number + 1] = [
        Link(Role.IN, link.size, cut=link.cut, maps=link.maps),
        Link(Role.OUT, size_out, pad=link.pad, after=link.after),
    ]
    dense = replace(_renumbered(op, number), links=tuple(links))
    leg = op.legs.index(number) if link.has_leg else None
    if link.up > 1:
        assert leg is not None
        weight: Weight = _spread_matrix(op.weight, leg, link, size_out.factor)
    else:
        shape, row = tuple(dense.links[i].leg_size for i in dense.legs), dense.legs.index(number)
        diagonal = link.role is Role.DIAGONAL
        weight = Diagonals(op.weight, leg, diagonal, row, row + 1, shape, link.taps, link.stride)
    return replace(dense, weight=weight, source=_without(dense.source, number + 1), value=_without(dense.value, number))


def _spread_matrix(weight: Weight, leg: int, link: Link, size_out: int) -> Weight:
    """The taps of a transposed stencil as a matrix: output j reads input i where ``up * i = stride * j + tap``."""
    size_in = link.size.factor

    def compute() -> Tensor:
        hit = torch.zeros(len(link.taps), size_in, size_out, dtype=torch.float64)
        for number, tap in enumerate(link.taps):
            for j in range(size_out):
                i, rest = divmod(link.stride * j + tap, link.up)
                if rest == 0 and 0 <= i < size_in:
                    hit[number, i, j] = 1
        tensor = weight.tensor()
        made: Tensor = torch.tensordot(tensor.movedim(leg, -1), hit, dims=1)
        return made.movedim((-2, -1), (leg, leg + 1))

    return Computed(compute)


def _without(dims: Dims, number: int) -> Dims:
    return tuple(tuple(i for i in dim if i != number) for dim in dims)


def _mean_as_sum(op: Operator, number: int) -> Operator:
    size = op.links[number].size
    links = list(op.links)
    links[number] = replace(op.links[number], role=Role.IN)
    made = replace(op, links=tuple(links))
    return replace(made, weight=_spread(op.weight, made.legs.index(number), size.factor, 1 / size.factor))


def _spread(weight: Weight, leg: int, size: int, factor: float = 1.0) -> Weight:
    """A new leg along which the weight repeats, times `factor`."""

    def compute() -> Tensor:
        tensor = weight.tensor().unsqueeze(leg)
        return tensor.repeat_interleave(size, dim=leg).mul_(factor)

    return Computed(compute)


def as_diagonal(op: Operator, number: int) -> Operator:
    """FREE or BORDER -> DIAGONAL: the weight repeats along the axis; of a free size raises `NotFusable`."""
    link = op.links[number]
    if not link.size.known or link.size.factor < link.low + link.high:
        raise NotFusable(f"needs a fixed size, larger than the border, where the size is {link.size}", Kind.BORDER)
    inner = op if link.role is Role.BORDER else with_border(op, number, 0, 0)
    links = list(op.links)
    links[number] = Link(Role.DIAGONAL, link.size, maps=link.maps, after=link.after)
    middle = link.size.factor - link.low - link.high
    places = [*range(link.low), *[link.low] * middle, *range(link.low + 1, link.low + 1 + link.high)]
    return replace(op, links=tuple(links), weight=_gathered(inner.weight, inner.legs.index(number), places))


def with_border(op: Operator, number: int, low: int, high: int) -> Operator:
    """FREE or BORDER -> BORDER with `low` and `high` numbers at the ends (no fewer than there are)."""
    link = op.links[number]
    links = list(op.links)
    links[number] = Link(Role.BORDER, link.size, low=low, high=high)
    made = replace(op, links=tuple(links))
    leg = made.legs.index(number)
    inner = op.weight if link.has_leg else _spread(op.weight, leg, 1)
    last = link.low + link.high
    places = [min(k, link.low) for k in range(low)] + [link.low]
    places += [max(last - (high - 1 - k), link.low) for k in range(high)]
    return replace(made, weight=_gathered(inner, leg, places))


def _gathered(weight: Weight, leg: int, places: list[int]) -> Weight:
    """Entry k of the new leg is entry ``places[k]`` of the old one."""
    return Computed(lambda: weight.tensor().index_select(leg, torch.tensor(places)))


def with_taps(op: Operator, number: int, like: Link) -> Operator:
    """FREE or STENCIL -> STENCIL with the taps, stride and c of `like` (a superset of its own taps)."""
    link = op.links[number]
    if link.role is Role.STENCIL and link.taps == like.taps:
        return op
    links = list(op.links)
    links[number] = replace(like, size=link.size, maps=link.maps, after=link.after)
    made = replace(op, links=tuple(links))
    leg = made.legs.index(number)
    positions = [like.taps.index(tap) for tap in link.taps]
    inner = op.weight if link.has_leg else _spread(op.weight, leg, 1)
    return replace(made, weight=_placed(inner, leg, positions, len(like.taps)))


def behind_padding(op: Operator, number: int, around: Resampling, more: Edges) -> Operator:
    """A FREE link, or a STENCIL that reads no border, as one on its axis with positions `around` it. more: how many
    more than before, which it skips.
    """
    op = with_taps(op, number, Link(Role.STENCIL, op.links[number].size)) if op.links[number].role is Role.FREE else op
    link, (low, high) = op.links[number], more
    taps = tuple(tap + low for tap in link.taps)
    links = list(op.links)
    links[number] = replace(link, size=around.after, taps=taps, c=link.c - low - high, maps=(around,))
    return replace(op, links=tuple(links))


# --- parts of an axis ---------------------------------------------------------------------------------


def unflipped(op: Operator) -> Operator:
    """`op` without the flips of an axis that undo each other: two in a row, those around a window, which is its mirror
    image then, and one before an average over the axis.
    """
    for number, link in enumerate(op.links):
        if not link.resamples:
            continue
        maps = _flipped_once(link)
        if link.role is Role.STENCIL and _ends_flipped(maps) and _ends_flipped(link.after[:1]) and _mirrors(link):
            op, link, maps = _mirrored(op, number), replace(_mirror(link), after=link.after[1:]), maps[:-1]
        op = replace(op, links=(*op.links[:number], replace(link, maps=maps), *op.links[number + 1 :]))
    return op


def _ends_flipped(maps: tuple[Resampling, ...]) -> bool:
    return bool(maps) and maps[-1].name == FLIP


def _flipped_once(link: Link) -> tuple[Resampling, ...]:
    """The resamplings before a link, without those at their end that make no difference."""
    maps = link.maps
    while _ends_flipped(maps) and (link.role is Role.MEAN or _ends_flipped(maps[:-1])):
        maps = maps[: -1 if link.role is Role.MEAN else -2]
    return maps


def _mirrors(link: Link) -> bool:
    """Whether the windows end where the axis does, so that they are windows from the other end too."""
    return link.stride == 1 or (link.up == 1 and link.size.known and (link.size.factor + link.c) % link.stride == 0)


def _mirror(link: Link) -> Link:
    """The stencil that does to a flipped axis what `link` does to the axis, with its outputs flipped."""
    return replace(link, taps=tuple(-(link.c + link.up) - tap for tap in reversed(link.taps)))


def _mirrored(op: Operator, number: int) -> Operator:
    """With the taps of a stencil in the other order."""
    leg, weight = op.legs.index(number), op.weight
    return op if isinstance(weight, Ones) else replace(op, weight=Computed(lambda: weight.tensor().flip(leg)))


def as_part(op: Operator, number: int) -> Operator:
    """A stencil of one tap on a fixed size (a crop, zero padding) -> a DIAGONAL of ones between two parts."""
    link = op.links[number]
    (shift,), size, size_out = link.taps, link.size.factor, link.size_out.factor
    first = min(max(0, shift), size)
    length = max(0, min(size, shift + size_out) - first)
    before = min(max(0, -shift), size_out)
    cut, pad = (first, size - first - length), (before, size_out - before - length)
    part = Link(Role.DIAGONAL, link.size, cut=cut, pad=pad, maps=link.maps, after=link.after)
    links = (*op.links[:number], part, *op.links[number + 1 :])
    return replace(op, links=links, weight=_repeated(op.weight, op.legs.index(number), part.leg_size))


def _repeated(weight: Weight, leg: int, times: int) -> Weight:
    """A leg of length 1 made longer."""
    if isinstance(weight, Ones):
        return Ones((*weight.shape[:leg], times, *weight.shape[leg + 1 :]))
    return Computed(lambda: weight.tensor().repeat_interleave(times, dim=leg))


def is_shift(link: Link) -> bool:
    """Whether a link is a stencil that `as_part` takes."""
    return link.role is Role.STENCIL and len(link.taps) == link.stride == link.up == 1 and link.size.known


def widened(op: Operator, number: int, low: int | None = None, high: int | None = None) -> Operator:
    """`op` with `low` and `high` zeros more in its weight along a link (default: so many that the link covers its atom;
    of a DIAGONAL as many as fit on both sides).
    """
    link = op.links[number]
    edges = [e for e, role in ((link.cut, Role.OUT), (link.pad, Role.IN)) if link.role is not role]
    low, high = (min(e[k] for e in edges) if n is None else n for k, n in enumerate((low, high)))
    if (low, high) == WHOLE:
        return op
    leg, weight = op.legs.index(number), op.weight
    wide = Computed(lambda: extended(weight.tensor(), leg, low, high))
    return replace(op, links=_with_edges(op, number, -low, -high), weight=wide)


def extended(tensor: Tensor, dim: int, low: int, high: int) -> Tensor:
    """`tensor` with zeros before and after it along a dimension."""
    return F.pad(tensor.movedim(dim, -1), (low, high)).movedim(-1, dim) if low or high else tensor


def narrowed(op: Operator, number: int, low: int, high: int) -> Operator:
    """`op` without the first `low` and the last `high` entries of its weight along a link."""
    if (low, high) == WHOLE:
        return op
    leg, weight = op.legs.index(number), op.weight
    links = _with_edges(op, number, low, high)
    if isinstance(weight, Ones):
        ones = Ones((*weight.shape[:leg], links[number].leg_size, *weight.shape[leg + 1 :]))
        return replace(op, links=links, weight=ones)
    narrow = Computed(lambda: weight.tensor().narrow(leg, low, links[number].leg_size).clone())
    return replace(op, links=links, weight=narrow)


def _with_edges(op: Operator, number: int, low: int, high: int) -> tuple[Link, ...]:
    link = op.links[number]
    cut = link.cut if link.role is Role.OUT else (link.cut[0] + low, link.cut[1] + high)
    pad = link.pad if link.role is Role.IN else (link.pad[0] + low, link.pad[1] + high)
    return (*op.links[:number], replace(link, cut=cut, pad=pad), *op.links[number + 1 :])


def paired(op: Operator, number_in: int, number_out: int) -> Operator:
    """An IN and an OUT atom of which one position each is used -> one DIAGONAL atom of which one position is used."""
    link_in, link_out = op.links[number_in], op.links[number_out]
    links = list(op.links)
    links[number_in] = replace(link_in, role=Role.DIAGONAL, pad=link_out.pad, after=link_out.after)
    value = tuple(tuple(number_in if i == number_out else i for i in dim) for dim in op.value)
    return dropped(replace(op, links=tuple(links), value=value), number_out)


def whole(op: Operator) -> Operator:
    """`op` with all zeros written out; a DIAGONAL that moves its axis becomes a matrix."""
    while (number := next((i for i, link in enumerate(op.links) if link.segmented), None)) is not None:
        link = op.links[number]
        moves = link.role is Role.DIAGONAL and link.cut != link.pad
        op = densify(op, number) if moves else widened(op, number)
    return op


def _placed(weight: Weight, leg: int, positions: list[int], length: int) -> Weight:
    def compute() -> Tensor:
        tensor = weight.tensor()
        shape = list(tensor.shape)
        shape[leg] = length
        wide = tensor.new_zeros(shape)
        wide.movedim(leg, 0)[positions] = tensor.movedim(leg, 0)
        return wide

    return Computed(compute)


def merge(op: Operator, numbers: tuple[int, ...]) -> Operator:
    """Join adjacent atoms of one role (all IN or all OUT, of one dimension) to one atom."""
    if any(op.links[i].resamples for i in numbers):
        raise NotFusable(NO_MAPS)
    for number in numbers:
        op = widened(op, number)
    first = numbers[0]
    size = product(op.links[i].size for i in numbers)
    keep = [i for i in range(len(op.links)) if i not in numbers[1:]]
    links = tuple(op.links[i].resized(size) if i == first else op.links[i] for i in keep)
    moved = [op.legs.index(i) for i in numbers]
    return replace(
        op,
        links=links,
        source=kept(op.source, keep),
        value=kept(op.value, keep),
        weight=_join_legs(op.weight, moved),
    )


def strided(op: Operator) -> Operator:
    """`op` with one window along an axis that it reads in pieces: by a window along the outer atom and a matrix from
    the inner ones, as a convolution behind a pixel unshuffle does.
    """
    for source, value in zip(op.source, op.value, strict=True):
        outer, inner = source[:1], source[1:]
        roles = {op.links[i].role for i in inner}
        if value == outer and roles == {Role.IN} and _gathers(op.links[outer[0]]):
            return strided(_one_window(op, outer[0], inner))
    return op


def unmoved(op: Operator) -> Operator:
    """`op` without windows of one tap that give each position its own value, as those behind a crop that is undone."""
    while (number := next((i for i, link in enumerate(op.links) if _is_unmoved(link)), None)) is not None:
        leg, links, weight = op.legs.index(number), list(op.links), op.weight
        links[number] = Link(Role.FREE, op.links[number].size)
        op = replace(op, links=tuple(links), weight=_squeezed(weight, leg))
    return op


def _is_unmoved(link: Link) -> bool:
    plain = (link.taps, link.stride, link.c, link.up) == ((0,), 1, -1, 1)
    return link.role is Role.STENCIL and plain and not link.resamples


def _squeezed(weight: Weight, leg: int) -> Weight:
    return Computed(lambda: weight.tensor().squeeze(leg))


def _gathers(link: Link) -> bool:
    return not link.resamples and (link.role is Role.FREE or (link.role is Role.STENCIL and link.up == 1))


def _one_window(op: Operator, outer: int, inner: tuple[int, ...]) -> Operator:
    link, count = op.links[outer], math.prod(op.links[i].leg_size for i in inner)
    op = with_taps(op, outer, replace(link, role=Role.STENCIL))
    taps = tuple(count * tap + k for tap in link.taps for k in range(count))
    window = Link(Role.STENCIL, link.size * fixed(count), taps, count * link.stride, count * link.c)
    keep = [i for i in range(len(op.links)) if i not in inner]
    links = tuple(window if i == outer else op.links[i] for i in keep)
    weight = _join_legs(op.weight, [op.legs.index(i) for i in (outer, *inner)])
    return replace(op, links=links, source=kept(op.source, keep), value=kept(op.value, keep), weight=weight)


def _join_legs(weight: Weight, legs: list[int]) -> Weight:
    def compute() -> Tensor:
        tensor = weight.tensor()
        place = sum(leg not in legs for leg in range(legs[0]))
        joined = tensor.movedim(legs, tuple(range(place, place + len(legs))))
        return joined.flatten(place, place + len(legs) - 1)

    return Computed(compute)
