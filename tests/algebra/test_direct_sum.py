"""Concatenation and split: parts of one axis, blocks of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import nn

from reparamkit.algebra import segments
from reparamkit.algebra.form import source_form
from reparamkit.algebra.operator import Link, Operator, Role
from reparamkit.algebra.relink import as_part, densify, widened
from reparamkit.algebra.size import fixed, free_size
from reparamkit.algebra.weight import leaf

from . import pairs
from .oracle import apply_operator, evaluate, written
from .pairs import assert_equal, assert_same
from .strategies import BROAD, chains, chunked, convs, shape_after, shapes, some, tensors


@BROAD
@given(data=st.data())
def test_layers_around_parts_are_one_operator(data: DataObject) -> None:
    """Layers, then parts with layers of their own, then layers: exact at every border."""
    shape = data.draw(shapes(data.draw(st.integers(1, 2)), largest=4))
    before = data.draw(chains(shape, 1))
    between = data.draw(chunked(shape_after(before, shape)))
    whole = before >> between >> data.draw(chains(shape_after(before >> between, shape), 1))
    assert_same(whole, data.draw(tensors(*shape)))


@given(data=st.data(), shape=shapes(channels=(2, 3, 4, 6)))
def test_a_part_of_a_concatenation_is_the_value_that_was_put_there(data: DataObject, shape: tuple[int, ...]) -> None:
    """Of ``cat(f(x), g(y))`` the first part reads x only, the second y only."""
    f, g = (data.draw(convs(shape)) for _ in range(2))
    x, y = (source_form(name, tuple(map(fixed, shape))) for name in "xy")
    dim = 1 - len(shape)
    made = [f.read(x), g.read(y)]
    if made[0].sizes[dim + 1 :] != made[1].sizes[dim + 1 :]:
        g = f
        made[1] = g.read(y)
    cut = made[0].sizes[dim].factor
    whole = segments.concatenated(made, dim)
    first, second = segments.cropped(whole, dim, 0, cut, 1), segments.cropped(whole, dim, cut, None, 1)
    values = {"x": data.draw(tensors(*shape)), "y": data.draw(tensors(*shape))}
    assert (set(first.terms), set(second.terms)) == ({"x"}, {"y"})
    assert_equal(evaluate(first, **values), f.run(values["x"]))
    assert_equal(evaluate(second, **values), g.run(values["y"]))
    found = segments.parts_of(whole)
    assert found is not None
    assert found[0] == dim
    assert [list(part.terms) for part in found[1]] == [["x"], ["y"]]
    for name, part, layer in zip("xy", found[1], (f, g), strict=True):
        assert_equal(evaluate(part, **{name: values[name]}), layer.run(values[name]))


@given(data=st.data(), shape=shapes(channels=(2, 3, 4, 6)))
def test_a_split_put_together_again_is_the_identity(data: DataObject, shape: tuple[int, ...]) -> None:
    """``cat(split(x)) = x``, as a view."""
    bounds = [0, data.draw(st.integers(1, shape[1] - 1)), shape[1]]
    dim = 1 - len(shape)
    whole = pairs.concatenated([pairs.cropped(dim, a, b, 1) for a, b in pairwise(bounds)], dim)
    assert_same(whole, data.draw(tensors(*shape)))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("count", [2, 3])
def test_equal_convolutions_on_equal_parts_are_one_with_groups(count: int, groups: int) -> None:
    """No zeros are stored: as many groups as parts, or as many as all parts have together."""
    c = 4
    sides = [pairs.cropped(-3, c * k, c * (k + 1), 1) for k in range(count)]
    branches = [side >> pairs.conv(some(c, c // groups, 3, 3), some(c), padding=1, groups=groups) for side in sides]
    layer = pairs.concatenated(branches, -3)
    form = assert_same(layer, some(2, c * count, 5, 4))
    made = written(form)
    assert isinstance(made, nn.Conv2d)
    assert (made.groups, made.weight.shape[1]) == (count * groups, c // groups)


def test_unequal_parts_are_one_matrix() -> None:
    """Blocks of other sizes are no groups: the zeros between them are stored, and priced."""
    layer = pairs.concatenated(
        [
            pairs.cropped(-3, 0, 2, 1) >> pairs.conv(some(2, 2, 1, 1)),
            pairs.cropped(-3, 2, 6, 1) >> pairs.conv(some(4, 4, 1, 1)),
        ],
        -3,
    )
    made = written(assert_same(layer, some(2, 6, 3, 4)))
    assert isinstance(made, nn.Conv2d)
    assert made.groups == 1


def test_parts_that_change_places_are_no_groups() -> None:
    """A block off the diagonal of the matrix."""
    sides = [pairs.cropped(-3, a, a + 2, 1) >> pairs.conv(some(2, 2, 1, 1)) for a in (2, 0)]
    made = written(assert_same(pairs.concatenated(sides, -3), some(2, 4, 3, 4)))
    assert isinstance(made, nn.Conv2d)
    assert made.groups == 1


def test_convolutions_of_one_value_are_stacked() -> None:
    """The union of their windows, as many outputs as they have together."""
    layer = pairs.concatenated(
        [pairs.conv(some(3, 4, 3, 3), some(3), padding=1), pairs.conv(some(2, 4, 1, 1))], -3
    ) >> pairs.scale(some(5), 1, some(5))
    made = written(assert_same(layer, some(2, 4, 5, 4)))
    assert isinstance(made, nn.Conv2d)
    assert (made.out_channels, made.kernel_size) == (5, (3, 3))


def test_a_free_size_is_pinned_to_that_of_the_example() -> None:
    """What stands where depends on the sizes, so they are guarded unless the call itself checks them."""
    free = source_form("x", tuple(free_size("x", d, n) for d, n in zip(range(-4, 0), (2, 3, 5, 4), strict=True)))
    assert {value for _, value in segments.concatenated([free, free], -3).guards} == {3}
    assert not segments.fixed_dim(free, -3, 3).guards


@BROAD
@given(before=st.integers(0, 3), behind=st.integers(0, 3), data=st.data())
def test_a_part_of_the_zeros_around_a_value_is_zeros(before: int, behind: int, data: DataObject) -> None:
    """Also one position of them, that a view leaves out, and behind that a layer."""
    start = data.draw(st.integers(0, before + behind + 1))
    stop = data.draw(st.integers(start + 1, before + behind + 2))
    part = pairs.linear(some(2, 3)) >> pairs.padded([(before, behind)]) >> pairs.cropped(-1, start, stop, 1)
    numbers = 4 * (stop - start)
    row = part >> pairs.reshape(2, numbers) >> pairs.linear(some(4, numbers), some(4))
    assert_same(row, some(2, 4, 3))


# --- structural changes: the same map, described with other links ---------------------------------------

PART = Link(Role.DIAGONAL, fixed(12), cut=(2, 4), pad=(4, 2))
SAME: dict[str, Callable[[Operator], Operator]] = {
    "dense": lambda op: densify(op, 0),
    "wider": lambda op: widened(op, 0, 1, 2),
    "as wide as can be": lambda op: widened(op, 0),
}


@pytest.mark.parametrize("change", SAME)
def test_a_part_is_the_same_map_after_a_structural_change(change: str) -> None:
    """Dense, or with zeros written out."""
    op = Operator((PART,), ((0,),), ((0,),), leaf(some(6)))
    x = some(12)
    assert_equal(apply_operator(SAME[change](op), x), apply_operator(op, x))


@given(shift=st.integers(-7, 7), c=st.integers(-6, 5))
def test_a_shift_is_a_part(shift: int, c: int) -> None:
    """A window of one tap moves an axis; what falls out is cut, what comes in is zero."""
    op = Operator((Link(Role.STENCIL, fixed(5), taps=(shift,), c=c),), ((0,),), ((0,),), leaf(some(1)))
    x = some(5)
    assert_equal(apply_operator(as_part(op, 0), x), apply_operator(op, x))
