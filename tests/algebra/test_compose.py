"""compose(g, f) is g(f(x)): layers in a row are one operator, always so on fixed sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn
from torch import Tensor

from reparamkit.algebra.add import add
from reparamkit.algebra.compose import compose
from reparamkit.algebra.form import Form, source_form
from reparamkit.algebra.laws import CHAIN, DENSE_CHAIN
from reparamkit.algebra.operator import Link, Operator, Role, identity
from reparamkit.algebra.size import fixed, free_size
from reparamkit.errors import GuardError, NotFusable

from . import pairs
from .oracle import apply_operator, evaluate, has_room, source, windows, written
from .pairs import Layer, accepts, assert_equal, assert_same
from .strategies import (
    BROAD,
    Axis,
    Shape,
    axes,
    branches,
    chains,
    convs,
    layers,
    matrices,
    shapes,
    some,
    tensors,
    transposed_axes,
)


def in_a_row(row: list[Layer]) -> Layer:
    """The layers one after the other."""
    return reduce(operator.rshift, row)


@st.composite
def line_windows(draw: DrawFn) -> Layer:
    """Any window over one axis: of a convolution, of a transposed one, or nearest up-sampling."""
    kind = draw(st.sampled_from(("conv", "conv", "transposed", "nearest")))
    if kind == "nearest":
        return pairs.repeated([draw(st.integers(1, 4))])
    if kind == "conv":
        kernel, stride, dilation, padding = draw(axes(4))
        return pairs.conv(draw(tensors(1, 1, kernel)), None, [stride], [padding], [dilation])
    kernel, stride, dilation, padding, extra = draw(transposed_axes(4))
    return pairs.conv_transposed(draw(tensors(1, 1, kernel)), None, [stride], [padding], [extra], 1, [dilation])


@st.composite
def shifted_windows(draw: DrawFn) -> Layer:
    """A shift, then a window."""
    return pairs.scale(draw(tensors(1)), 1, draw(tensors(1))) >> draw(line_windows())


@BROAD
@given(data=st.data())
def test_any_layers_in_a_row_are_one_operator(data: DataObject) -> None:
    """On fixed sizes every row of layers is one operator, exact at every border."""
    shape = data.draw(shapes(data.draw(st.integers(1, 3)), largest=4))
    assert_same(data.draw(chains(shape, data.draw(st.integers(2, 4)))), data.draw(tensors(*shape)))


# --- rows that are one window at every size -----------------------------------------------------------------


def conv(*kernel: int, groups: int = 1, **options: object) -> Layer:
    """A conv of 4 channels with bias."""
    return pairs.conv(some(4, 4 // groups, *kernel), some(4), groups=groups, **options)


def unbiased(*kernel: int, **options: object) -> Layer:
    """A conv of 4 channels without bias."""
    return pairs.conv(some(4, 4, *kernel), **options)


def transposed(*kernel: int, stride: int) -> Layer:
    """A transposed conv of 4 channels without bias."""
    axes = len(kernel)
    return pairs.conv_transposed(some(4, 4, *kernel), None, [stride] * axes, [0] * axes, [0] * axes, 1, [1] * axes)


WINDOWS: dict[str, Callable[[], Layer]] = {
    "1x1 then kxk": lambda: unbiased(1, 1) >> conv(3, 2, padding=1),
    "1x1 then kxk, valid": lambda: conv(1, 1) >> conv(3, 3),
    "kxk then 1x1": lambda: conv(3, 3, padding=1, stride=2) >> conv(1, 1),
    "valid then valid": lambda: conv(3, 2) >> conv(2, 3),
    "padded then strided": lambda: conv(3, 3, padding=2) >> conv(1, 1, stride=2),
    "strided then strided": lambda: conv(2, 2, stride=2) >> conv(3, 3, stride=2),
    "dilated then dilated": lambda: conv(3, 1, dilation=2) >> conv(2, 2, dilation=3),
    "row then column": lambda: unbiased(1, 3, padding=(0, 1)) >> conv(3, 1, padding=(1, 0)),
    "pad then conv": lambda: pairs.padded([(1, 0), (2, 1)]) >> conv(3, 3),
    "crop then conv": lambda: pairs.padded([(-1, 0), (0, -1)]) >> conv(2, 2),
    "conv then crop": lambda: conv(3, 3, padding=1) >> pairs.padded([(-1, -1), (-1, -1)]),
    "conv then pool": lambda: conv(3, 3, padding=1) >> pairs.pool([2, 2], [2, 2], [0, 0]),
    "pool then conv": lambda: pairs.pool([2, 2], [2, 2], [0, 0]) >> conv(2, 2),
    "conv then scale": lambda: conv(3, 3, padding=1) >> pairs.scale(some(4), 1, some(4)),
    "scale then padded conv": lambda: pairs.scale(some(4), 1) >> conv(3, 3, padding=1),
    "scale and shift then valid conv": lambda: pairs.scale(some(4), 1, some(4)) >> conv(3, 3),
    "groups that nest": lambda: conv(3, 3, padding=1, groups=4) >> conv(1, 1, groups=2),
    "nearest then padded": lambda: pairs.repeated([2, 3]) >> conv(3, 3, padding=1),
    "nearest then strided": lambda: pairs.repeated([2, 4]) >> conv(3, 3, padding=1, stride=2),
    "nearest then even": lambda: pairs.repeated([2, 2]) >> conv(2, 2),
    "unbiased, then nearest": lambda: unbiased(3, 3, padding=1) >> pairs.repeated([2, 2]),
    "transposed then padded": lambda: transposed(2, 2, stride=2) >> conv(3, 3, padding=1),
    "three in a row": lambda: unbiased(1, 1) >> unbiased(3, 3, padding=1) >> conv(1, 1, stride=3),
}


@pytest.mark.parametrize("row", WINDOWS)
def test_these_rows_are_one_convolution_at_every_size(row: str) -> None:
    """Decided on free sizes; equal wherever torch accepts the size, and refused wherever torch refuses it."""
    layer = WINDOWS[row]()
    form = layer.read(_free())
    assert form.used == {CHAIN}
    merged = written(form)
    for h in range(1, 9):
        for w in range(1, 9):
            x = some(2, 4, h, w)
            if accepts(layer.run, x):
                assert_equal(evaluate(form, x=x), layer.run(x))
                assert_equal(merged(x), layer.run(x))
            else:
                assert not accepts(merged, x)


def _free() -> Form:
    return source_form("x", tuple(free_size("x", d) for d in range(-4, 0)))


@BROAD
@given(layer=st.lists(line_windows(), min_size=2, max_size=3).map(in_a_row))
def test_a_window_after_a_window_is_one_where_that_is_exact(layer: Layer) -> None:
    """A merge on a free size is right at every size and accepts none that the row refuses."""
    try:
        form = layer.read(_line())
        merged = written(form)
    except NotFusable:
        return
    for n in range(1, 14):
        x = some(1, 1, n)
        if accepts(layer.run, x):
            assert_equal(evaluate(form, x=x), layer.run(x))
            assert_equal(merged(x), layer.run(x))
        else:
            assert not accepts(merged, x)


@BROAD
@given(data=st.data())
def test_a_window_after_a_window_is_refused_where_one_would_be_wrong(data: DataObject) -> None:
    """A refusal on a free size is not for nothing: at some size one window gives another value or size."""
    first, second = data.draw(axes(4)), data.draw(axes(4))
    second = (second[0], second[1], 1, second[3])
    layer = _window(first) >> _window(second)
    try:
        layer.read(_line())
    except NotFusable:
        f, g = (_window(axis).read(_line()).sample.links[-1] for axis in (first, second))
        taps = [a + f.stride * b for a in f.taps for b in g.taps]
        naive = Link(Role.STENCIL, fixed(1), tuple(sorted({*taps})), f.stride * g.stride, f.c + f.stride * (1 + g.c))
        assert any(_differs(naive, taps, layer, torch.ones(1, 1, n).double()) for n in range(1, 30))


def _differs(naive: Link, taps: list[int], layer: Layer, x: Tensor) -> bool:
    counts = torch.tensor([float(taps.count(tap)) for tap in naive.taps]).double()
    found = (windows(x, 2, naive) * counts).sum(-1)
    return not accepts(layer.run, x) or not torch.equal(found, layer.run(x))


def _window(axis: Axis) -> Layer:
    kernel, stride, dilation, padding = axis
    return pairs.conv(torch.ones(1, 1, kernel).double(), None, [stride], [padding], [dilation])


def _line() -> Form:
    return source_form("x", (free_size("x", -3), fixed(1), free_size("x", -1)))


# --- rows that are one matrix at a fixed size ------------------------------------------------------------------


CROSSING: dict[str, Callable[[], Layer]] = {
    "padded then padded": lambda: unbiased(3, 3, padding=1) >> unbiased(3, 3, padding=1),
    "bias then strided": lambda: conv(1, 1) >> conv(3, 3, padding=1, stride=2),
    "bias then transposed": lambda: conv(1, 1) >> transposed(3, 3, stride=2),
    "pool then padded": lambda: pairs.pool([3, 3], [1, 1], [1, 1]) >> conv(3, 3, padding=1),
    "strided then padded": lambda: unbiased(3, 3, stride=2, padding=1) >> conv(3, 3, padding=1),
    "crop then pad": lambda: pairs.padded([(-1, 0), (0, 0)]) >> pairs.padded([(1, 0), (0, 0)]),
    "a window as wide as its stride, then zeros": lambda: unbiased(3, 3, stride=3) >> pairs.padded([(1, 0), (0, 0)]),
}


@pytest.mark.parametrize("row", CROSSING)
def test_a_window_that_crosses_a_border_is_exact_on_a_fixed_size_only(row: str) -> None:
    """The dense form knows what lies beyond the border; no window of a free size does."""
    layer = CROSSING[row]()
    for h, w in [(1, 1), (2, 3), (4, 3), (5, 5)]:
        x = some(2, 4, h, w)
        if accepts(layer.run, x):
            assert_same(layer, x, exact="pool" not in row)
    with pytest.raises(NotFusable, match="zero padding"):
        layer.read(_free())


# --- shifts before zero padding --------------------------------------------------------------------------------


def shifted(*kernel: int, **options: object) -> Layer:
    """A scale and shift, then a conv of 4 channels."""
    return pairs.scale(some(4), 1, some(4)) >> unbiased(*kernel, **options)


BORDERED: dict[str, Callable[[], Layer]] = {
    "bias then padded": lambda: conv(1, 1) >> conv(3, 3, padding=1),
    "shift then padded": lambda: shifted(3, 5, padding=(1, 2)),
    "uneven padding": lambda: shifted(4, 2, padding=[(1, 2), (0, 1)]),
    "more padding than kernel": lambda: shifted(2, 2, padding=3),
    "dilated": lambda: shifted(3, 3, padding=2, dilation=2),
    "strided, not past the end": lambda: shifted(2, 3, padding=[(1, 0), (1, 0)], stride=2) >> conv(1, 1),
    "padding of one axis": lambda: shifted(3, 1, padding=(1, 0)) >> pairs.scale(some(4), 1, some(4)),
    "shift, row, shift, column": lambda: shifted(1, 3, padding=(0, 1)) >> shifted(3, 1, padding=(1, 0)),
    "then unpadded": lambda: shifted(3, 3, padding=1) >> conv(3, 3),
    "then cropped": lambda: shifted(3, 3, padding=1) >> pairs.padded([(-1, -1), (-1, 0)]),
    "then averaged": lambda: shifted(3, 3, padding=1) >> pairs.pool([2, 2], [1, 1], [0, 0]),
    "nearest between": lambda: conv(1, 1) >> pairs.repeated([2, 3]) >> unbiased(3, 3, padding=1),
    "then nearest": lambda: shifted(3, 3, padding=1) >> pairs.repeated([2, 3]),
    "two of them": lambda: shifted(3, 3, padding=1) + shifted(5, 1, padding=(2, 0)),
    "beside an even bias": lambda: shifted(3, 3, padding=1) + conv(1, 1),
}


@pytest.mark.parametrize("row", BORDERED)
def test_a_shift_before_padding_is_a_bias_with_borders(row: str) -> None:
    """Decided on free sizes; exact at every size that has room for the borders, and most sizes have."""
    layer = BORDERED[row]()
    form = layer.read(_free())
    assert form.bias is not None
    assert form.bias.stored < 4 * 8 * 8
    merged = written(form)
    checked = 0
    for h in range(1, 10):
        for w in range(1, 10):
            x = some(2, 4, h, w)
            if not accepts(layer.run, x):
                continue
            if has_room(form, x=x):
                checked += 1
                assert_equal(evaluate(form, x=x), layer.run(x))
                assert_equal(merged(x), layer.run(x))
            else:
                with pytest.raises(GuardError):
                    merged(x)
    assert checked >= 9


def test_a_border_that_is_cropped_leaves_a_number_per_channel() -> None:
    """What no window sees any more costs no layer of its own."""
    layer = shifted(3, 3, padding=1) >> pairs.padded([(-1, -1), (-1, -1)])
    form = layer.read(_free())
    assert form.bias is not None
    assert form.bias.stored == 4
    assert isinstance(written(form), torch.nn.Conv2d)


@BROAD
@given(layer=st.lists(shifted_windows(), min_size=1, max_size=3).map(in_a_row), fixed_size=st.booleans())
def test_any_shifts_before_padded_windows_are_exact(layer: Layer, fixed_size: bool) -> None:
    """Whatever of it has a form, has the right numbers at every size that has room."""
    for n in range(1, 14):
        x = some(1, 1, n)
        if not accepts(layer.run, x):
            continue
        try:
            form = layer.read(source(x) if fixed_size else _line())
        except NotFusable:
            assert not fixed_size
            return
        if has_room(form, x=x):
            assert_equal(evaluate(form, x=x), layer.run(x))
        assert has_room(form, x=x) or not fixed_size


def test_a_chain_names_whether_it_became_dense() -> None:
    """The report can tell a window from a matrix."""
    x = some(1, 4, 5, 5)
    assert WINDOWS["valid then valid"]().read(source(x)).used == {CHAIN}
    assert DENSE_CHAIN in CROSSING["padded then padded"]().read(source(x)).used


@given(data=st.data(), sizes=st.tuples(*[st.integers(1, 5)] * 4))
def test_linear_after_linear_is_linear(data: DataObject, sizes: tuple[int, ...]) -> None:
    """Two matrices multiply, the first bias goes through the second."""
    n, a, b, c = sizes
    row = pairs.linear(data.draw(tensors(b, a)), some(b)) >> pairs.linear(data.draw(tensors(c, b)), some(c))
    form = assert_same(row, data.draw(tensors(n, a)))
    assert form.sample.stored == a * c


@given(data=st.data(), shape=shapes(), keepdim=st.booleans())
def test_a_head_is_one_linear(data: DataObject, shape: Shape, keepdim: bool) -> None:
    """Batch norm, global average, classifier: the average commutes with what does not see the map."""
    c = shape[1]
    classifier = matrices((*shape[:2], 1, 1), dim=1) if keepdim else matrices(shape[:2], dim=1)
    head = pairs.scale(some(c), 1, some(c)) >> pairs.mean((-2, -1), keepdim) >> data.draw(classifier)
    x = data.draw(tensors(*shape))
    assert_same(head, x, exact=False)
    form = head.read(source_form("x", (free_size("x", -4), fixed(c), free_size("x", -2), free_size("x", -1))))
    assert form.sample.has(Role.MEAN)
    assert_equal(evaluate(form, x=x), head.run(x), exact=False)


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2), (4, 6), (6, 4), (12, 1), (1, 12), (6, 2), (2, 6)])
def test_groups_need_not_nest(first: int, second: int) -> None:
    """A conv of one number of groups after a conv of another, on 12 channels."""
    row = pairs.conv(some(12, 12 // first, 3, 1), some(12), groups=first) >> pairs.conv(
        some(12, 12 // second, 1, 2), some(12), groups=second
    )
    assert_same(row, some(2, 12, 3, 3))


def test_a_window_that_ends_in_one_position_stays_a_window() -> None:
    """A conv over the whole map and a batch norm are one conv, and flatten after it is followed."""
    row = conv(3, 4) >> pairs.scale(some(4), 1, some(4))
    x = some(2, 4, 3, 4)
    form = assert_same(row, x)
    assert isinstance(written(form), torch.nn.Conv2d)
    assert_same(row >> pairs.reshape(2, 4) >> pairs.linear(some(5, 4), some(5)), x)


# --- laws ----------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_compose_is_associative(data: DataObject) -> None:
    """h(gf) = (hg)f."""
    x = data.draw(tensors(*data.draw(shapes(largest=4))))
    f, g, h, value = operators(data, x, 3)
    assert_equal(apply_operator(compose(h, compose(g, f)), x), value)
    assert_equal(apply_operator(compose(compose(h, g), f), x), value)


@given(data=st.data())
def test_compose_distributes_over_add(data: DataObject) -> None:
    """h(f + g) = hf + hg and (f + g)h = fh + gh."""
    shape = data.draw(shapes(largest=4))
    x = data.draw(tensors(*shape))
    before, after = data.draw(convs(shape, same=True)), data.draw(layers(shape))
    f, g = (linear_part(data.draw(branches(shape)), x) for _ in range(2))
    h = linear_part(after, x)
    assert_equal(apply_operator(compose(h, add(f, g)), x), apply_operator(add(compose(h, f), compose(h, g)), x))
    h = linear_part(before, x)
    assert_equal(apply_operator(compose(add(f, g), h), x), apply_operator(add(compose(f, h), compose(g, h)), x))


@given(data=st.data())
def test_the_identity_is_neutral(data: DataObject) -> None:
    """f after the identity and the identity after f are f, and not a chain."""
    x = data.draw(tensors(*data.draw(shapes(largest=4))))
    f, value = operators(data, x, 1)
    for same in (compose(f, identity(f.source_sizes)), compose(identity(f.value_sizes), f)):
        assert_equal(apply_operator(same, x), value)
        assert same.stored == f.stored
        assert same.via == f.via


def test_views_of_views_are_views() -> None:
    """Only an operator without any factor is the identity: 1 after 1 is, 2 is not."""
    one = identity([fixed(3), fixed(4)])
    assert one.is_identity
    assert compose(one, one).is_identity
    assert not add(one, one).is_identity


def operators(data: DataObject, x: Tensor, count: int) -> list:
    """The linear parts of `count` layers in a row on x, and what they make of x."""
    found: list = []
    value = x
    for _ in range(count):
        op = linear_part(data.draw(layers(tuple(value.shape))), value)
        found.append(op)
        value = apply_operator(op, value)
    return [*found, value]


def linear_part(layer: Layer, x: Tensor) -> Operator:
    """A layer on tensors like x without its bias."""
    return layer.read(source(x)).sample
