"""Code that says in other words what merges, merges; sizes that were not seen are right or refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from structures import Model, Shape, build, conv, conv_norm, error, norm, operations, run, sample, seq, wide
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import GuardError

MAP: Shape = (2, 4, 8, 10)
WAYS = pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])


def check(make: Callable[[], nn.Module], left: str, with_inputs: bool, *shapes: Shape) -> None:
    """What is left of a model in float64, and that it gives the same at all shapes, the first of which is the example;
    or refuses one.
    """
    model, x = build(make, torch.float64), sample(shapes[0])
    fused = reparamkit.fuse(model, x if with_inputs else None)
    assert operations(fused, x) == left
    for shape in shapes:
        with suppress(GuardError):
            assert error(run(fused, sample(shape)), run(wide(model), sample(shape))) <= 1e-12
    assert reparamkit.report(reparamkit.fuse(fused, x if with_inputs else None)).merges == ()


# --- what writes into a tensor and gives it is that tensor ---------------------------------------------


def _operators_and_methods(m: Any, x: Tensor) -> Tensor:
    y = same = m.a(x)
    y *= m.g
    y.add_(x).div_(2)
    return same


def _layer(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    m.relu(y)
    return m.b(y)


def _function(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    F.relu(y, inplace=True)
    return m.b(y)


def _numbers(m: Any, x: Tensor) -> Tensor:
    rows = count = x.shape[0]
    count += 1
    return m.a(x) * (count / (rows + 1))


@WAYS
@pytest.mark.parametrize(
    ("body", "left"), [(_layer, "conv relu conv"), (_function, "conv relu conv"), (_numbers, "conv mul")]
)
def test_a_tensor_that_is_written_into_has_one_name(body: Any, left: str, with_inputs: bool):
    """By whatever name it is read afterwards; numbers, which are not written into, keep theirs."""
    check(lambda: Model(body, a=conv_norm(4, 4), b=conv_norm(4, 4), relu=nn.ReLU(True)), left, with_inputs, MAP)


def test_operators_that_write_in_place_merge_as_the_plain_ones_do():
    check(
        lambda: Model(_operators_and_methods, a=conv_norm(4, 4), g=nn.Parameter(torch.rand(4, 1, 1))),
        "conv",
        True,
        MAP,
        (1, 4, 5, 7),
    )


# --- sizes ------------------------------------------------------------------------------------------


def test_a_size_that_a_later_layer_fixes():
    """``c`` is read before the layer that takes no other number, and is that number behind it."""

    def body(m: Any, x: Tensor) -> Tensor:
        b, n, c = x.shape
        parts = m.a(x).view(b, n, 3, c)
        return parts[:, :, 0] * 0.25 * parts[:, :, 1] + parts[:, :, 2]

    made = reparamkit.explain(build(lambda: Model(body, a=nn.Linear(8, 24))), sample((2, 5, 8), torch.float32))
    assert not any("regroups free sizes" in refusal.reason for refusal in made.refusals)


def test_a_number_of_parts_that_is_left_open():
    """(n, 6, 4) -> (n, 2, 12): any multiple of 3 may come, where the code takes no other."""

    def body(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).view(x.size(0), -1, 12))

    def make() -> nn.Module:
        return Model(body, a=nn.Linear(4, 4), b=nn.Linear(12, 5))

    check(make, "linear", True, (2, 6, 4), (1, 6, 4), (3, 9, 4))
    with pytest.raises((GuardError, RuntimeError)):
        run(reparamkit.fuse(build(make, torch.float64), sample((2, 6, 4))), sample((3, 7, 4)))


@WAYS
def test_a_layer_that_pads_with_the_constant_0_is_one_of_zero_padding(with_inputs: bool):
    check(
        lambda: Model(lambda m, x: x + m.b(m.a(x)), a=nn.ConstantPad1d((4, 0), 0.0), b=nn.Conv1d(4, 4, 3, dilation=2)),
        "pad conv",
        with_inputs,
        (2, 4, 9),
        (1, 4, 16),
    )


def test_a_layer_that_pads_with_another_constant_stays():
    check(lambda: seq(nn.ConstantPad2d(1, 0.5), conv(4, 4, p=0), norm(4)), "pad conv", True, MAP)


# --- parts ------------------------------------------------------------------------------------------


def _unbound(m: Any, x: Tensor) -> Tensor:
    u, v = m.a(x).view(*x.shape[:2], 2, 8).unbind(2)
    return u + v * m.g


def _unbound_in_front(m: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    return sum(torch.unbind(m.a(x).reshape(b, n, 2, c).permute(2, 0, 1, 3)))  # type: ignore[return-value]


def _selected(m: Any, x: Tensor) -> Tensor:
    parts = m.a(x).unflatten(-1, (2, 8))
    return torch.select(parts, -2, 0) - parts.select(2, -1)


@pytest.mark.parametrize("body", [_unbound, _unbound_in_front, _selected])
def test_parts_that_lose_their_dimension(body: Any):
    """As those of q, k and v, of one layer each."""
    check(lambda: Model(body, a=nn.Linear(8, 16), g=nn.Parameter(torch.rand(8))), "linear", True, (2, 5, 8), (1, 7, 8))


def test_elements_of_a_free_dimension_stay():
    """There must be two rows, which no layer knows."""

    def body(m: Any, x: Tensor) -> Tensor:
        u, v = m.a(x).unbind(1)
        return m.b(u) + v

    check(lambda: Model(body, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), "linear linear add", True, (3, 2, 8), (1, 2, 8))


# --- numbers ----------------------------------------------------------------------------------------


def _ended(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b((y / m.g if m.divide else m.n(y)).relu())


@WAYS
@pytest.mark.parametrize("divide", [True, False], ids=["by zero", "by no variance"])
def test_what_is_not_finite_stays(divide: bool, with_inputs: bool):
    """A weight that is infinite is none that could be merged; the other layers are."""
    model = build(
        lambda: Model(_ended, a=conv(4, 4), n=norm(4), g=nn.Parameter(torch.ones(4, 1, 1)), b=conv_norm(4, 4))
    )
    model.divide = divide
    model.g.data[2], model.n.running_var[1], model.n.eps = 0, 0, 0
    x = sample(MAP, torch.float32)
    fused = reparamkit.fuse(model, x if with_inputs else None)
    assert operations(fused, x) == ("conv div relu conv" if divide else "conv norm relu conv")
    assert torch.equal(run(fused, x).isfinite(), run(model, x).isfinite())
    assert any("not finite" in refusal.reason for refusal in reparamkit.report(fused).refusals)


# --- which merges -----------------------------------------------------------------------------------


@WAYS
def test_a_value_that_two_merges_begin_from_is_merged_for_both(with_inputs: bool):
    """The second pair could take in the first norm, which the output would need once more."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return y.sigmoid() + m.b(y).tanh()

    check(lambda: Model(body, a=conv_norm(4, 4), b=conv_norm(4, 4, 1)), "conv sigmoid conv tanh add", with_inputs, MAP)
