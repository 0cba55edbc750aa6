"""A written layer is the plainest torch layer that computes its operator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import nn

from reparamkit.algebra.form import Form
from reparamkit.algebra.operator import Link, Role
from reparamkit.algebra.size import fixed
from reparamkit.errors import NotFusable
from reparamkit.layers.plans import Scale
from reparamkit.layers.windows import window
from reparamkit.layers.writers import plan

from . import pairs
from .oracle import source, windows, written
from .pairs import IDENTITY, Layer, accepts, assert_equal
from .strategies import BROAD, branches, chains, shapes, some, tensors


@BROAD
@given(data=st.data())
def test_a_written_layer_computes_its_form(data: DataObject) -> None:
    """Where one layer suffices, it gives what the layers give, at any batch."""
    shape = data.draw(shapes(data.draw(st.integers(1, 3)), largest=4))
    layer = data.draw(chains(shape, data.draw(st.integers(1, 3)))) + data.draw(chains(shape, 1))
    x = data.draw(tensors(*shape))
    if accepts(layer.run, x):
        try:
            module = written(layer.read(source(x)))
        except NotFusable:
            return
        assert_equal(module(x), layer.run(x))


@given(data=st.data(), shape=shapes(2, largest=4))
def test_a_written_sum_computes_its_form(data: DataObject, shape: tuple[int, ...]) -> None:
    """The same for branches through views, which are one layer where they mix one dimension."""
    layer, x = data.draw(branches(shape)) + data.draw(branches(shape)), data.draw(tensors(*shape))
    try:
        module = written(layer.read(source(x)))
    except NotFusable:
        return
    assert_equal(module(x), layer.run(x))


@st.composite
def stencils(draw: st.DrawFn) -> Link:
    """Any taps, in order, with any stride and output size."""
    first, step = draw(st.integers(-6, 4)), draw(st.integers(1, 3))
    gaps = draw(st.lists(st.integers(1, 3).map(lambda k: k * step), max_size=3))
    taps = [first]
    for gap in gaps:
        taps.append(taps[-1] + gap)
    return Link(Role.STENCIL, fixed(1), tuple(taps), draw(st.integers(1, 3)), draw(st.integers(-6, 4)))


@BROAD
@given(link=stencils(), n=st.integers(1, 9), data=st.data())
def test_a_window_is_widened_to_symmetric_padding(link: Link, n: int, data: DataObject) -> None:
    """Crops, asymmetric padding, a single tap anywhere: with zero taps added, a torch convolution computes it."""
    found = window(link)
    kernel, x = data.draw(tensors(len(link.taps))), data.draw(tensors(1, 1, n))
    wide = torch.zeros(1, 1, found.k, dtype=torch.float64)
    wide[..., list(found.places)] = kernel

    def run(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv1d(x, wide, None, found.stride, found.padding, found.dilation)

    assert found.padding >= 0
    assert accepts(run, x) == (n + link.c >= 0)
    if n + link.c >= 0:
        assert_equal(run(x), (windows(x, 2, link) * kernel).sum(-1))


@given(link=stencils())
def test_a_dilated_window_stays_dilated_where_its_padding_allows(link: Link) -> None:
    """Taps d apart are written with dilation d if zeros d apart can make the padding symmetric."""
    found = window(link)
    steps = {b - a for a, b in zip(link.taps, link.taps[1:], strict=False)}
    low, high = -link.taps[0], link.c + link.taps[-1] + 1
    if len(steps) == 1 and low == high >= 0:
        assert (found.k, found.dilation, found.padding) == (len(link.taps), *steps, low)


PLAINEST: dict[str, tuple[Layer, type[nn.Module], dict[str, object]]] = {
    "3x3": (
        pairs.conv(some(6, 4, 3, 3), some(6), 2, 1),
        nn.Conv2d,
        {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)},
    ),
    "depthwise": (pairs.conv(some(4, 1, 3, 3), None, 1, 1, groups=4), nn.Conv2d, {"groups": 4, "bias": None}),
    "even window": (pairs.conv(some(4, 4, 2, 2), None, 1, [(0, 1), (0, 1)]), nn.Sequential, {}),
    "dilated": (pairs.conv(some(4, 4, 3, 3), some(4), 1, 2, 2), nn.Conv2d, {"dilation": (2, 2), "kernel_size": (3, 3)}),
    "skip in a 3x3": (
        pairs.conv(some(4, 4, 3, 3), some(4), 1, 1) + IDENTITY,
        nn.Conv2d,
        {"kernel_size": (3, 3), "padding": (1, 1), "groups": 1},
    ),
    "matrix on the last axis": (pairs.linear(some(3, 5), some(3)), nn.Linear, {"in_features": 5, "out_features": 3}),
}


@pytest.mark.parametrize("name", PLAINEST)
def test_the_plainest_layer_is_written(name: str) -> None:
    """A convolution stays one with its own groups and dilation, a matrix on the last axis is a Linear."""
    layer, kind, attributes = PLAINEST[name]
    module = written(layer.read(source(torch.zeros(2, 4, 5, 5))))
    assert type(module) is kind
    assert {key: getattr(module, key) for key in attributes} == attributes


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@given(data=st.data())
def test_a_scale_of_any_rank_is_written(shape: tuple[int, ...], data: DataObject) -> None:
    """A factor, a shift, both, or neither, along any dimension of a tensor of any rank."""
    dim = data.draw(st.integers(-len(shape), -1))
    layer = data.draw(
        st.sampled_from(
            (
                pairs.scale(some(shape[dim]), dim),
                pairs.scale(some(shape[dim]), dim, some(shape[dim])),
                pairs.offset(some(5)),
                pairs.multiply(some(1)) >> pairs.offset(some()),
                IDENTITY + IDENTITY,
            )
        )
    )
    x = data.draw(tensors(*shape))
    form = layer.read(source(x))
    assert_equal(written(form)(x), layer.run(x))


def test_a_scale_without_numbers_is_the_identity() -> None:
    """Scale(None, None) is x, Scale(None, b) is x + b."""
    x = some(2, 3)
    assert torch.equal(Scale(None, None)(x), x)
    assert torch.equal(Scale(None, x)(x), 2 * x)
    assert str(Scale(x, None)) == "Scale(weight=(2, 3))"


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (pairs.reshape(2, 12, 25), "number of dimensions"),
        (
            pairs.reshape(2, 100) >> pairs.linear(some(100, 100)) >> pairs.reshape(2, 4, 5, 5),
            "mixes several dimensions",
        ),
        (pairs.permute(0, 1, 3, 2), "mixes several dimensions"),
    ],
)
def test_what_no_single_layer_computes_is_refused(layer: Layer, reason: str) -> None:
    """The reason names each layer that was tried."""
    form: Form = layer.read(
        source(torch.zeros(2, 4, 5, 5) if reason != "number of dimensions" else torch.zeros(2, 12, 5, 5))
    )
    with pytest.raises(NotFusable, match=reason):
        plan(form.sample, form.bias)


def test_a_bias_that_differs_from_place_to_place_is_a_layer_of_its_own() -> None:
    """No convolution has such a bias; the price counts the pass that adds it."""
    layer, x = pairs.conv(some(4, 4, 3, 3)) >> pairs.offset(some(3, 3)), some(2, 4, 5, 5)
    form = layer.read(source(x))
    made, alone = plan(form.sample, form.bias), plan(form.sample, None)
    assert "pass of its own" in str(made.beside)
    assert made.cost.passes == alone.cost.passes + layer.run(x).numel()
    assert made.cost.launches == alone.cost.launches + 1
    assert_equal(made.build()(x), layer.run(x))


@given(data=st.data(), shape=shapes(2, largest=4))
def test_a_plan_knows_what_it_will_store(data: DataObject, shape: tuple[int, ...]) -> None:
    """The price counts the numbers of the layer before it is built."""
    form = (data.draw(branches(shape)) + data.draw(branches(shape))).read(source(torch.zeros(shape)))
    try:
        made = plan(form.sample, form.bias)
    except NotFusable:
        return
    module = made.build()
    numbers = sum(p.numel() for p in module.parameters())
    assert numbers == made.cost.stored
    assert all(p.dtype == torch.float64 for p in module.parameters())
    layer = module[-1] if isinstance(module, nn.Sequential) and not made.beside else module
    assert made.bias == (0 if getattr(layer, "bias", None) is None or made.kind == "scale" else layer.bias.numel())
