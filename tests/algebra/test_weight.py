"""Lazy weights: computed into fresh tensors, and the direct form of Locality Injection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from reparamkit.algebra.operator import Operator, Role
from reparamkit.algebra.relink import densify
from reparamkit.algebra.weight import Computed, Diagonals, Sum, leaf

from . import pairs
from .oracle import apply_operator, source
from .pairs import assert_equal
from .strategies import axes, layers, shapes, some, tensors


def convolved_identity(kernel: torch.Tensor, n: int, stride: int, pads: tuple[int, int], dilation: int) -> torch.Tensor:
    """The matrix (n, n_out) of a 1-d convolution, by convolving the unit vectors."""
    unit = F.pad(torch.eye(n, dtype=torch.float64)[:, None], pads)
    return F.conv1d(unit, kernel[None, None], None, stride, 0, dilation)[:, 0]


@given(data=st.data(), n=st.integers(1, 8))
def test_taps_on_diagonals_are_a_convolved_identity(data: DataObject, n: int) -> None:
    """Writing each tap onto its diagonal is convolving an identity batch, bit for bit; only adding to what is there."""
    k, stride, dilation, pads = data.draw(axes(n))
    kernel = data.draw(tensors(k))
    expected = convolved_identity(kernel, n, stride, pads, dilation)
    taps = tuple(dilation * j - pads[0] for j in range(k))
    written = Diagonals(leaf(kernel), 0, False, 0, 1, tuple(expected.shape), taps, stride)
    assert_equal(written.tensor(), expected)
    before = data.draw(tensors(*expected.shape))
    buffer = before.clone()
    written.add_to(buffer)
    assert_equal(buffer, before + expected)
    turned = before.t().clone().t()
    written.add_to(turned)
    assert_equal(turned, before + expected)


@given(data=st.data(), shape=shapes(largest=4))
def test_a_dense_form_is_the_same_map(data: DataObject, shape: tuple[int, ...]) -> None:
    """Any axis of any operator can be written as a matrix."""
    x = data.draw(tensors(*shape))
    op = data.draw(layers(shape)).read(source(x)).sample
    value = apply_operator(op, x)
    while places := [n for n, link in enumerate(op.links) if link.role not in (Role.IN, Role.OUT)]:
        op = densify(op, data.draw(st.sampled_from(places)))
        assert_equal(apply_operator(op, x), value)
    assert op.stored == x.numel() * value.numel()


@given(data=st.data(), shape=shapes(largest=3))
def test_a_sum_of_weights_lines_up_their_legs(data: DataObject, shape: tuple[int, ...]) -> None:
    """``first + second`` with the legs of the second permuted, whichever of the two is written on diagonals."""
    order = data.draw(st.permutations(range(4)))
    a, b = data.draw(tensors(*(shape[d] for d in order))), data.draw(tensors(*shape))
    assert_equal(Sum(leaf(a), leaf(b), tuple(order)).tensor(), a + b.permute(order))
    n = data.draw(st.integers(1, 4))
    full, kernel = data.draw(tensors(n, n)), data.draw(tensors(3))
    taps = Diagonals(leaf(kernel), 0, False, 0, 1, (n, n), (-1, 0, 1), 1)
    turned = Diagonals(leaf(kernel), 0, False, 1, 0, (n, n), (-1, 0, 1), 1)
    matrix = convolved_identity(kernel, n, 1, (1, 1), 1)
    assert_equal(Sum(leaf(full), taps, (0, 1)).tensor(), full + matrix)
    assert_equal(Sum(leaf(full), taps, (1, 0)).tensor(), full + matrix.t())
    assert_equal(Sum(taps, leaf(full), (1, 0)).tensor(), full.t() + matrix)
    assert_equal(Sum(taps, turned, (1, 0)).tensor(), matrix + matrix)


def test_weights_are_read_late_in_float64_and_never_shared() -> None:
    """A leaf sees the numbers of the moment; what it returns may be written into."""
    kernel = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    weight = leaf(kernel, (3, 2))
    with torch.no_grad():
        kernel.mul_(2)
    found = weight.tensor()
    assert found.dtype == torch.float64
    assert found.shape == (3, 2)
    assert not found.requires_grad
    assert (found == 2).all()
    found.zero_()
    assert (weight.tensor() == 2).all()


def test_no_number_is_computed_before_a_layer_is_written() -> None:
    """Rows, sums, views and matrices are decided on structure alone."""

    def untouched(op: Operator) -> Operator:
        def fail() -> torch.Tensor:
            raise AssertionError("a weight was computed")

        return Operator(op.links, op.source, op.value, Computed(fail))

    x = source(torch.zeros(2, 4, 5, 5))
    local = pairs.conv(some(4, 1, 3, 3), some(4), 1, 1, groups=4).read(x).mapped(untouched)
    full = pairs.reshape(2, 100) >> pairs.linear(some(100, 100)) >> pairs.reshape(2, 4, 5, 5)
    merged = pairs.conv(some(4, 4, 3, 3), some(4), 2, 1).read(local + full.read(x).mapped(untouched))
    assert merged.sample.stored == 100 * 4 * 3 * 3
