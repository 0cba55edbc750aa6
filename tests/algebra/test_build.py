"""Each builder is its torch function."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import Tensor

from reparamkit.algebra import build, regroup
from reparamkit.algebra.form import Form, source_form
from reparamkit.algebra.operator import open_sizes
from reparamkit.algebra.size import fixed, free_size
from reparamkit.errors import NotFusable
from reparamkit.layers.contract import read_einsum, read_inner, read_matmul, read_tensordot
from reparamkit.layers.conv import read_conv

from . import pairs
from .oracle import evaluate, source, written, written_turned
from .pairs import assert_equal, assert_same
from .strategies import (
    BROAD,
    constants,
    convs,
    einsums,
    factorizations,
    matrices,
    maybe,
    means,
    pads,
    pools,
    shapes,
    some,
    tensors,
)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_conv_is_torchs_convolution(rank: int, data: DataObject) -> None:
    """Any kernel, even or rectangular, with any stride, dilation, groups, padding and bias."""
    shape = data.draw(shapes(rank, largest=(9, 6, 4)[rank - 1]))
    assert_same(data.draw(convs(shape)), data.draw(tensors(*shape)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_conv_takes_an_input_without_batch(rank: int, data: DataObject) -> None:
    """A conv on (C, n1, ..., nr) is torch's."""
    _, *shape = data.draw(shapes(rank, largest=4))
    assert_same(data.draw(convs(tuple(shape), rank)), data.draw(tensors(*shape)))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(data=st.data(), kernel=st.integers(1, 5), dilation=st.integers(1, 3))
def test_padding_that_keeps_the_size_has_its_odd_zero_where_torch_has_it(
    data: DataObject, kernel: int, dilation: int
) -> None:
    """``padding="same"``, of an even kernel too."""
    x, weight = data.draw(tensors(2, 3, 7)), data.draw(tensors(2, 3, kernel))
    form = read_conv(source(x), weight, padding="same", dilation=dilation)
    assert_equal(evaluate(form, x=x), F.conv1d(x, weight, padding="same", dilation=dilation))


@given(data=st.data(), multiplier=st.integers(1, 3))
def test_depthwise_conv_with_a_multiplier(data: DataObject, multiplier: int) -> None:
    """A depthwise conv gives `multiplier` outputs per channel, channel by channel."""
    n, c, h, w = data.draw(shapes(channels=(1, 2, 5)))
    weight = data.draw(tensors(c * multiplier, 1, 3, 2))
    layer = pairs.conv(weight, data.draw(maybe(c * multiplier)), padding=1, groups=c)
    assert_same(layer, data.draw(tensors(n, c, h, w)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_pool_is_torchs_average(rank: int, data: DataObject) -> None:
    """An average pool divides by the whole window, zeros of the padding counted."""
    shape = data.draw(shapes(rank, largest=(9, 6, 4)[rank - 1]))
    x = data.draw(tensors(*shape))
    assert_same(data.draw(pools(shape)), x)
    assert_same(data.draw(pools(shape, same=True)), x, exact=False)


@pytest.mark.parametrize("rank", [1, 2, 3])
@given(data=st.data())
def test_padded_is_torchs_pad(rank: int, data: DataObject) -> None:
    """Zeros on both sides of the last axes, or a crop where the amount is negative."""
    shape = data.draw(shapes(rank))
    assert_same(data.draw(pads(shape, rank)), data.draw(tensors(*shape)))


@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_linear_is_torchs_on_any_rank(data: DataObject, shape: list[int]) -> None:
    """A Linear mixes the last dimension, whatever stands before it."""
    outs = data.draw(st.integers(1, 4))
    layer = pairs.linear(data.draw(tensors(outs, shape[-1])), data.draw(maybe(outs)))
    assert_same(layer, data.draw(tensors(*shape)))


@given(data=st.data(), shape=shapes())
def test_matrix_mixes_one_dimension(data: DataObject, shape: tuple[int, ...]) -> None:
    """A matrix along a dimension is a Linear on that dimension moved last, and back."""
    assert_same(data.draw(matrices(shape)), data.draw(tensors(*shape)))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@given(data=st.data())
def test_scale_is_a_batch_norm(rank: int, data: DataObject) -> None:
    """A batch norm with fixed statistics is ``s x + t`` with s = gamma / sqrt(var + eps), t = beta - mean s."""
    shape = data.draw(shapes(rank))
    mean, gamma, beta = (data.draw(tensors(shape[1])) for _ in range(3))
    var = 4.0 ** data.draw(tensors(shape[1]))  # whose square roots are exact
    x, s = data.draw(tensors(*shape)), gamma / var.sqrt()
    found = build.scale(source(x), s, 1, beta - mean * s)
    expected = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=0.0)
    assert_equal(evaluate(found, x=x), expected, exact=False)


@given(data=st.data(), shape=shapes())
def test_multiply_and_offset_broadcast_the_constant(data: DataObject, shape: tuple[int, ...]) -> None:
    """A constant of any shape that broadcasts to x multiplies it, or is added to it."""
    x = data.draw(tensors(*shape))
    assert_same(pairs.multiply(data.draw(constants(shape))), x)
    assert_same(pairs.offset(data.draw(constants(shape))), x)


@pytest.mark.parametrize("layer", [build.multiply, build.offset], ids=["multiply", "offset"])
@pytest.mark.parametrize("constant", [(3, 1), (2, 1, 1), (3, 5)])
def test_a_value_that_broadcasts_to_a_constant_is_refused(layer: object, constant: tuple[int, ...]) -> None:
    """x of shape (1, 5) never grows to the shape of a constant."""
    with pytest.raises(NotFusable, match=r"broadcast|needs 3 dimensions"):
        layer(source(torch.zeros(1, 5)), torch.ones(constant))


@BROAD
@given(case=einsums())
def test_an_einsum_with_constants_is_torchs(case: tuple[str, Tensor, list[Tensor]]) -> None:
    """Of one value and any constants, summed over any dimensions; written as one layer where that is one."""
    equation, x, others = case
    form, expected = read_einsum(equation, source(x), *others), torch.einsum(equation, x, *others)
    assert_equal(evaluate(form, x=x), expected)
    for write in (written, written_turned):
        with suppress(NotFusable):
            assert_equal(write(form)(x), expected)


@pytest.mark.parametrize("others", [(4,), (4, 5), (2, 4, 5), (1, 4, 5), (3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (3, 2, 3, 4)], ids=str)
def test_products_of_any_rank_are_torchs(shape: tuple[int, ...], others: tuple[int, ...]) -> None:
    """A vector, a matrix, or a matrix per position, on both sides of a value."""
    x, w = some(*shape), some(*others)
    turned, v = x.mT, w if w.dim() == 1 else w.mT
    assert_equal(evaluate(read_matmul(source(x), w), x=x), x @ w)
    assert_equal(evaluate(read_matmul(v, source(turned)), x=turned), v @ turned)
    assert_equal(evaluate(read_inner(source(x), v), x=x), torch.inner(x, v))
    assert_equal(evaluate(read_inner(v, source(x)), x=x), torch.inner(v, x))
    dims = ([-1], [max(0, w.dim() - 2)])
    assert_equal(evaluate(read_tensordot(source(x), w, dims), x=x), torch.tensordot(x, w, dims))


def test_a_sum_over_a_free_size_is_no_product() -> None:
    """Of an axis of unknown size only the mean is known."""
    with pytest.raises(NotFusable, match="size is free"):
        build.contracted(source_form("x", (free_size("x", -2), fixed(3))), "ab", [(torch.ones(3), "b")], "b")


@given(data=st.data(), shape=shapes(), keepdim=st.booleans())
def test_mean_is_torchs_mean(data: DataObject, shape: tuple[int, ...], keepdim: bool) -> None:
    """The average over any dimensions, kept as 1 or dropped."""
    x = data.draw(tensors(*shape))
    dims = data.draw(st.lists(st.integers(-4, -1), unique=True, min_size=1))
    assert_same(data.draw(means(shape)), x)
    assert_same(pairs.mean(dims, keepdim), x, exact=False)


@given(data=st.data(), numel=st.sampled_from((1, 6, 12, 16, 60)))
def test_views_are_torchs_views(data: DataObject, numel: int) -> None:
    """Reshapes and permutes of reshapes only regroup and reorder, row-major."""
    first, second = data.draw(factorizations(numel)), data.draw(factorizations(numel))
    order = data.draw(st.permutations(range(4)))
    layer = pairs.reshape(*second) >> pairs.permute(*order) >> pairs.permute(*reversed(order))
    try:
        form = assert_same(layer, data.draw(tensors(*first)))
    except NotFusable:
        assert not _nest(first, second)
    else:
        assert form.sample.is_identity


def _nest(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether the boundaries of one shape are multiples of those of the other, one after the other."""
    bounds = sorted({*_bounds(first), *_bounds(second)})
    return all(b % a == 0 for a, b in itertools.pairwise(bounds))


def _bounds(shape: tuple[int, ...]) -> list[int]:
    return [torch.Size(shape[d:]).numel() for d in range(len(shape))]


@given(data=st.data(), rank=st.integers(1, 5))
def test_a_linear_keeps_the_rank_open(data: DataObject, rank: int) -> None:
    """A Linear read without knowing the rank holds for every rank."""
    x = data.draw(tensors(*(data.draw(st.integers(1, 3)) for _ in range(rank - 1)), 4))
    layer = pairs.linear(data.draw(tensors(3, 4)), data.draw(maybe(3)))
    assert_equal(evaluate(layer.read(_open()), x=x), layer.run(x))


@given(data=st.data(), batched=st.booleans())
def test_a_conv_keeps_the_rank_open(data: DataObject, batched: bool) -> None:
    """A conv read without knowing the rank holds with and without a batch."""
    shape = data.draw(shapes(2))
    layer, x = data.draw(convs(shape)), data.draw(tensors(*shape))
    x = x if batched else x[0]
    assert_equal(evaluate(layer.read(_open()), x=x), layer.run(x))


@given(data=st.data())
def test_an_open_rank_is_closed_by_a_layer_that_knows_it(data: DataObject) -> None:
    """A layer of known rank after, or beside, one of any rank: the sum knows it, its bias too."""
    bias, x = data.draw(tensors(4)), data.draw(tensors(2, 3, 4))
    open_branch = pairs.linear(data.draw(tensors(4, 4)), bias)
    form, factor = _open(), data.draw(tensors(3))
    known = build.scale(regroup.known_rank(form, [3]), factor, 1)
    found = open_branch.read(form) + known
    expected = open_branch.run(x) + x * factor[:, None]
    assert not found.open_rank
    assert_equal(evaluate(found, x=x), expected)
    later = build.scale(regroup.known_rank(open_branch.read(form), [3]), factor, 1)
    assert_equal(evaluate(later, x=x), open_branch.run(x) * factor[:, None])


@given(data=st.data())
def test_branches_that_see_different_dimensions_of_an_open_rank(data: DataObject) -> None:
    """A Linear with a bias next to a conv: the sum sees as many dimensions as either."""
    shape = data.draw(shapes(2))
    c, w = shape[1], shape[-1]
    conv = data.draw(convs(shape, same=True, bias=False))
    branch = pairs.linear(data.draw(tensors(w, w)), data.draw(tensors(w)))
    x = data.draw(tensors(*shape))
    width = source_form("x", (free_size("x", -4), *(free_size("x", d, x.shape[d]) for d in (-3, -2, -1))))
    assert_equal(evaluate((branch + conv).read(width), x=x), (branch + conv).run(x))
    scaled = pairs.scale(data.draw(tensors(c)), -3)
    assert_equal(evaluate((branch + scaled).read(_open()), x=x), (branch + scaled).run(x))


def _open() -> Form:
    return source_form("x", open_sizes("x"), open_rank=True)


@pytest.mark.parametrize("ranks", [(3,), (2, 3)])
def test_a_tensor_of_another_rank_is_refused(ranks: tuple[int, ...]) -> None:
    """A layer that takes ranks 2 and 3 does not read a map of rank 4, nor a 2-d conv a vector."""
    with pytest.raises(NotFusable, match="expected a tensor of rank"):
        regroup.known_rank(source(torch.zeros(1, 2, 3, 4)), ranks)
    with pytest.raises(NotFusable, match="needs 3 dimensions"):
        build.conv(source(torch.zeros(4, 4)), torch.zeros(4, 4, 1, 1))


def test_a_dimension_of_another_size_is_refused() -> None:
    """A weight for 4 channels does not read 6."""
    with pytest.raises(NotFusable, match=r"sizes .* meet"):
        build.conv(source(torch.zeros(1, 6, 3, 3)), torch.zeros(4, 4, 1, 1))
    with pytest.raises(NotFusable, match=r"sizes .* meet"):
        build.scale(source(torch.zeros(1, 6, 3, 3)), torch.ones(4))
