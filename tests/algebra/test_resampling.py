"""What only a call of its own can compute along an axis lets through what is free there, and stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn

from reparamkit.algebra.form import Form
from reparamkit.algebra.operator import Operator, Resampling
from reparamkit.algebra.size import fixed
from reparamkit.algebra.views import Resampled
from reparamkit.errors import NotFusable
from reparamkit.layers.writers import plan

from . import pairs
from .oracle import apply_operator, evaluate, source
from .pairs import Layer, accepts, assert_equal
from .strategies import BROAD, Shape, convs, layers, matrices, scales, shape_after, shapes, tensors, transposed_convs


@st.composite
def resamplings(draw: DrawFn, shape: Shape) -> Layer:
    """Positions of the last dimension."""
    positions = draw(st.lists(st.integers(0, shape[-1] - 1), min_size=1, max_size=5))
    return pairs.gathered(-1, positions)


@st.composite
def rows(draw: DrawFn, shape: Shape, length: int) -> Layer:
    """Layers in a row, some of them resamplings."""
    row = draw(resamplings(shape) | layers(shape))
    for _ in range(length - 1):
        now = shape_after(row, shape)
        row = row >> draw(resamplings(now) | layers(now))
    return row


@BROAD
@given(data=st.data(), shape=shapes(1, largest=5))
def test_what_is_composed_is_right(data: DataObject, shape: Shape) -> None:
    """Rows and sums with resamplings equal the layers, or are refused."""
    row, x = data.draw(rows(shape, data.draw(st.integers(1, 4)))), data.draw(tensors(*shape))
    other = data.draw(rows(shape, 2))
    if shape_after(row, shape) == shape_after(other, shape):
        row += other
    if accepts(row.run, x):
        try:
            form = row.read(source(x))
        except NotFusable:
            return
        assert_equal(evaluate(form, x=x), row.run(x), exact=False)


@BROAD
@given(data=st.data(), shape=shapes(1, largest=5))
def test_a_layer_between_flips_is_its_mirror_image(data: DataObject, shape: Shape) -> None:
    """Of a convolution of stride 1 no resampling is left; of other layers one may be, and all are right."""
    same, any_layer = data.draw(convs(shape, same=True)), data.draw(layers(shape) | transposed_convs(shape))
    x, flip = data.draw(tensors(*shape)), pairs.flipped(-1)
    assert not (flip >> same >> flip).read(source(x)).sample.resamples
    for layer in (same, any_layer):
        row = flip >> layer >> flip
        if accepts(layer.run, x):
            with suppress(NotFusable):
                assert_equal(evaluate(row.read(source(x)), x=x), row.run(x), exact=False)


@given(data=st.data(), shape=shapes(1, largest=5))
def test_channels_pass(data: DataObject, shape: Shape) -> None:
    """Scales, shifts and matrices of channels before and behind a resampling are one operator."""
    kind = st.sampled_from((scales, matrices))
    row = data.draw(data.draw(kind)(shape, 1))
    row = row >> data.draw(resamplings(shape_after(row, shape)))
    row = row >> data.draw(data.draw(kind)(shape_after(row, shape), 1))
    x = data.draw(tensors(*shape))
    form = row.read(source(x))
    assert_equal(evaluate(form, x=x), row.run(x))


@BROAD
@given(data=st.data(), shape=shapes(1, largest=5))
def test_a_branch_without_the_positions_around_is_read_behind_them(data: DataObject, shape: Shape) -> None:
    """``conv(pad(x)) + f(x)`` is right or refused; of an f that reads no border along the axis it is one operator."""
    n, channels, stride = shape[-1], shape[1], data.draw(st.integers(1, 2))
    before, behind = (data.draw(st.lists(st.integers(0, n - 1), max_size=2)) for _ in range(2))
    k = len(before) + len(behind) + 1
    reads_none = data.draw(st.booleans())
    other = data.draw(scales(shape, 1) if reads_none else convs(shape, same=True))
    other = other >> pairs.cropped(-1, 0, None, stride)
    weight = data.draw(tensors(channels, channels, k))
    padded = pairs.surrounded(n, before, behind) >> pairs.conv(weight, None, [stride], [(0, 0)], [1], 1)
    joined, x = data.draw(st.sampled_from((padded + other, other + padded))), data.draw(tensors(*shape))
    try:
        form = joined.read(source(x))
    except NotFusable:
        assert not reads_none
        return
    assert_equal(evaluate(form, x=x), joined.run(x), exact=False)


AROUND: dict[str, Callable[[int, int], int]] = {
    "reflect": lambda k, n: (n - 1) - abs((n - 1) - abs(k)),
    "replicate": lambda k, n: min(max(k, 0), n - 1),
    "circular": lambda k, n: k % n,
}
"""Per mode of padding the position that stands at place k of an axis of n."""


@given(data=st.data(), shape=shapes(1, largest=5), mode=st.sampled_from([*AROUND]), stride=st.integers(1, 2))
def test_fewer_positions_around_are_inside_of_more(data: DataObject, shape: Shape, mode: str, stride: int) -> None:
    """``conv(pad(x)) + conv(wider pad(x))`` of one mode is one operator behind the wider padding."""
    n, channels = shape[-1], shape[1]
    wide = data.draw(st.tuples(*[st.integers(0, min(3, n - 1))] * 2))
    narrow = tuple(data.draw(st.integers(0, end)) for end in wide)

    def branch(low: int, high: int) -> Layer:
        before, behind = ([AROUND[mode](k, n) for k in ks] for ks in (range(-low, 0), range(n, n + high)))
        weight = data.draw(tensors(channels, channels, low + high + 1))
        return pairs.surrounded(n, before, behind, mode) >> pairs.conv(weight, None, [stride], [(0, 0)], [1], 1)

    joined, x = branch(*narrow) + branch(*wide), data.draw(tensors(*shape))
    assert_equal(evaluate(joined.read(source(x)), x=x), joined.run(x), exact=False)


def views(form: Form) -> Resampled:
    """The view that a resampling leaves behind."""
    (view,) = (view for view in form.recent if isinstance(view, Resampled))
    return view


@given(data=st.data(), shape=shapes(1, largest=5), first=st.booleans())
def test_a_layer_is_written_on_either_side(data: DataObject, shape: Shape, first: bool) -> None:
    """A matrix of channels can stand before a resampling or behind it."""
    matrix, gather = data.draw(matrices(shape, 1)), data.draw(resamplings(shape))
    x = data.draw(tensors(*shape))
    op = ((matrix >> gather) if first else (gather >> matrix)).read(source(x)).sample
    view = views(gather.read(source(x)))
    before, behind = view.undone(op), view.on_source(op)
    assert not before.resamples
    assert not behind.resamples
    assert_equal(gather.run(apply_operator(before, x)), apply_operator(op, x))
    assert_equal(apply_operator(behind, gather.run(x)), apply_operator(op, x))


WINDOW = pairs.conv(torch.ones(2, 2, 3, dtype=torch.float64), padding=((1, 1),))
GATHER = pairs.gathered(-1, (0, 0, 2, 1))
MATRIX = torch.arange(16, dtype=torch.float64).reshape(4, 4)
LINE = torch.arange(8, dtype=torch.float64).reshape(1, 2, 4)


@pytest.mark.parametrize(
    "row",
    [
        lambda: WINDOW >> GATHER >> WINDOW,
        lambda: GATHER + pairs.IDENTITY,
        lambda: (pairs.linear(MATRIX) >> GATHER) + pairs.linear(MATRIX),
        lambda: GATHER + pairs.gathered(-1, (0, 0, 2, 2)),
        lambda: pairs.offset(LINE) >> GATHER,
        lambda: GATHER >> pairs.reshape(1, 2, 2, 2),
    ],
)
def test_what_does_not_commute_is_refused(row: Callable[[], Layer]) -> None:
    """A resampling between windows, beside another branch, behind a bias per position, an axis that is split."""
    with pytest.raises(NotFusable):
        row().read(source(LINE))


def test_it_is_never_written() -> None:
    """Only its own call computes it."""
    op: Operator = GATHER.read(source(LINE)).sample
    with pytest.raises(NotFusable, match="only its own call"):
        plan(op, None)


def test_two_calls_that_do_the_same_are_one() -> None:
    """The same map of branches side by side is a map of their sum."""
    form = ((WINDOW >> GATHER) + (WINDOW >> GATHER)).read(source(LINE))
    assert form.sample.resamples
    assert_equal(evaluate(form, x=LINE), 2 * GATHER.run(WINDOW.run(LINE)))


def test_equal_names_on_other_sizes_are_other_maps() -> None:
    """What a name does may depend on the size."""
    names = ("interpolate", "bilinear")
    assert Resampling(names, fixed(4), fixed(8)) != Resampling(names, fixed(5), fixed(8))
