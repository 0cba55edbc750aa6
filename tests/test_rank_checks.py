"""Code that checks how many dimensions a tensor has: what it lets through needs no example to tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rank_checks import CHECKS, looks_among_two
from structures import Model, build, conv, error, operations, run, sample
from structures.blocks import parameter
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import GuardError

MAPS = (2, 4, 6, 6)


class Checked(nn.BatchNorm2d):
    """A batch norm of its own code, as timm's, which checks its input by `check`."""

    check: Callable[[Tensor], None]

    def forward(self, input: Tensor) -> Tensor:
        type(self).check(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Stem(nn.Module):
    """A net with a method for all but its last layer."""

    def __init__(self, check: Callable[[Tensor], None]) -> None:
        super().__init__()
        checked = type("Checked", (Checked,), {"check": staticmethod(check)})
        self.conv, self.norm, self.last = conv(4, 4), checked(4), conv(4, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.forward_features(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("check", CHECKS)
def test_a_norm_that_checks_the_rank_of_its_input_merges_as_those_of_torch(check: Callable[[Tensor], None]):
    """The check says what no example has to, and the model's own methods go on."""
    net, x = build(lambda: Stem(check)), sample(MAPS, torch.float32)
    fused = reparamkit.fuse(net)
    assert operations(fused, x) == "conv relu conv"
    with torch.no_grad():
        assert error(fused(x), net(x)) <= 1e-6
        assert error(fused.forward_features(x), net.forward_features(x)) <= 1e-6
    with pytest.raises((AssertionError, ValueError, ZeroDivisionError)) as own:
        net(x[0])
    with pytest.raises((GuardError, own.type)):
        fused(x[0])


def among(m: Any, x: Tensor) -> Tensor:
    looks_among_two(x)
    return m.conv(x) * m.scale  # type: ignore[no-any-return]


def test_code_that_takes_two_ranks_is_not_taken_for_the_first_of_them():
    """Looking for a number in a list asks for each of them by itself: no answer but the last says what code needs."""
    net = build(lambda: Model(among, conv=conv(4, 4), scale=parameter(4, 1, 1)))
    fused, x = reparamkit.fuse(net), sample(MAPS, torch.float32)
    assert operations(fused, x) == "conv"
    for each in (x, x[0]):
        assert error(run(fused, each), run(net, each)) <= 1e-6


def rescued(m: Any, x: Tensor) -> Tensor:
    try:
        torch._assert(x.dim() == 4, "a batch")
    except AssertionError:
        x = x[None]
    return F.batch_norm(m.conv(x), m.norm.running_mean, m.norm.running_var)


def test_a_check_whose_error_is_caught_tells_no_rank():
    """Code that goes on for other inputs too takes them: a fused model may refuse them, but gives no other numbers."""
    net = build(lambda: Model(rescued, conv=conv(4, 4), norm=nn.BatchNorm2d(4)))
    fused, x = reparamkit.fuse(net), sample(MAPS, torch.float32)
    assert error(run(fused, x), run(net, x)) <= 1e-6
    try:
        found = run(fused, x[0])
    except (GuardError, AssertionError):
        return
    assert error(found, run(net, x[0])) <= 1e-6
