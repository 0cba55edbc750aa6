"""Sizes: equal only if equal for every value of their symbols."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from reparamkit.algebra.size import (
    Share,
    Size,
    Symbol,
    equal_multiples,
    finer,
    fixed,
    free_size,
    least,
    multiple,
    parts,
    product,
    roots,
    share,
    stencil_size,
    whole_multiples,
)

NAMES = [("x", -1), ("x", -2), ("x", -3), ("y", -1)]
windows = st.tuples(st.integers(1, 3), st.integers(-4, 3))


@st.composite
def sizes(draw: DrawFn) -> Size:
    """A product of a number, free sizes, and outputs of windows on free sizes."""
    size = fixed(draw(st.integers(1, 4)))
    for name, dim in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        free = free_size(name, dim)
        for stride, c in draw(st.lists(windows, max_size=2)):
            free = stencil_size(free, stride, c)
        size *= free
    return size


pins = st.tuples(*[st.integers(0, 9)] * len(NAMES)).map(
    lambda values: {Symbol(origin): n for origin, n in zip(NAMES, values, strict=True)}
)


def number(size: Size, values: dict[Symbol, int]) -> int:
    """The size for given values of all symbols."""
    found = size.substitute(values)
    assert found.known
    return found.factor


@given(a=sizes(), b=sizes(), c=sizes())
def test_products_do_not_depend_on_order(a: Size, b: Size, c: Size) -> None:
    """Sizes multiply commutatively and associatively, and compare equal."""
    assert a * b == b * a
    assert (a * b) * c == a * (b * c) == product([c, b, a])


@given(a=sizes(), b=sizes(), values=pins)
def test_numbers_take_the_place_of_symbols(a: Size, b: Size, values: dict[Symbol, int]) -> None:
    """Multiplying and then knowing the sizes is knowing them and then multiplying."""
    assert number(a * b, values) == number(a, values) * number(b, values)


@given(a=sizes(), b=sizes())
def test_dividing_undoes_multiplying(a: Size, b: Size) -> None:
    """(a b) / b = a; what divides nothing for some value divides nothing."""
    assert (a * b).divide(b) == a
    quotient = a.divide(b)
    assert quotient is None or quotient * b == a


@given(size=sizes(), first=windows, second=windows, values=pins)
def test_a_window_on_a_window_has_the_size_of_both(
    size: Size, first: tuple[int, int], second: tuple[int, int], values: dict[Symbol, int]
) -> None:
    """The size after two windows is max(0, (n + c) // stride + 1) twice, however it is remembered."""
    expected = number(size, values)
    for stride, c in (first, second):
        expected = max(0, (expected + c) // stride + 1)
    assert number(stencil_size(stencil_size(size, *first), *second), values) == expected


@given(first=windows, second=windows)
def test_windows_that_are_one_have_one_size(first: tuple[int, int], second: tuple[int, int]) -> None:
    """Two windows in a row and the one window they make are equal sizes, also unknown ones."""
    n, (s1, c1), (s2, c2) = free_size("x", -1), first, second
    twice, once = stencil_size(stencil_size(n, *first), *second), stencil_size(n, s1 * s2, c1 + s1 * (1 + c2))
    always = all(number(twice, {Symbol(("x", -1)): k}) == number(once, {Symbol(("x", -1)): k}) for k in range(40))
    assert (twice == once) <= always
    if c2 <= -1 or c1 >= -1:
        assert twice == once


@given(size=sizes())
def test_roots_are_the_source_sizes(size: Size) -> None:
    """Whatever windows lie between, a size depends on sizes of source tensors only."""
    assert all(not symbol.derived for symbol in roots(size))
    assert roots(size) == set().union(*(roots(Size(1, (symbol,))) for symbol in size.symbols))


@given(first=windows, second=windows, wanted=st.integers(1, 9))
def test_a_least_size_is_the_first_for_which_windows_fit(
    first: tuple[int, int], second: tuple[int, int], wanted: int
) -> None:
    """With one less, one of them has no place or there is less than is wanted."""
    height = free_size("x", -2)
    inner = stencil_size(height, *first)
    size = stencil_size(inner, *second) * fixed(2)

    def fits(value: int) -> bool:
        values = {Symbol(("x", -2)): value}
        return value >= 1 and number(inner, values) >= 1 and number(size, values) >= wanted

    (found,) = least(size, wanted).values()
    assert found == next(value for value in range(99) if fits(value))


def test_a_hint_is_the_size_of_the_example_inputs() -> None:
    """Known from a real run it is traced, else it only stands in."""
    height = free_size("x", -2, 6)
    assert stencil_size(height, 2, -1).hint == 3
    assert (height * fixed(4)).hint == 24
    assert (height * free_size("x", -1)).traced is False
    assert math.prod([height.traced, stencil_size(height, 2, -1).traced])


N = Symbol(NAMES[0])
chains = st.lists(windows, min_size=1, max_size=2)


def after(chain: list[tuple[int, int]], size: Size | None = None) -> Size:
    """The size of the value of windows in a row."""
    found = Size(1, (N,)) if size is None else size
    for stride, c in chain:
        found = stencil_size(found, stride, c)
    return found


@given(size=sizes(), count=st.integers(1, 4), times=st.integers(1, 5))
def test_a_size_that_is_a_multiple_is_what_it_is_for_each_multiple(size: Size, count: int, times: int) -> None:
    """To know that a size is a multiple, and then which, is to know its number."""
    others = dict.fromkeys(roots(size) - {N}, 2)
    known = size.substitute({N: multiple(N, count)}).substitute(others | {N: count * times})
    assert known == size.substitute(others | {N: count * times})


@given(a=chains, b=chains, n=st.integers(1, 60))
def test_sizes_that_are_equal_for_multiples_are_equal_for_no_other(
    a: list[tuple[int, int]], b: list[tuple[int, int]], n: int
) -> None:
    """Without an example, a size is taken for a multiple only if two sizes tell that it is one."""
    pins = equal_multiples(after(a), after(b))
    if pins:
        (count,) = (pin.factor for pin in pins.values() if isinstance(pin, Size))
        assert n < 20 or (number(after(a), {N: n}) == number(after(b), {N: n})) == (n % count == 0)


@given(chain=chains, count=st.integers(2, 4), n=st.integers(1, 30))
def test_a_size_is_whole_for_multiples(chain: list[tuple[int, int]], count: int, n: int) -> None:
    """What a division by a number tells of a free size, with an example of it: the example is such a multiple."""
    seen = Size(1, (Symbol(NAMES[0], n, traced=True),))
    size = after(chain, seen)
    for pin in whole_multiples(size, count).values():
        assert isinstance(pin, Size)
        assert n % pin.factor == 0
        assert number(size, {N: n}) % count == 0


@given(length=st.integers(2, 4), a=st.integers(2, 4), b=st.integers(2, 4))
def test_parts_are_counted(length: int, a: int, b: int) -> None:
    """``n // 4`` says that n is a multiple of 4; two multiples say one of both."""
    (pin,) = parts(stencil_size(Size(1, (N,)), length, -length)).values()
    assert pin == multiple(N, length)
    assert finer(N, multiple(N, a), multiple(N, b)) == multiple(N, math.lcm(a, b))
    assert finer(N, multiple(N, a), 12) == finer(N, 12, multiple(N, a)) == 12


@given(a=sizes(), b=sizes(), c=sizes(), times=st.integers(1, 5), n=st.integers(1, 9))
def test_a_share_is_the_number_it_is_for_each_size(a: Size, b: Size, c: Size, times: int, n: int) -> None:
    """What is known of ``times * a / b / c``, which a sum is multiplied by, holds for all values of the sizes."""
    found, pins = share((float(times), a), (b, c)), dict.fromkeys(roots(a) | roots(b) | roots(c), n)
    if found is not None and number(b, pins) and number(c, pins):
        assert found.number / number(found.of, pins) == pytest.approx(
            times * number(a, pins) / number(b, pins) / number(c, pins)
        )


def test_one_over_a_size_is_a_share() -> None:
    """It is one of the inverse of the size, and of no size once the size is gone."""
    n, m = Size(1, (N,)), Size(2, (Symbol(NAMES[1]),))
    assert share((1.0,), (n, m)) == share((share((1.0,), (n,)), 1.0), (m,)) == Share(1.0, product((n, m)))  # type: ignore[arg-type]
    assert share((n,), (n,)) is None
    assert share((n,), (m,)) is None
    assert share((1.0,), (fixed(4),)) is None
