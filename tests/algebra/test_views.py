"""Views are no operators: each can be applied to either side of an operator, and undone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from reparamkit.algebra.form import source_form
from reparamkit.algebra.operator import Resampling, Role
from reparamkit.algebra.size import fixed, free_size
from reparamkit.algebra.views import Crop, Mean, Permute, Resampled, Reshape, View
from reparamkit.errors import NotFusable
from reparamkit.layers.views import read_getitem

from . import pairs
from .oracle import apply_operator, evaluate, guards_hold, source
from .pairs import Layer, assert_equal
from .strategies import BROAD, Shape, divisors, layers, shape_after, shapes, some, tensors


@st.composite
def views(draw: st.DrawFn, shape: Shape) -> tuple[View, Layer]:
    """A permute, or a reshape that joins and splits dimensions at their own boundaries or within one."""
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        return Permute(tuple(order)), pairs.permute(*order)
    sizes = list(shape)
    for _ in range(draw(st.integers(1, 3))):
        d = draw(st.integers(0, len(sizes) - 1))
        if d > 0 and draw(st.booleans()):
            sizes[d - 1 : d + 1] = [sizes[d - 1] * sizes[d]]
        else:
            outer = draw(divisors(sizes[d]))
            sizes[d : d + 1] = [outer, sizes[d] // outer]
    counts = draw(st.booleans())
    return Reshape(tuple(map(fixed, shape)), tuple(map(fixed, sizes)), counts), pairs.reshape(*sizes)


@given(data=st.data(), shape=shapes(largest=4))
def test_a_view_of_the_value_can_be_undone(data: DataObject, shape: Shape) -> None:
    """After the view, then undone, an operator is what it was; or the view is refused for a window it splits."""
    layer, x = data.draw(layers(shape)), data.draw(tensors(*shape))
    op = layer.read(source(x)).sample
    value = apply_operator(op, x)
    view, seen = data.draw(views(tuple(value.shape)))
    try:
        after = view.on_value(op)
        back = view.undone(after)
    except NotFusable as refusal:
        if "a view splits or joins" not in str(refusal):
            raise
    else:
        assert_equal(apply_operator(after, x), seen.run(value))
        assert_equal(apply_operator(back, x), value)


def test_a_reshape_is_undone_for_what_it_gives_only() -> None:
    """A value of other dimensions, of as many numbers, is none that the reshape gave."""
    view = Reshape((fixed(6), fixed(4)), (fixed(2), fixed(3), fixed(4)))
    with pytest.raises(NotFusable, match="behind a view"):
        view.undone(source_form("x", (fixed(4), fixed(6))).sample)


@given(data=st.data(), shape=shapes(1, largest=6))
def test_a_crop_of_the_value_can_be_undone(data: DataObject, shape: Shape) -> None:
    """What is behind a crop is the crop of a layer that makes more of the same."""
    layer, x = data.draw(layers(shape)), data.draw(tensors(*shape))
    n = shape_after(layer, shape)[-1]
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(0, n - 1 - first))
    view = Crop(-1, first, last, fixed(n))
    op = (layer >> pairs.cropped(-1, first, n - last, 1)).read(source(x)).sample
    try:
        back = view.undone(op)
    except NotFusable:
        # A matrix or a vector along the axis, or positions of it that are left out.
        assert any(op.links[i].role is not Role.FREE for i in op.value[-1])
    else:
        longer = apply_operator(back, x)
        assert longer.shape[-1] == n
        assert_equal(longer.narrow(-1, first, n - first - last), apply_operator(op, x))


@given(data=st.data(), shape=shapes(largest=4))
def test_an_operator_can_read_a_view_of_its_source(data: DataObject, shape: Shape) -> None:
    """The operator that reads the view gives what the operator gives that reads the source."""
    layer, x = data.draw(layers(shape)), data.draw(tensors(*shape))
    op = layer.read(source(x)).sample
    view, seen = data.draw(views(shape))
    try:
        reading = view.on_source(op)
    except NotFusable as refusal:
        if "a view splits or joins" not in str(refusal):
            raise
    else:
        assert_equal(apply_operator(reading, seen.run(x)), apply_operator(op, x))


@given(data=st.data(), shape=shapes(), keepdim=st.booleans())
def test_a_layer_can_be_written_after_the_average_it_follows(data: DataObject, shape: Shape, keepdim: bool) -> None:
    """matrix(mean(x)) reads mean(x) as well as x."""
    x = data.draw(tensors(*shape))
    weight = data.draw(tensors(3, shape[1]))
    averaged = pairs.mean((-2, -1), keepdim)
    op = (averaged >> pairs.matrix(weight, 1)).read(source(x)).sample
    after = Mean((-2, -1), keepdim).on_source(op)
    assert_equal(apply_operator(after, averaged.run(x)), apply_operator(op, x), exact=False)


@pytest.mark.parametrize(
    "view", [Crop(-3, 0, 2, fixed(4)), Resampled(((-3, Resampling(("copy",), fixed(2), fixed(4))),))]
)
def test_a_view_of_a_dimension_that_there_is_not_is_refused(view: View) -> None:
    with pytest.raises(NotFusable, match="number of dimensions beside a view"):
        view.undone(source_form("x", (fixed(4), fixed(6))).sample)


def test_an_average_is_not_moved_before_what_sees_its_axes() -> None:
    """conv(x) averaged is no layer on the average of x."""
    op = (pairs.conv(some(2, 2, 3, 3), None, 1, 1) >> pairs.mean([-2, -1])).read(source(torch.zeros(1, 2, 4, 4))).sample
    with pytest.raises(NotFusable, match="see the averaged axes"):
        Mean((-2, -1), keepdim=False).on_source(op)
    with pytest.raises(NotFusable, match="not cheaper"):
        Mean((-2, -1), keepdim=False).undone(op)


def test_free_sizes_are_joined_and_split_again() -> None:
    """(N, C, h, w) to (N h w, C) and back needs no number, in whatever order the sizes are multiplied."""
    n, h, w = (free_size("x", d) for d in (-4, -2, -1))
    assert h * w == w * h
    tokens = pairs.permute(0, 2, 3, 1) >> pairs.joined([0, 1, 2], [3])
    form = (tokens >> pairs.linear(some(4, 3), some(4))).read(source_form("x", (n, fixed(3), h, w)))
    assert form.sizes == (n * h * w, fixed(4))
    for shape in [(2, 3, 4, 5), (1, 3, 1, 7)]:
        x = some(*shape)
        run = (tokens >> pairs.linear(some(4, 3))).run(x)
        assert evaluate(form, x=x).shape == run.shape
    turned = (pairs.permute(0, 1, 3, 2) >> pairs.joined([0], [1], [2, 3])).read(source_form("x", (n, fixed(3), h, w)))
    assert turned.sizes[-1] == h * w


def test_a_window_along_an_axis_that_a_view_splits_is_refused() -> None:
    """Patches cut out of a convolved axis would each need their neighbours."""
    convolved = pairs.conv(some(2, 2, 3), None, 1, 1).read(source(torch.zeros(1, 2, 6)))
    with pytest.raises(NotFusable, match="a view splits or joins"):
        pairs.reshape(1, 2, 2, 3).read(convolved)


def test_a_reshape_tells_the_one_size_that_is_free() -> None:
    """(2, n) seen as (2, 4, 2) has n = 8; where two sizes are free nothing is known."""
    seen = pairs.reshape(2, 4, 2)
    form = seen.read(source_form("x", (fixed(2), free_size("x", -1))))
    x = some(2, 8)
    assert_equal(evaluate(form, x=x), seen.run(x))
    with pytest.raises(NotFusable, match="regroups free sizes"):
        seen.read(source_form("x", (free_size("x", -2), free_size("x", -1))))


@st.composite
def keys(draw: st.DrawFn, shape: Shape) -> tuple[object, ...]:
    """An index of some dimensions: slices, numbers, at most one ellipsis anywhere, and new axes."""
    found: list[object] = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        start, stop = sorted(draw(st.lists(st.integers(-size, size), min_size=2, max_size=2)))
        part = st.sampled_from((slice(None), slice(start, stop), slice(start, None), slice(None, stop, 2)))
        found.append(draw(part | st.integers(-size, size - 1)))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(found)))
        # What follows an ellipsis counts from the end, where the sizes may be others.
        behind = [key if isinstance(key, slice) else slice(None) for key in found[place:]]
        found = [*found[:place], Ellipsis, *behind]
    for _ in range(draw(st.integers(0, 2))):
        found.insert(draw(st.integers(0, len(found))), None)
    return tuple(found)


@BROAD
@given(data=st.data(), shape=shapes(largest=5), free=st.booleans())
def test_an_index_takes_what_torch_takes(data: DataObject, shape: Shape, free: bool) -> None:
    """Before, at and behind an ellipsis, of sizes that are known or free; or it is refused."""
    x, key = data.draw(tensors(*shape)), data.draw(keys(shape))
    sizes = tuple(free_size("x", d, n) if free else fixed(n) for d, n in enumerate(shape, -len(shape)))
    try:
        form = read_getitem(source_form("x", sizes), key)
    except NotFusable:
        return
    if guards_hold(form, x=x) and x[key].numel():
        assert_equal(evaluate(form, x=x), x[key])
