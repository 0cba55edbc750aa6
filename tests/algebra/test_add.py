"""add(f, g) is f(x) + g(x): branches side by side are one operator, always so on fixed sizes."""

from __future__ import annotations

import math
from functools import reduce
from operator import add as plus

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import nn

from reparamkit.algebra.add import add
from reparamkit.algebra.form import source_form
from reparamkit.algebra.laws import LOCALITY_INJECTION, PARALLEL_SUM
from reparamkit.algebra.operator import Role
from reparamkit.algebra.size import fixed, free_size
from reparamkit.errors import NotFusable

from . import pairs
from .oracle import apply_operator, evaluate, source, written
from .pairs import IDENTITY, Layer, assert_equal, assert_same
from .strategies import BROAD, Axis, Shape, axes, branches, convs, shapes, some, tensors, through_views


@BROAD
@given(data=st.data())
def test_any_branches_over_one_tensor_are_one_operator(data: DataObject) -> None:
    """On fixed sizes every sum of branches is one operator, whatever their kernels, groups, views and biases."""
    shape = data.draw(shapes(data.draw(st.integers(1, 3)), largest=4))
    whole = reduce(plus, data.draw(st.lists(branches(shape), min_size=2, max_size=4)))
    assert_same(whole, data.draw(tensors(*shape)))


@BROAD
@given(data=st.data())
def test_branches_through_other_views_meet(data: DataObject) -> None:
    """Other dimensions, other order, dimensions that do not nest: exact, or refused for the view."""
    shape = data.draw(shapes(2, largest=4))
    whole = data.draw(through_views(shape)) + data.draw(through_views(shape) | branches(shape))
    x = data.draw(tensors(*shape))
    try:
        form = whole.read(source(x))
    except NotFusable as refusal:
        if "view" not in str(refusal) and "reshape" not in str(refusal):
            raise
    else:
        assert_equal(evaluate(form, x=x), whole.run(x))


@given(data=st.data(), shape=shapes(largest=4))
def test_add_is_commutative(data: DataObject, shape: Shape) -> None:
    """f + g = g + f."""
    x = data.draw(tensors(*shape))
    f, g = (data.draw(branches(shape)).read(source(x)).sample for _ in range(2))
    assert_equal(apply_operator(add(f, g), x), apply_operator(add(g, f), x))


@given(data=st.data(), shape=shapes(largest=4))
def test_add_is_associative(data: DataObject, shape: Shape) -> None:
    """(f + g) + h = f + (g + h)."""
    x = data.draw(tensors(*shape))
    f, g, h = (data.draw(branches(shape)).read(source(x)).sample for _ in range(3))
    assert_equal(apply_operator(add(add(f, g), h), x), apply_operator(add(f, add(g, h)), x))


# --- windows beside windows ----------------------------------------------------------------------------------


@st.composite
def beside(draw: st.DrawFn, n: int, window: Axis, stride: int) -> Axis:
    """Another window of a given stride that gives as many positions on an axis of n as `window` does."""
    k, s, d, (low, high) = window
    c = low + high - d * (k - 1) - 1
    if stride != s:
        c = stride * ((n + c) // s) - n + draw(st.integers(0, stride - 1))
    kernel, dilation = draw(st.integers(max(1, -c), max(4, -c))), draw(st.integers(1, 3))
    padding = c + 1 + dilation * (kernel - 1)
    first = draw(st.integers(0, padding))
    return kernel, stride, dilation, (first, padding - first)


def window(*windows: Axis) -> Layer:
    """A conv from 2 to 2 channels with one window per axis."""
    kernel, stride, dilation, padding = (list(column) for column in zip(*windows, strict=True))
    return pairs.conv(some(2, 2, *kernel), some(2), stride, padding, dilation)


@given(data=st.data(), h=st.integers(1, 7), w=st.integers(1, 7))
def test_aligned_windows_are_one_window(data: DataObject, h: int, w: int) -> None:
    """Kernels of any size, dilation and evenness, of one stride and one output size: a union of taps."""
    first = [data.draw(axes(n)) for n in (h, w)]
    second = [data.draw(beside(n, axis, axis[1])) for n, axis in zip((h, w), first, strict=True)]
    branches = window(*first) + window(*second)
    form = assert_same(branches, data.draw(tensors(1, 2, h, w)))
    assert {link.role for link in form.sample.links} <= {Role.FREE, Role.STENCIL, Role.IN, Role.OUT}
    free = source_form("x", (fixed(1), fixed(2), free_size("x", -2), free_size("x", -1)))
    assert branches.read(free).used == {PARALLEL_SUM}


@given(data=st.data(), n=st.integers(1, 9), stride=st.integers(1, 3))
def test_windows_of_other_strides_are_one_matrix(data: DataObject, n: int, stride: int) -> None:
    """Windows that give one size by chance of a fixed n are added as matrices; on a free n they are refused."""
    first = data.draw(axes(n))
    second = data.draw(beside(n, first, stride))
    branches = window(first) + window(second)
    assert_same(branches, data.draw(tensors(2, 2, n)))
    if stride != first[1]:
        with pytest.raises(NotFusable):
            branches.read(source_form("x", (fixed(2), fixed(2), free_size("x", -1))))


@pytest.mark.parametrize("groups", [(2, 3), (3, 2), (4, 6), (6, 4), (1, 12), (12, 4), (4, 4), (12, 12)])
def test_groups_are_added_at_their_common_boundaries(groups: tuple[int, int]) -> None:
    """Groups g1 and g2 of 12 channels, with biases, are a conv of gcd(g1, g2) groups."""
    x = some(2, 12, 4, 3)
    first, second = (pairs.conv(some(12, 12 // g, 3, 3), some(12), padding=1, groups=g) for g in groups)
    layer = written(assert_same(first + second, x))
    assert isinstance(layer, nn.Conv2d)
    assert torch.equal(layer(x), (first + second).run(x))
    assert layer.groups == math.gcd(*groups)


SUMS = {
    "x + x": lambda: IDENTITY + IDENTITY,
    "identity beside a conv": lambda: IDENTITY + pairs.conv(some(4, 4, 3, 3), some(4), padding=1),
    "identity beside a depthwise conv": lambda: IDENTITY + pairs.conv(some(4, 1, 3, 3), some(4), 1, 1, groups=4),
    "scale beside identity": lambda: pairs.scale(some(4), 1, some(4)) + IDENTITY,
    "scale beside an even window": lambda: (
        pairs.scale(some(4), 1) + pairs.conv(some(4, 4, 2, 2), None, 1, [(0, 1), (1, 0)])
    ),
    "depthwise beside dense": lambda: pairs.conv(some(4, 1, 5, 5), None, 1, 2, groups=4) + pairs.conv(some(4, 4, 1, 1)),
    "row beside column": lambda: (
        pairs.conv(some(4, 4, 1, 3), None, 1, [0, 1]) + pairs.conv(some(4, 4, 3, 1), None, 1, [1, 0])
    ),
    "dilated beside dilated": lambda: (
        pairs.conv(some(4, 4, 3, 3), None, 1, 3, 3) + pairs.conv(some(4, 4, 5, 5), None, 1, 4, 2)
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_these_sums_are_one_layer_at_every_size(name: str) -> None:
    """Decided on free sizes, and on batches of 1 and 0 too."""
    branches = SUMS[name]()
    form = branches.read(source_form("x", (free_size("x", -4), fixed(4), free_size("x", -2), free_size("x", -1))))
    merged = written(form)
    for shape in [(1, 4, 1, 1), (2, 4, 1, 5), (0, 4, 3, 3), (1, 4, 7, 6)]:
        x = some(*shape)
        assert_equal(evaluate(form, x=x), branches.run(x))
        assert_equal(merged(x), branches.run(x))


def test_a_sum_of_views_is_written_with_its_factor() -> None:
    """x + x is 2x, not x, for every rank."""
    for shape in [(3,), (2, 3), (2, 3, 4), (2, 3, 4, 5)]:
        x = some(*shape)
        assert torch.equal(written((IDENTITY + IDENTITY).read(source(x)))(x), 2 * x)


@given(data=st.data(), n=st.integers(1, 4))
def test_a_tensor_beside_its_transpose(data: DataObject, n: int) -> None:
    """Two pairings of the same axes are one matrix over both, on a fixed size."""
    turned = IDENTITY + pairs.permute(0, 2, 1)
    assert_same(turned, data.draw(tensors(2, n, n)))
    with pytest.raises(NotFusable, match="unknown: pass example_inputs"):
        turned.read(source_form("x", (fixed(2), free_size("x", -2), free_size("x", -1))))


def test_a_mean_beside_a_mean_stays_a_mean() -> None:
    """Two averages of a free axis are added as they are; an average beside the axis itself is not."""
    free = source_form("x", (free_size("x", -3), fixed(4), free_size("x", -1)))
    average, other = pairs.mean([-1], True), pairs.scale(some(4), 1) >> pairs.mean([-1], True)
    form = (average + other).read(free)
    assert form.sample.has(Role.MEAN)
    for n in (1, 3, 8):
        x = some(2, 4, n)
        assert_equal(evaluate(form, x=x), (average + other).run(x), exact=False)
    with pytest.raises(NotFusable):
        (average + IDENTITY).read(free)


# --- several sources -------------------------------------------------------------------------------------------


@given(data=st.data(), shape=shapes(largest=4))
def test_different_sources_stay_separate_terms(data: DataObject, shape: Shape) -> None:
    """f(x) + g(y) + h(x): the terms over x join, that over y stays."""
    x, y = data.draw(tensors(*shape)), data.draw(tensors(*shape))
    f, g, h = (data.draw(branches(shape)) for _ in range(3))
    form = f.read(source(x)) + g.read(source(y, "y")) + h.read(source(x))
    assert set(form.terms) == {"x", "y"}
    assert_equal(evaluate(form, x=x, y=y), f.run(x) + g.run(y) + h.run(x))


@given(data=st.data(), shape=shapes(largest=4))
def test_a_layer_after_a_sum_reads_every_source(data: DataObject, shape: Shape) -> None:
    """h(f(x) + g(y)) is h(f(x)) + h(g(y)), with the bias of h once."""
    x, y = data.draw(tensors(*shape)), data.draw(tensors(*shape))
    f, g = (data.draw(branches(shape)) for _ in range(2))
    h = data.draw(convs(shape))
    form = h.read(f.read(source(x)) + g.read(source(y, "y")))
    assert_equal(evaluate(form, x=x, y=y), h.run(f.run(x) + g.run(y)))


# --- sums that are no join ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 1), (1, 3), (1, 1), (3,)])
def test_a_sum_that_broadcasts_is_refused(shape: tuple[int, ...]) -> None:
    """A value of another shape that torch would broadcast is no branch of the sum."""
    x, y = source(torch.zeros(4, 3)), source(torch.zeros(shape), "y")
    with pytest.raises(NotFusable, match="broadcast"):
        x + y
    averaged = pairs.mean([-1], keepdim=True)
    with pytest.raises(NotFusable, match="broadcast"):
        (averaged + IDENTITY).read(x)


def test_sizes_that_may_differ_are_refused() -> None:
    """Two tensors whose sizes are known only at run time may broadcast."""
    x, y = (source_form(name, (free_size(name, -2), fixed(3))) for name in "xy")
    with pytest.raises(NotFusable, match="broadcast"):
        x + y


def test_the_law_of_a_join_is_named() -> None:
    """A window that joins a matrix is Locality Injection, any other join a parallel sum."""
    x = some(1, 2, 3, 3)
    full = pairs.reshape(1, 18) >> pairs.linear(some(18, 18)) >> pairs.reshape(1, 2, 3, 3)
    local = pairs.conv(some(2, 2, 3, 3), None, 1, 1)
    assert (local + full).read(source(x)).used == {LOCALITY_INJECTION}
    assert (local + IDENTITY).read(source(x)).used == {PARALLEL_SUM}
