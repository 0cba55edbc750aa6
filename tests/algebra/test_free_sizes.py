"""Decisions taken on free sizes hold for every size; where none can, the refusal says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn

from reparamkit.algebra.form import Form, source_form
from reparamkit.algebra.size import Size, fixed, free_size
from reparamkit.errors import GuardError, NotFusable

from . import pairs
from .oracle import evaluate, guards_hold, has_room, written
from .pairs import IDENTITY, Layer, accepts, assert_equal
from .strategies import BROAD, Shape, chains, convs, pads, pools, scales, shape_after, shapes, some, tensors


@st.composite
def sizes_like(draw: DrawFn, shape: Shape) -> tuple[Size, ...]:
    """Each size a number, or free, with or without an example."""
    found = []
    for d, n in enumerate(shape, start=-len(shape)):
        hint = draw(st.sampled_from((None, n)))
        found.append(draw(st.sampled_from((fixed(n), free_size("x", d, hint)))))
    return tuple(found)


@st.composite
def tensors_like(draw: DrawFn, shape: Shape, sizes: tuple[Size, ...]) -> torch.Tensor:
    """A tensor of other sizes where they are free: odd ones, smaller than the windows."""
    drawn = (n if size.known else draw(st.just(n) | st.integers(1, 9)) for n, size in zip(shape, sizes, strict=True))
    return draw(tensors(*drawn))


@BROAD
@given(data=st.data(), shape=shapes(1, largest=7) | shapes(2, largest=7))
def test_what_is_merged_on_free_sizes_is_right_at_every_size(data: DataObject, shape: Shape) -> None:
    """Rows and sums, pinned or not, equal the layers wherever the guards hold and torch takes the size."""
    layer = data.draw(chains(shape, data.draw(st.integers(1, 3))))
    other = data.draw(chains(shape, data.draw(st.integers(1, 2))))
    if shape_after(layer, shape) == shape_after(other, shape):
        layer += other
    sizes = data.draw(sizes_like(shape))
    try:
        form = layer.read(source_form("x", sizes))
    except NotFusable:
        return
    for _ in range(5):
        x = data.draw(tensors_like(shape, sizes))
        if guards_hold(form, x=x) and accepts(layer.run, x):
            assert_equal(evaluate(form, x=x), layer.run(x), exact=False)


@BROAD
@given(data=st.data(), shape=shapes(1, channels=(2, 4), largest=6) | shapes(2, channels=(2, 4), largest=6))
def test_a_merged_layer_accepts_no_size_that_the_layers_reject(data: DataObject, shape: Shape) -> None:
    """Whatever the map, batch and number of channels: what torch refuses, the written layer refuses.

    It may also refuse, in words, a map that is smaller than what zero padding changes at both of its ends.
    """
    kinds = st.one_of(convs(shape), pools(shape), pads(shape, len(shape) - 2), scales(shape))
    layer = data.draw(convs(shape)) if data.draw(st.booleans()) else data.draw(kinds)
    after = shape_after(layer, shape)
    layer >>= data.draw(st.one_of(convs(after), pools(after), scales(after)))
    free = source_form("x", tuple(free_size("x", d) for d in range(-len(shape), 0)))
    try:
        merged = written(form := layer.read(free))
    except NotFusable:
        return
    for _ in range(5):
        x = data.draw(tensors(*(data.draw(st.just(n) | st.integers(1, 7)) for n in shape)))
        if not accepts(layer.run, x):
            assert not accepts(merged, x)
        elif has_room(form, x=x) or _one_sided(form):
            assert_equal(merged(x), layer.run(x))
        else:
            with pytest.raises(GuardError, match="was fused for maps of at least"):
                merged(x)


def _one_sided(form: Form) -> bool:
    """Whether along each axis the bias is special at one end at most."""
    return form.bias is not None and not any(link.low and link.high for link in form.bias.links)


# --- refusals --------------------------------------------------------------------------------------------------


def on_free_map(*, traced: bool = False) -> Form:
    """A source (N, 4, h, w) of free batch and map."""
    n, h, w = (free_size("x", d, 6 if traced else None) for d in (-4, -2, -1))
    return source_form("x", (n, fixed(4), h, w))


def conv(k: int, padding: int, bias: bool = False, stride: int = 1) -> Layer:
    """A conv of 4 channels."""
    return pairs.conv(some(4, 4, k, k), some(4) if bias else None, stride, padding)


SHIFT = pairs.scale(torch.ones(4).double(), 1, torch.ones(4).double())
FLAT = pairs.joined([0], [1, 2, 3])

REFUSED: dict[str, tuple[Callable[[], Layer], str]] = {
    "padded window after padded window": (lambda: conv(3, 1) >> conv(3, 1), "reads past a border"),
    "bias before a strided window": (lambda: conv(1, 0, bias=True) >> conv(3, 1, stride=2), "a bias or shift before"),
    "shift before a strided window": (lambda: SHIFT >> conv(3, 1, stride=3), "a bias or shift before"),
    "shift before a strided pool": (lambda: SHIFT >> pairs.pool([3, 3], [2, 2], [1, 1]), "a bias or shift before"),
    "tensor beside its transpose": (lambda: IDENTITY + pairs.permute(0, 1, 3, 2), "pass example_inputs"),
    "channels beside positions": (lambda: IDENTITY + pairs.permute(0, 3, 1, 2), "pass example_inputs"),
    "windows of other strides": (lambda: conv(3, 1, stride=2) + conv(1, 0), "pass example_inputs"),
    "windows of other output sizes": (lambda: conv(3, 1) + conv(3, 0), "pass example_inputs"),
    "a conv beside a matrix over the map": (
        lambda: (conv(3, 1) >> FLAT) + (FLAT >> pairs.linear(some(144, 144))),
        "unknown: pass example_inputs",
    ),
    "a conv beside a broadcast average": (lambda: conv(3, 1) + pairs.mean([-2, -1], keepdim=True), "broadcast|unknown"),
    "a reshape that splits a free axis": (lambda: pairs.reshape(2, 4, 3, 2, 6), "regroups free sizes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_an_unknown_size_is_refused(name: str) -> None:
    """No merge of these holds for every size, and the reason says so."""
    layer, reason = REFUSED[name]
    with pytest.raises(NotFusable, match=reason):
        layer().read(on_free_map())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_on_free_sizes_is_exact_on_fixed_ones(name: str) -> None:
    """Only the free size was missing: on a map of 6 x 6 all of these but broadcasting are one operator."""
    layer, _ = REFUSED[name]
    made, x = layer(), some(2, 4, 6, 6)
    form = source_form("x", tuple(map(fixed, x.shape)))
    try:
        value = made.run(x)
    except RuntimeError:
        with pytest.raises(NotFusable):
            made.read(form)
        return
    if "broadcast" in name:
        with pytest.raises(NotFusable, match="broadcast"):
            made.read(form)
        return
    assert_equal(evaluate(made.read(form), x=x), value, exact=False)


def test_a_size_that_a_layer_fixes_needs_no_guard() -> None:
    """A batch norm of 4 channels rejects any other number itself: the free channels are pinned to 4."""
    x = source_form("x", tuple(free_size("x", d) for d in range(-4, 0)))
    row = SHIFT >> conv(3, 0, bias=True)
    form = row.read(x)
    assert not form.guards
    assert form.sizes[1] == fixed(4)
    for shape in [(2, 4, 5, 5), (0, 4, 3, 8)]:
        value = some(*shape)
        assert_equal(evaluate(form, x=value), row.run(value))


def test_a_size_that_would_broadcast_is_guarded() -> None:
    """A factor per position of a map of 6 x 6 is for such maps: torch would grow a map of 1 x 6."""
    factor = pairs.multiply(some(6, 6))
    form = factor.read(on_free_map(traced=True))
    x = some(3, 4, 6, 6)
    assert guards_hold(form, x=x)
    assert_equal(evaluate(form, x=x), factor.run(x))
    assert factor.run(some(3, 4, 1, 6)).shape == (3, 4, 6, 6)
    assert not guards_hold(form, x=some(3, 4, 1, 6))


def test_a_transpose_of_a_square_map_is_guarded_to_be_square() -> None:
    """x + transpose(x) is one matrix on the traced map, and for that map only."""
    turned = IDENTITY + pairs.permute(0, 1, 3, 2)
    form = turned.read(on_free_map(traced=True))
    x = some(2, 4, 6, 6)
    assert guards_hold(form, x=x)
    assert_equal(evaluate(form, x=x), turned.run(x))
    assert not guards_hold(form, x=some(2, 4, 5, 5))
