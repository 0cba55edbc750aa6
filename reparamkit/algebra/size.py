"""Sizes of axes: an integer, or a product of an integer and free symbols.

A free size (batch, height at run time) is a `Symbol`; a literal or a weight gives a plain number.
Two sizes are equal only if they are equal for every value of their symbols, so whatever is decided
by comparing sizes holds for all inputs, not only for the traced ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

NOMINAL = 8
"""Stands in for a free size when prices are compared and no example input tells the size."""


@dataclass(frozen=True)
class Symbol:
    """A size known only at run time; two symbols are the same if they have the same origin.

    origin: what the size is: ``(tensor, dim)`` for a dimension of an input or of an unread tensor (``dim``
        counts from the right, -1 is the last; from 0 up it stands for all dimensions left of the last
        ``dim`` ones), ``(size, stride, c)`` for the output size of a stencil.
    hint: its value for the example inputs, or `NOMINAL`.
    traced: whether `hint` was seen in a real run, so that it may be pinned behind a guard.
    inside: of a symbol that stands for all dimensions, what the last of them probably are; for prices.
    dims: of such a symbol, how many dimensions the tensor has, where that is told.
    """

    origin: tuple[Hashable, ...]
    hint: int = field(default=NOMINAL, compare=False)
    traced: bool = field(default=False, compare=False)
    inside: tuple[int, ...] = field(default=(), compare=False)
    dims: int | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Sizes are looked up all the time, and the origin of a derived one has sizes in it.
        return hash(self.origin)

    def __reduce__(self) -> tuple[object, ...]:
        # Without the hash: it is another one in another process.
        return Symbol, (self.origin, self.hint, self.traced, self.inside, self.dims)

    @cached_property
    def derived(self) -> bool:
        """Whether the symbol is the output size of a stencil."""
        return isinstance(self.origin[0], Size)

    @property
    def stands_for_dims(self) -> bool:
        """Whether the symbol is the open first dimension of a tensor of unknown rank."""
        return isinstance(self.origin[1], int) and self.origin[1] >= 0 and not self.derived

    @cached_property
    def rank(self) -> str:
        """Where the symbol stands in a product. Not its hash: -1 and -2 have the same."""
        if not self.derived:
            return repr(self.origin)
        size, stride, c = _stencil(self)
        return repr((size.factor, [symbol.rank for symbol in size.symbols], stride, c))


@dataclass(frozen=True)
class Size:
    """``factor * symbols[0] * symbols[1] * ...``, with the symbols in a canonical order."""

    factor: int
    symbols: tuple[Symbol, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.factor, self.symbols))

    def __reduce__(self) -> tuple[object, ...]:
        return Size, (self.factor, self.symbols)

    @property
    def known(self) -> bool:
        """Whether the size is a plain number."""
        return not self.symbols

    @cached_property
    def hint(self) -> int:
        """The number, or what it was for the example inputs."""
        return self.factor * math.prod(s.hint for s in self.symbols)

    @property
    def traced(self) -> bool:
        """Whether `hint` is certain for the example inputs."""
        return all(s.traced for s in self.symbols)

    def __mul__(self, other: Size) -> Size:
        return product((self, other))

    def divide(self, other: Size) -> Size | None:
        """``self / other`` if it is a whole number for every value of the symbols, else None."""
        rest = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in rest:
                return None
            rest.remove(symbol)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Size(self.factor // other.factor, tuple(rest))

    def less(self, other: Size) -> int | None:
        """``self - other`` if it is the same number for every value of the symbols, else None."""
        if self.known and other.known:
            return self.factor - other.factor
        return 0 if self == other else None

    def substitute(self, pins: Mapping[Symbol, Pin]) -> Size:
        """The size once it is known what the pinned symbols are."""
        if not any(symbol in pins or symbol.derived for symbol in self.symbols) or not pins:
            return self
        found = [_pinned(symbol, pins) for symbol in self.symbols]
        return found[0] if len(found) == 1 and self.factor == 1 else product((*found, Size(self.factor)))

    def __str__(self) -> str:
        return str(self.factor) if self.known else f"{self.hint} (free)"


ONE = Size(1)
Pin = int | Size
"""What is known of a free size: its number, or that it is a multiple, see `multiple`."""


def multiple(symbol: Symbol, count: int) -> Size:
    """A free size that is a multiple of `count`: so many times the free number of its parts."""
    return Size(count) * stencil_size(Size(1, (symbol,)), count, -1)


def present(symbol: Symbol) -> Size:
    """That there is a dimension of this size, whatever it is: a multiple of 1."""
    return Size(1, (symbol,))


def is_of_rank(symbol: Symbol, pin: Pin) -> bool:
    """Whether a pin is of how many dimensions there are, or have to be, and of no size."""
    return symbol.stands_for_dims or pin == present(symbol)


def finer(symbol: Symbol, old: Pin, new: Pin) -> Pin:
    """What two pins of a symbol say together."""
    if isinstance(old, Size) and isinstance(new, Size):
        return multiple(symbol, math.lcm(old.factor, new.factor))
    return new if isinstance(old, Size) else old


def joined_pins(pins: Iterable[tuple[Symbol, Pin]]) -> dict[Symbol, Pin]:
    """What pins say together, per symbol."""
    found: dict[Symbol, Pin] = {}
    for symbol, pin in pins:
        found[symbol] = finer(symbol, found[symbol], pin) if symbol in found else pin
    return found


def _pinned(symbol: Symbol, pins: Mapping[Symbol, Pin]) -> Size:
    if symbol in pins:
        pin = pins[symbol]
        return pin if isinstance(pin, Size) else Size(pin)
    if not symbol.derived:
        return Size(1, (symbol,))
    size, stride, c = _stencil(symbol)
    return stencil_size(size.substitute(pins), stride, c)


def _stencil(symbol: Symbol) -> tuple[Size, int, int]:
    size, stride, c = symbol.origin
    assert isinstance(size, Size)
    assert isinstance(stride, int)
    assert isinstance(c, int)
    return size, stride, c


def window_of(size: Size) -> tuple[Size, int, int] | None:
    """Of a size that a stencil makes: the size before it, its stride and its c; None of any other."""
    alone = size.factor == 1 and len(size.symbols) == 1 and size.symbols[0].derived
    return _stencil(size.symbols[0]) if alone else None


def reach(size: Size, number: Size, wraps: bool) -> int | None:
    """How much larger a size is than a number that code computed of sizes, for all their values; None if that is not
    known.

    wraps: the number counts from the end where it is less than 0, which must make no difference.
    """
    (inner, more), (other, grown) = _grown(size), _grown(number)
    # Of n positions, n - 1 and n - 2 are the same as -1 and -2, however few there are.
    from_front = grown >= 0 or (more == 0 and grown >= -2)
    return more - grown if inner == other and (from_front or not wraps) else None


def _grown(size: Size) -> tuple[Size, int]:
    """A size as another and a number: ``n + k``."""
    window = window_of(size)
    return (window[0], window[2] + 1) if window is not None and window[1] == 1 else (size, 0)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes, 1 for none."""
    factors = tuple(sizes)
    if len(factors) == 1:
        return factors[0]
    factor = 1
    symbols: list[Symbol] = []
    for size in factors:
        factor *= size.factor
        symbols += size.symbols
    if len(symbols) > 1:
        symbols.sort(key=lambda symbol: symbol.rank)
    return Size(factor, tuple(symbols))


@dataclass(frozen=True)
class Share:
    """``number / of``: what code multiplies a sum by that it averages, as ``1 / (h * w)``."""

    number: float
    of: Size

    def substitute(self, pins: Mapping[Symbol, Pin]) -> Share:
        """The share once it is known what the pinned symbols are."""
        return Share(self.number, self.of.substitute(pins))


Factor = Share | Size | float


def share(above: Iterable[Factor], below: Iterable[Factor]) -> Share | None:
    """A product divided by another, if that is a number divided by a free size for all values of the symbols."""
    upper, lower = ([_fraction(factor) for factor in each] for each in (above, below))
    over = product([a for _, a, _ in upper] + [b for _, _, b in lower])
    under = product([b for _, _, b in upper] + [a for _, a, _ in lower])
    left, number = under.divide(over), math.prod(n for n, _, _ in lower)
    known = left is None or left.known or number == 0
    return None if left is None or known else Share(math.prod(n for n, _, _ in upper) / number, left)


def _fraction(factor: Factor) -> tuple[float, Size, Size]:
    """A number, and the free sizes that it is multiplied with and divided by."""
    if isinstance(factor, Share):
        return factor.number, ONE, factor.of
    if isinstance(factor, Size):
        return (factor.factor, ONE, ONE) if factor.known else (1.0, factor, ONE)
    return factor, ONE, ONE


def broadcast(sizes: Iterable[Size]) -> Size | None:
    """The size of a dimension that tensors of these sizes have together; None where that depends on free sizes."""
    others = {size for size in sizes if size != ONE}
    numbers = {size for size in others if size.known}
    return ONE if not others else next(iter(numbers or others)) if len(numbers or others) == 1 else None


def free_size(tensor: str, dim: int, hint: int | None = None) -> Size:
    """The free size of dimension `dim` of `tensor`; `hint` is its value for the example inputs."""
    if hint is None:
        return Size(1, (Symbol((tensor, dim), _nominal(dim)),))
    return Size(1, (Symbol((tensor, dim), hint, traced=True),))


def open_size(tensor: str, taken: int, inside: tuple[int, ...], dims: int | None) -> Size:
    """All dimensions of `tensor` left of the last `taken` ones; inside, dims: see `Symbol`."""
    hint = math.prod(inside[: len(inside) - taken]) if len(inside) > taken else _nominal(taken)
    return Size(1, (Symbol((tensor, taken), hint, inside=inside, dims=dims),))


def hidden_size(symbol: Symbol, dim: int) -> Size:
    """The size of a dimension (from the right) that an open first dimension stood for."""
    tensor, _ = symbol.origin
    hint = symbol.inside[dim] if len(symbol.inside) >= -dim else _nominal(dim)
    return Size(1, (Symbol((tensor, dim), hint),))


def _nominal(dim: int) -> int:
    """The last two dimensions count, so that a price does not depend on how many dimensions are spelled out."""
    hidden = 1 if dim in (-1, -2) else max(0, 2 - dim) if dim >= 0 else 0
    return int(NOMINAL**hidden)


def stencil_size(size: Size, stride: int, c: int) -> Size:
    """Output size of a stencil, ``max(0, (n + c) // stride + 1)``; equal questions, equal answers."""
    if stride == 1 and c == -1:
        return size
    if size.known:
        return Size(max(0, (size.factor + c) // stride + 1))
    if (common := math.gcd(size.factor, stride)) > 1:
        return stencil_size(Size(size.factor // common, size.symbols), stride // common, c // common)
    if size.factor == 1 and len(size.symbols) == 1 and size.symbols[0].derived:
        inner, first, c_first = _stencil(size.symbols[0])
        if c <= -1 or c_first >= -1:
            # Two windows in a row are one; not if the first may end at 0 and the second pads.
            return stencil_size(inner, first * stride, c_first + first * (1 + c))
    hint = max(0, (size.hint + c) // stride + 1)
    return Size(1, (Symbol((size, stride, c), hint, size.traced),))


def strides(size: Size) -> int:
    """The product of the strides of the windows whose output sizes are in a size."""
    return math.prod(strides(inner) * stride for inner, stride, _ in map(_stencil, filter(_is_derived, size.symbols)))


def _is_derived(symbol: Symbol) -> bool:
    return symbol.derived


def equal_multiples(a: Size, b: Size) -> dict[Symbol, Pin]:
    """That a free size is a multiple of a number, if that makes two sizes derived from it equal; else nothing."""
    count = math.lcm(strides(a), strides(b))
    return _multiples(roots(a) | roots(b), count, lambda pins: a.substitute(pins) == b.substitute(pins))


def whole_multiples(size: Size, count: int) -> dict[Symbol, Pin]:
    """That a free size is a multiple of a number, if that makes `size`, derived from it, one of `count`."""
    number = fixed(count)
    return _multiples(roots(size), count * strides(size), lambda pins: size.substitute(pins).divide(number) is not None)


def parts(size: Size) -> dict[Symbol, Pin]:
    """That a free size whose parts are counted (``n // 4``) is a multiple of their length; nothing if it was not."""
    symbols, length = roots(size), strides(size)
    pins: dict[Symbol, Pin] = {symbol: multiple(symbol, length) for symbol in symbols}
    known = len(symbols) == 1 and length > 1 and not any(s.traced and s.hint % length for s in symbols)
    return pins if known else {}


def _multiples(symbols: set[Symbol], count: int, holds: Callable[[Mapping[Symbol, Pin]], bool]) -> dict[Symbol, Pin]:
    """That a symbol is a multiple of `count`, if it holds then; nothing if the example is none, or, where there is
    none, if it holds for other numbers too.
    """
    if len(symbols) != 1 or count == 1:
        return {}
    (symbol,) = symbols
    pins: dict[Symbol, Pin] = {symbol: multiple(symbol, count)}
    if symbol.traced:
        told = symbol.hint % count == 0
    else:
        told = not any(holds({symbol: count * NOMINAL + rest}) for rest in range(1, count))
    return pins if told and holds(pins) else {}


def roots(size: Size) -> set[Symbol]:
    """The symbols of source dimensions that `size` depends on."""
    found: set[Symbol] = set()
    for symbol in size.symbols:
        found |= roots(_stencil(symbol)[0]) if symbol.derived else {symbol}
    return found


def solved(size: Size, number: int) -> dict[Symbol, int]:
    """What a free size is if another, which is as much larger or smaller for all its values, is a number."""
    if size.factor != 1 or len(size.symbols) != 1:
        return {}
    if not size.symbols[0].derived:
        return {size.symbols[0]: number}
    inner, stride, c = _stencil(size.symbols[0])
    return solved(inner, number - 1 - c) if stride == 1 and number > 0 else {}


def least(size: Size, number: int) -> dict[Symbol, int]:
    """What a free size has to be at least for one derived from it to be a number or more, and none between to be 0."""
    if len(size.symbols) != 1:
        return {}
    (symbol,), count = size.symbols, -(-number // size.factor)
    if not symbol.derived:
        return {symbol: max(1, count)}
    inner, stride, c = _stencil(symbol)
    return least(inner, stride * (max(1, count) - 1) - c)


def fixed(value: int) -> Size:
    """A size that is a plain number."""
    return Size(value)
