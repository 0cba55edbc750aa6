"""Locality Injection: a window joins a full matrix, in all the guises of the literature.

The FC kernel gets W'[i, j] += k[i - j]: each tap on its diagonal (RepMLPNet, section 3.3).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import nn

from reparamkit.algebra.form import Form, source_form
from reparamkit.algebra.laws import LOCALITY_INJECTION
from reparamkit.algebra.size import fixed, free_size
from reparamkit.errors import NotFusable

from . import pairs
from .oracle import evaluate, guards_hold, source, written
from .pairs import Layer, assert_equal, assert_same
from .strategies import Shape, axes, convs, full_matrices, maybe, shapes, some, tensors, token_mixings

maps = shapes(2, channels=(1, 2, 4), largest=4)


@given(data=st.data(), shape=maps)
def test_a_conv_beside_a_full_matrix_is_a_full_matrix(data: DataObject, shape: Shape) -> None:
    """Any conv that keeps the map joins an FC over the flattened map, C h w to C h w; so do two of them."""
    block = data.draw(full_matrices(shape)) + data.draw(convs(shape, same=True)) + data.draw(convs(shape, same=True))
    form = assert_same(block, data.draw(tensors(*shape)))
    assert form.sample.stored == (shape[1] * shape[2] * shape[3]) ** 2


@given(data=st.data(), shape=shapes(2, channels=(1, 2, 3), largest=4), outs=st.integers(1, 3))
def test_a_strided_conv_beside_a_rectangular_matrix(data: DataObject, shape: Shape, outs: int) -> None:
    """Other channels and a smaller map: the matrix is (C h w) x (C' h' w')."""
    conv = pairs.conv(data.draw(tensors(outs, shape[1], 3, 2)), data.draw(maybe(outs)), 2, 1)
    x = data.draw(tensors(*shape))
    value = tuple(conv.run(x).shape)
    area, smaller = x[0].numel(), conv.run(x)[0].numel()
    full = pairs.linear(data.draw(tensors(smaller, area)), data.draw(maybe(smaller)))
    assert_same((pairs.reshape(shape[0], area) >> full >> pairs.reshape(*value)) + conv, x)


@given(data=st.data(), shape=maps)
def test_resmlp_a_conv_shared_by_channels_beside_token_mixing(data: DataObject, shape: Shape) -> None:
    """One Linear over the tokens of each channel takes in one kernel for all channels, at no extra number."""
    n, c, h, w = shape
    shared = data.draw(convs((n * c, 1, h, w), same=True))
    local = pairs.reshape(n * c, 1, h, w) >> shared >> pairs.reshape(*shape)
    form = assert_same(data.draw(token_mixings(shape)) + local, data.draw(tensors(*shape)))
    assert form.sample.stored == (h * w) ** 2


@given(data=st.data(), shape=maps)
def test_a_kernel_per_channel_beside_token_mixing_costs_a_matrix_per_channel(data: DataObject, shape: Shape) -> None:
    """A depthwise conv next to a Linear shared by all channels is exact, and C times larger."""
    c, area = shape[1], shape[2] * shape[3]
    depthwise = data.draw(convs(shape, same=True, groups=c))
    form = assert_same(data.draw(token_mixings(shape)) + depthwise, data.draw(tensors(*shape)))
    assert form.sample.stored in {c * area**2, area**2}


# --- RepMLP ----------------------------------------------------------------------------------------------


def repmlp(c: int, sets: int, grid: tuple[int, int], patch: tuple[int, int], kernels: tuple[int, ...]) -> Layer:
    """The partition perceptron of RepMLPNet on (2, C, H h, W w): FC3 beside depthwise convs, share-sets of S.

    Between partition and departition, a grouped 1x1 conv over (S h w) on (B', S h w, 1, 1) stands beside
    depthwise convs of several kernels on (B', S, h, w), each with its scale and shift.
    """
    (tall, wide), (h, w) = grid, patch
    rows, area = 2 * tall * wide * c // sets, sets * h * w
    fc = pairs.conv(some(area, h * w, 1, 1), groups=sets) >> pairs.scale(some(area), 1, some(area))
    perceptron = pairs.reshape(rows, area, 1, 1) >> fc >> pairs.reshape(rows, sets, h, w)
    for k in kernels:
        local = pairs.conv(some(sets, 1, k, k), None, 1, k // 2, groups=sets)
        perceptron += local >> pairs.scale(some(sets), 1, some(sets))
    return (
        pairs.reshape(2, c, tall, h, wide, w)
        >> pairs.permute(0, 2, 4, 1, 3, 5)
        >> pairs.reshape(rows, sets, h, w)
        >> perceptron
        >> pairs.reshape(2, tall, wide, c, h, w)
        >> pairs.permute(0, 3, 1, 4, 2, 5)
        >> pairs.reshape(2, c, tall * h, wide * w)
    )


@pytest.mark.parametrize("kernels", [(1,), (3,), (1, 3), (1, 3, 5)])
@pytest.mark.parametrize("sets", [1, 2, 4])
@pytest.mark.parametrize(("grid", "patch"), [((1, 1), (3, 4)), ((2, 2), (2, 3)), ((1, 3), (4, 1))])
def test_repmlp_is_one_fc(kernels: tuple[int, ...], sets: int, grid: tuple, patch: tuple) -> None:
    """All kernels of a partition perceptron go into its FC, between the same partition and departition."""
    block = repmlp(4, sets, grid, patch, kernels)
    x = some(2, 4, grid[0] * patch[0], grid[1] * patch[1])
    form = assert_same(block, x)
    h, w = patch
    assert (LOCALITY_INJECTION in form.used) == (kernels != (1,))
    assert form.sample.stored == sets * (h * w) ** 2


def test_the_papers_conversion() -> None:
    """The merged FC kernel is what convolving an identity matrix gives (RepMLPNet, equation 12)."""
    sets, h, w = 3, 4, 5
    conv = pairs.conv(some(sets, 1, 3, 3), None, 1, 1, groups=sets)
    kernel = some(sets * h * w, h * w, 1, 1)
    shape = (2, sets, h, w)
    fc = pairs.reshape(2, sets * h * w, 1, 1) >> pairs.conv(kernel, groups=sets) >> pairs.reshape(*shape)
    flat = pairs.reshape(*shape) >> (fc + conv) >> pairs.reshape(2, sets * h * w, 1, 1)
    layer = written(flat.read(source(torch.zeros(2, sets * h * w, 1, 1))))
    unit = torch.eye(h * w, dtype=torch.float64).repeat(1, sets).reshape(h * w, sets, h, w)
    converted = conv.run(unit).reshape(h * w, sets * h * w).t()[..., None, None]
    assert isinstance(layer, nn.Conv2d)
    assert layer.groups == sets
    assert torch.equal(layer.weight, kernel + converted)


@given(data=st.data(), n=st.integers(2, 7))
def test_the_matrix_of_a_window_is_the_window_of_the_unit_vectors(data: DataObject, n: int) -> None:
    """Strided, dilated, even, one-sided: what a window adds to a matrix is its values on the identity."""
    kernel, stride, dilation, padding = data.draw(axes(n))
    conv = pairs.conv(data.draw(tensors(1, 1, kernel)), None, [stride], [padding], [dilation])
    unit = torch.eye(n, dtype=torch.float64)[:, None]
    converted = conv.run(unit)[:, 0].t()
    weight = data.draw(tensors(*converted.shape))
    both = (conv + pairs.linear(weight)).read(source(torch.zeros(4, 1, n)))
    assert torch.equal(written(both).weight, weight + converted)


# --- free sizes ---------------------------------------------------------------------------------------------


def hinted(shape: Shape, traced: bool = True) -> Form:
    """A source of free batch and map, whose sizes are known from example inputs, or not."""
    n, c, h, w = shape
    return source_form(
        "x",
        (
            free_size("x", -4, n if traced else None),
            fixed(c),
            free_size("x", -2, h if traced else None),
            free_size("x", -1, w if traced else None),
        ),
    )


def mixing(area: int) -> Layer:
    """A Linear over the flattened map of each channel, whatever the batch."""
    return pairs.joined([0], [1], [2, 3]) >> pairs.linear(some(area, area), some(area))


def test_a_matrix_pins_the_size_of_the_map_it_was_traced_on() -> None:
    """The merged layer is for maps of the traced size, with any batch; other sizes are guarded."""
    tokens = mixing(20)
    local = pairs.conv(some(3, 1, 3, 3), some(3), 1, 1, groups=3) >> pairs.joined([0], [1], [2, 3])
    form = (tokens + local).read(hinted((2, 3, 4, 5)))
    assert form.used >= {LOCALITY_INJECTION}
    for shape in [(2, 3, 4, 5), (1, 3, 4, 5), (7, 3, 4, 5)]:
        x = some(*shape)
        assert guards_hold(form, x=x)
        assert_equal(evaluate(form, x=x), (tokens + local).run(x))
    assert not guards_hold(form, x=some(2, 3, 5, 4))
    assert not guards_hold(form, x=some(2, 3, 2, 10))


def test_without_example_inputs_a_map_of_unknown_size_is_refused() -> None:
    """Nothing says that a map of 20 tokens is 4 x 5: the layers are not merged, with words."""
    local = pairs.conv(some(3, 3, 3, 3), some(3), 1, 1) >> pairs.joined([0], [1], [2, 3])
    with pytest.raises(NotFusable, match="pass example_inputs"):
        (mixing(20) + local).read(hinted((2, 3, 4, 5), traced=False))


def test_tokens_pass_a_layer_that_does_not_mix_them_at_any_size() -> None:
    """A scale beside token mixing needs no map: only the number of tokens is fixed, by the weight."""
    tokens = pairs.linear(some(20, 20), some(20)) + pairs.scale(some(20), -1)
    form = tokens.read(source_form("x", (free_size("x", -3), free_size("x", -2), free_size("x", -1))))
    assert not form.guards
    for shape in [(2, 3, 20), (5, 1, 20)]:
        x = some(*shape)
        assert_equal(evaluate(form, x=x), tokens.run(x))
