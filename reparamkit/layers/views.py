"""Views: reshape, permute and their spellings, and slices."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.align import Face, traced_pins
from ..algebra.form import Form
from ..algebra.operator import pin
from ..algebra.regroup import NO_RANK, in_sight, known_rank, permute, ranked, reshape, same
from ..algebra.segments import TAKES_NOTHING, cropped, fixed_dim, in_multiples, selected
from ..algebra.size import ONE, Pin, Size, Symbol, fixed, parts, product, reach, roots, whole_multiples
from ..errors import NotFusable
from ..reasons import Kind
from .pool import without_units
from .registry import READERS
from .wide import CASTS

Extent = int | Size
PerDim = int | Sequence[int]


def flat(shape: tuple[Any, ...]) -> list[Any]:
    """The arguments of ``x.view(2, 3)`` and of ``x.view((2, 3))``."""
    return list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)


def _sizes(shape: tuple[Any, ...]) -> list[Size]:
    return [n if isinstance(n, Size) else fixed(n) for n in flat(shape)]


def reshaped(before: Sequence[Size], *shape: Any) -> list[Size | None]:
    """Sizes of ``x.reshape(*shape)`` for an x of sizes `before`; None where -1 cannot be followed."""
    wanted = _sizes(shape)
    found: list[Size | None] = list(wanted)
    if fixed(-1) in wanted:
        place = wanted.index(fixed(-1))
        others = product(size for d, size in enumerate(wanted) if d != place)
        found[place] = product(before).divide(others)
    return found


@READERS.reader(torch.reshape, "reshape", "view", sizes=True, shape=reshaped)
def read_reshape(input: Form, *shape: Extent | Sequence[Extent] | torch.dtype) -> Form:
    """The same numbers in other dimensions, row-major; a free size that a number in `shape` fixes is pinned."""
    x = ranked(input)
    if any(isinstance(n, torch.dtype) for n in shape):
        raise NotFusable("a view as another dtype", Kind.DTYPE)
    wanted = [size.substitute(x.pins) for size in _sizes(shape)]
    pins = _fixed_by([size for dim in Face(x.sample, "value").atoms for size in dim], wanted)
    x = x.mapped(lambda op: pin(op, pins, guard=True))
    sizes = [size for size in reshaped(x.sizes, *(size.substitute(pins) for size in wanted)) if size is not None]
    if len(sizes) != len(wanted):
        raise NotFusable("a reshape with -1 whose size cannot be followed", Kind.SIZES)
    *first, last = wanted
    # ``x.view(n, -1)`` is a flatten: no layer changes the number of samples, as it may that of channels.
    return reshape(x, sizes, counts=last == fixed(-1) and len(first) == 1 and not first[0].known)


def _fixed_by(before: list[Size], wanted: list[Size]) -> dict[Symbol, Pin]:
    """Free sizes that the numbers in a reshape fix, guarded: h and w in ``(n, 8, h, w) -> (-1, 128)``, or c in
    ``(n, 6, t) -> (n c, 1, t)`` where the 6 is that of a weight. before: sizes of the atoms.
    """
    seen = {symbol for size in before for symbol in size.symbols}
    others = {symbol for size in wanted for symbol in size.symbols if symbol.traced} - seen
    pins: dict[Symbol, Pin] = {symbol: symbol.hint for symbol in others if fixed(symbol.hint) in before}
    rest = product(wanted[1:])
    if wanted[:1] == [fixed(-1)] and rest.known and product(before).divide(rest) is None:
        pins |= _counted(before, rest.factor)
    return (
        pins
        or _asked_parts(before, wanted)
        or _whole_parts(before, wanted)
        or _measured(before, wanted, others)
        or _spelled(before, wanted)
    )


def _counted(before: list[Size], count: int) -> dict[Symbol, Pin]:
    """Free sizes of the last dimensions, which have `count` positions; of the first of these maybe a part, as of the 8
    channels in ``(n, 8, 4, 4) -> (4 n, 32)``.
    """
    for d in range(1, len(before)):
        inner = product(before[d:]).hint
        if inner == count:
            return traced_pins(before[d:])
        if 0 < inner < count and count % inner == 0:
            parts = whole_multiples(before[d - 1], count // inner)
            whole = before[d - 1].known and before[d - 1].factor % (count // inner) == 0
            return traced_pins(before[d:]) | parts if parts or whole else {}
    return {}


def _asked_parts(before: list[Size], wanted: list[Size]) -> dict[Symbol, Pin]:
    """That free sizes whose parts are counted are multiples, without which a -1 would stand for no known number: h and
    w of 2 in ``(n, h, w, c) -> (n, h // 2, 2, w // 2, 2, -1)``.
    """
    others = product(size for size in wanted if size != fixed(-1))
    pins = {symbol: pin for size in wanted for symbol, pin in parts(size).items()}
    if fixed(-1) not in wanted or product(before).divide(others) is not None:
        return {}
    return pins if product(before).substitute(pins).divide(others.substitute(pins)) is not None else {}


def _whole_parts(before: list[Size], wanted: list[Size]) -> dict[Symbol, Pin]:
    """That a free size is a multiple of a number, without which a -1 would stand for no whole number: n of 3 in
    ``(b, n, 4) -> (b, -1, 12)``. If it may be one of several, the last of those that are a multiple in the example.
    """
    total, others = product(before), product(size for size in wanted if size != fixed(-1))
    rest = Size(1, total.symbols).divide(Size(1, others.symbols))
    if fixed(-1) not in wanted or rest is None or others.factor <= 0:
        return {}
    count = others.factor // math.gcd(others.factor, total.factor)
    inner = [symbol for size in reversed(before) for symbol in size.symbols if symbol in rest.symbols]
    found = (whole_multiples(Size(1, (symbol,)), count) for symbol in inner if symbol.traced and count > 1)
    return whole_multiples(rest, count) or next(filter(None, found), {})


def _measured(before: list[Size], wanted: list[Size], others: set[Symbol]) -> dict[Symbol, Pin]:
    """Sizes that are read elsewhere, if a -1 can be followed only with them: h, w in ``(n, 32) -> (-1, 2, h, w)``."""
    pins: dict[Symbol, Pin] = {symbol: symbol.hint for symbol in others}
    rest = product(size.substitute(pins) for size in wanted if size != fixed(-1))
    known = rest.factor > 0 and product(before).divide(rest) is not None
    return pins if fixed(-1) in wanted and known else {}


def _spelled(before: list[Size], wanted: list[Size]) -> dict[Symbol, Pin]:
    """Sizes that numbers stand for: h and w of 9 in ``(n, 8, h, w) -> (n, 8, 81)``."""
    total, others = product(before), set().union(*map(roots, wanted))
    free = roots(total) - others
    pins: dict[Symbol, Pin] = {symbol: symbol.hint for symbol in free if symbol.traced}
    return pins if pins and total.substitute(pins) == product(wanted) else {}


@READERS.reader(torch.flatten, "flatten")
def read_flatten(input: Form, start_dim: int = 0, end_dim: int = -1) -> Form:
    """Dimensions start_dim to end_dim as one; where the rank is open, only all but the first, behind a guard."""
    x = input
    if x.open_rank and start_dim == 1 and end_dim == -1 and len(x.sizes) >= 3:
        # (..., C, H, W): the pooling or convolution before it takes a batch, or (guarded) a single sample.
        x = known_rank(x, [len(x.sizes)], certain=False)
    x = ranked(x)
    if not (rank := len(x.sizes)):
        raise NotFusable(NO_RANK)
    first, last = start_dim % rank, end_dim % rank
    joined = product(x.sizes[first : last + 1])
    return reshape(x, [*x.sizes[:first], joined, *x.sizes[last + 1 :]], counts=True)


@READERS.reader(nn.Flatten)
def read_flatten_layer(layer: nn.Flatten, input: Form) -> Form:
    """Some dimensions as one; by default all but the first."""
    return read_flatten(input, layer.start_dim, layer.end_dim)


@READERS.reader(nn.Unflatten)
def read_unflatten_layer(layer: nn.Unflatten, input: Form) -> Form:
    """One dimension as several."""
    return read_unflatten(input, layer.dim, layer.unflattened_size)


def unflattened(before: Sequence[Size], dim: int, sizes: Sequence[Any]) -> list[Size | None]:
    """Sizes of ``x.unflatten(dim, sizes)`` for an x of sizes `before`; None where -1 cannot be followed."""
    return reshaped(before, _split_up(before, dim, sizes)) if before else []


def _split_up(before: Sequence[Size], dim: int, sizes: Sequence[Any]) -> list[Any]:
    at = dim % len(before)
    return [*before[:at], *sizes, *before[at + 1 :]]


@READERS.reader(torch.unflatten, "unflatten", sizes=True, shape=unflattened)
def read_unflatten(input: Form, dim: int, sizes: Sequence[Extent]) -> Form:
    """One dimension as several, of which one may be -1; the rank must be known."""
    x = ranked(input)
    return read_reshape(x, _split_up(x.sizes, dim, sizes))


@READERS.reader(torch.permute, "permute")
def read_permute(input: Form, *dims: Any) -> Form:
    """The dimensions in another order, which names all of them: that tells the rank."""
    order = flat(dims)
    x = known_rank(input, [len(order)])
    return permute(x, [int(d) % len(order) for d in order])


@READERS.reader(torch.transpose, torch.swapaxes, torch.swapdims, "transpose", "swapaxes", "swapdims")
def read_transpose(input: Form, dim0: int, dim1: int) -> Form:
    """Two dimensions exchanged; the rank must be known."""
    x = ranked(input)
    order = list(range(len(x.sizes)))
    if not all(-len(order) <= dim < len(order) for dim in (dim0, dim1)):
        raise NotFusable(NO_RANK)
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(x, order)


@READERS.reader("t")
def read_t(input: Form) -> Form:
    """(n, m) -> (m, n); a vector, which stays as it is, is not meant, and guarded against."""
    return read_transpose(known_rank(input, [2], certain=False), 0, 1)


@READERS.reader(getattr)
def read_attribute(input: Form, name: str) -> Form:
    """The transposes that are attributes; the rank must be known."""
    if name in ("mT", "mH"):
        return read_transpose(input, -2, -1)
    if name in ("T", "H"):
        x = known_rank(input, [2], certain=False) if input.open_rank else input
        return permute(x, range(len(x.sizes))[::-1])
    if name == "data":
        return read_detach(input)
    raise NotFusable(f"the attribute '{name}' of a value", Kind.UNREAD)


@READERS.reader(torch.detach, "detach")
def read_detach(input: Form) -> Form:
    """Refused, though the numbers are the same."""
    raise NotFusable(
        "a value without its history: gradients end there, and would not in a merged layer", Kind.GRADIENTS
    )


@READERS.reader(torch.adjoint, "adjoint")
def read_adjoint(input: Form) -> Form:
    """The last two dimensions exchanged; the rank must be known."""
    return read_transpose(input, -2, -1)


@READERS.reader(torch.movedim, torch.moveaxis, "movedim", "moveaxis")
def read_movedim(input: Form, source: PerDim, destination: PerDim) -> Form:
    """Some dimensions at other places, the others in order; the rank must be known."""
    x = ranked(input)
    rank = len(x.sizes)
    moved = {to % rank: of % rank for of, to in zip(flat((source,)), flat((destination,)), strict=True)}
    others = iter(d for d in range(rank) if d not in moved.values())
    return permute(x, [moved[d] if d in moved else next(others) for d in range(rank)])


@READERS.reader(F.pixel_shuffle)
def read_pixel_shuffle(input: Form, upscale_factor: int) -> Form:
    """(..., c r r, h, w) -> (..., c, h r, w r)."""
    r = fixed(upscale_factor)
    *batch, c, h, w = _image(input).sizes
    inner = c.divide(r * r)
    if inner is None:
        raise NotFusable("a pixel shuffle of a number of channels that is not known", Kind.SIZES)
    n = len(batch)
    split = reshape(_image(input), [*batch, inner, r, r, h, w])
    turned = permute(split, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return reshape(turned, [*batch, inner, h * r, w * r])


@READERS.reader(F.pixel_unshuffle)
def read_pixel_unshuffle(input: Form, downscale_factor: int) -> Form:
    """(..., c, h r, w r) -> (..., c r r, h, w)."""
    r = fixed(downscale_factor)
    x = in_multiples(in_multiples(_image(input), -1, downscale_factor), -2, downscale_factor)
    *batch, c, high, wide = x.sizes
    h, w = high.divide(r), wide.divide(r)
    assert h is not None
    assert w is not None
    n = len(batch)
    split = reshape(x, [*batch, c, h, r, w, r])
    return reshape(permute(split, [*range(n), n, n + 2, n + 4, n + 1, n + 3]), [*batch, c * r * r, h, w])


@READERS.reader(F.channel_shuffle)
def read_channel_shuffle(input: Form, groups: int) -> Form:
    """(n, g c, ...) -> (n, c g, ...)."""
    x = ranked(input)
    batch, channels, *rest = x.sizes
    inner = channels.divide(fixed(groups))
    if inner is None:
        raise NotFusable("a channel shuffle of a number of channels that is not known", Kind.SIZES)
    split = reshape(x, [batch, fixed(groups), inner, *rest])
    return reshape(permute(split, [0, 2, 1, *range(3, len(rest) + 3)]), [batch, channels, *rest])


def _image(x: Form) -> Form:
    """With a batch and (..., c, h, w) in sight; of an open rank, a batch of one dimension is assumed and guarded."""
    return known_rank(x, [4], certain=False) if x.open_rank else x


@READERS.reader(nn.PixelShuffle)
def read_pixel_shuffle_layer(layer: nn.PixelShuffle, input: Form) -> Form:
    """Channels become squares of r x r pixels: (..., c r r, h, w) -> (..., c, h r, w r)."""
    return read_pixel_shuffle(input, layer.upscale_factor)


@READERS.reader(nn.PixelUnshuffle)
def read_pixel_unshuffle_layer(layer: nn.PixelUnshuffle, input: Form) -> Form:
    """Squares of r x r pixels become channels: (..., c, h r, w r) -> (..., c r r, h, w)."""
    return read_pixel_unshuffle(input, layer.downscale_factor)


@READERS.reader(nn.ChannelShuffle)
def read_channel_shuffle_layer(layer: nn.ChannelShuffle, input: Form) -> Form:
    """The channels of all groups in turn: (n, g c, ...) -> (n, c g, ...)."""
    return read_channel_shuffle(input, layer.groups)


@READERS.reader(torch.unsqueeze, "unsqueeze")
def read_unsqueeze(input: Form, dim: int) -> Form:
    """A new dimension of size 1; the rank must be known."""
    x = ranked(input)
    at = dim % (len(x.sizes) + 1)
    return reshape(x, [*x.sizes[:at], ONE, *x.sizes[at:]], counts=True)


@READERS.reader(torch.squeeze, "squeeze")
def read_squeeze(input: Form, dim: int | Sequence[int] | None = None) -> Form:
    """Without the dimensions `dim`; refuses one that is not known to be 1, and a call without `dim`."""
    if dim is None:
        raise NotFusable("squeeze() of every dimension that happens to be 1", Kind.SIZES)
    return without_units(ranked(input), [dim] if isinstance(dim, int) else dim)


@READERS.reader(torch.clone, "contiguous", "clone", operator.pos, torch.positive, "positive")
def read_copy(input: Form, *, memory_format: object = None) -> Form:
    """The same form: where the numbers lie in memory is no part of it."""
    # A view that changes nothing: the call stays where it is, since a later view() or write may need it.
    return same(input)


@READERS.reader("to", "type", "type_as", "cpu", "cuda", *CASTS)
def read_cast(input: Form, *target: Any, **options: Any) -> Form:
    """A cast to the dtype and device that the value has: the engine refuses others. It stays where it is."""
    if any(isinstance(value, Form) for value in (*target, *options.values())):
        raise NotFusable("a cast to the dtype of a value", Kind.DTYPE)
    return same(input)


def sliced_sizes(before: Sequence[Size], key: Any) -> list[Size | None]:
    """The sizes of what slices and numbers leave of a tensor of sizes `before`; None for one that only the traced value
    tells. Nothing if the key has other parts.
    """
    keys = keys_of(key)
    if not before or not all(k is Ellipsis or type(k) in (int, slice) for k in keys):
        return []
    place = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    first, last = keys[:place], keys[place + 1 :]
    every = (*first, *[slice(None)] * (len(before) - len(first) - len(last)), *last)
    pairs = zip(before, every, strict=False)
    return [size if k == slice(None) else None for size, k in pairs if isinstance(k, slice)]


def keys_of(key: Any) -> tuple[Any, ...]:
    """What an index has for each dimension: ``x[key]``."""
    return key if isinstance(key, tuple) else (key,)


def copies(key: Any) -> int:
    """Slices are a view, an index by a list is a copy."""
    return int(not all(k is Ellipsis or k is None or isinstance(k, (slice, int)) for k in keys_of(key)))


@READERS.reader(operator.getitem, moves=copies, sizes=True, shape=sliced_sizes)
def read_getitem(input: Form, key: Any) -> Form:
    """Slices of some dimensions: a window of one tap, with a step; a number takes one position, without its axis;
    one list of positions may change their order; None is a new axis.
    """
    keys = keys_of(key)
    if any(k is None for k in keys):
        return _with_axes(read_getitem(input, tuple(k for k in keys if k is not None)), keys)
    if sum(_is_list(k) for k in keys) == 1 and all(_is_list(k) or k in (Ellipsis, slice(None)) for k in keys):
        return _taken_in_order(input, keys)
    if not all(k is Ellipsis or isinstance(k, (slice, int)) for k in keys) or any(isinstance(k, bool) for k in keys):
        raise NotFusable("an index that is no slice", Kind.UNREAD)
    x = input
    if x.open_rank and len(keys) == len(x.sizes) >= 3 and Ellipsis not in keys:
        # As many as a batch of what the layer before it makes has dimensions, which a guard checks.
        x = known_rank(x, [len(keys)], certain=False)
    elif not x.open_rank and keys and keys[0] is not Ellipsis:
        # Counted from the left, another rank has other dimensions.
        x = known_rank(x, [len(x.sizes)], certain=False)
    trailing = _trailing(x, keys)
    for dim, part in zip(range(-len(trailing), 0), trailing, strict=True):
        if part != slice(None):
            x = _sliced(x, dim, part if isinstance(part, slice) else slice(part, part + 1 or None))
    taken = [dim for dim, part in zip(range(-len(trailing), 0), trailing, strict=True) if isinstance(part, int)]
    return without_units(ranked(x), taken) if taken else x


def _with_axes(x: Form, keys: tuple[Any, ...]) -> Form:
    """What the other keys left, with a new axis where a key is None."""
    left = [k for k in keys if k is None or not isinstance(k, int)]
    end = left.index(Ellipsis) if Ellipsis in left else len(left)
    for place in [n for n in range(end) if left[n] is None]:
        x = read_unsqueeze(x, place)
    for place in [n for n in range(len(left))[:end:-1] if left[n] is None]:
        x = read_unsqueeze(x, place - len(left))
    return x


def _trailing(x: Form, keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """The keys of the last dimensions, as many as there is something to be done to."""
    place = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    before, after = keys[:place], keys[place + 1 :]
    if Ellipsis in keys and all(key == slice(None) for key in before):
        return after
    return (*before, *[slice(None)] * (len(ranked(x).sizes) - len(before) - len(after)), *after)


def _is_list(key: Any) -> bool:
    if isinstance(key, list):
        return all(isinstance(k, int) and not isinstance(k, bool) for k in key)
    return isinstance(key, Tensor) and key.dim() == 1 and key.dtype in (torch.int64, torch.bool)


def _taken_in_order(x: Form, keys: tuple[Any, ...]) -> Form:
    place = next(n for n, key in enumerate(keys) if _is_list(key))
    dim = place - len(keys) if Ellipsis in keys[:place] else place - len(ranked(x).sizes)
    key = torch.as_tensor(keys[place])
    if key.dtype is not torch.bool:
        return selected(x, dim, key.tolist())
    # A mask names positions of all there are, or the call fails.
    return selected(fixed_dim(x, dim, len(key)), dim, key.nonzero().flatten().tolist())


def _sliced(x: Form, dim: int, part: slice) -> Form:
    x, step = in_sight(x, -dim), part.step or 1
    if not isinstance(step, int) or step < 1:
        raise NotFusable("a slice whose step is computed at run time, or backwards", Kind.SIZES)
    start, stop = (_left(x.sizes[dim], bound) for bound in (part.start, part.stop))
    if isinstance(part.start, Size) and not start:
        raise NotFusable(TAKES_NOTHING)
    return cropped(x, dim, start or 0, stop, step)


def _left(size: Size, bound: int | Size | Form | None) -> int | None:
    """A bound of a slice. One that is computed of the size is counted from the end, where None is."""
    if bound is None or isinstance(bound, int):
        return bound
    left = reach(size, bound, wraps=True) if isinstance(bound, Size) else None
    if left is None or left < 0:
        raise NotFusable("a slice whose bounds are computed at run time", Kind.SIZES)
    return -left or None


@READERS.reader(torch.narrow, "narrow", moves=0, sizes=True)
def read_narrow(input: Form, dim: int, start: int, length: int | Size) -> Form:
    """A part of a dimension, which may be all but so many positions; refuses to count from its end."""
    if not isinstance(start, int) or start < 0:
        raise NotFusable("narrow from the end, or from a position that is computed at run time", Kind.SIZES)
    dim = dim if dim < 0 else dim - len(ranked(input).sizes)
    if isinstance(length, int):
        return cropped(input, dim, start, start + length, 1)
    input = in_sight(input, -dim)
    left = reach(input.sizes[dim], length, wraps=False)
    if left is None or left < start:
        raise NotFusable("a part whose length is computed at run time", Kind.SIZES)
    return cropped(input, dim, start, start - left or None, 1)
