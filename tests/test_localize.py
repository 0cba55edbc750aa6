"""A difference is located: in which module, and where in the tensor."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from structures import Model, Net, build, conv, conv_norm, repvgg, sample, seq
from torch import Tensor, nn

import reparamkit
from reparamkit import EquivalenceError
from reparamkit.compare import compare, place_of_error
from reparamkit.layers.norm import read_batch_norm_layer
from reparamkit.layers.registry import READERS

X = sample((2, 3, 12, 10), torch.float32)


def deep() -> nn.Module:
    return seq(conv_norm(3, 4), nn.ReLU(), repvgg(4), nn.ReLU(), seq(conv_norm(4, 4), nn.ReLU()), conv(4, 5))


@pytest.mark.parametrize("path", ["0.0", "2", "4.0.0", "5"])
def test_the_first_module_that_differs(path: str):
    """One channel of one layer is 1% off: that layer is named, not the ones behind it, nor merges that are right."""
    model = build(deep)
    fused = reparamkit.fuse(model, X)
    wrong = fused.get_submodule(path)
    wrong = next(m for m in wrong.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        wrong.weight[1] *= 1.01
    found = reparamkit.verify(fused, model, X)
    assert not found.passed
    assert found.first is not None
    assert found.first.startswith(path)
    assert f"the first module that differs is '{found.first}'" in str(found)


def test_one_of_two_branches():
    """The branch that is wrong is named although the other, which is right, comes after it."""
    model = build(
        lambda: Model(lambda m, x: m.a(x).relu() + m.b(x).relu(), a=conv_norm(3, 4), b=conv_norm(3, 4)),
    )
    fused = reparamkit.fuse(model, X)
    with torch.no_grad():
        next(m for m in fused.a.modules() if isinstance(m, nn.Conv2d)).bias[0] += 1
    found = reparamkit.verify(fused, model, X)
    assert found.first is not None
    assert found.first.startswith("a")
    assert "only in channel 0" in found.where


def test_models_of_another_structure():
    """Without a common path nothing is named, and where the outputs differ is still said."""
    found = reparamkit.verify(build(lambda: seq(conv(3, 4))), build(Net), X)
    assert not found.passed
    assert found.first is None
    assert "its shape is" in found.where


def test_equal_models_have_no_place():
    net = build(Net)
    found = reparamkit.verify(copy.deepcopy(net), net, X)
    assert (found.error, found.where, found.first) == (0.0, "", None)


def _channel(x: Tensor) -> None:
    x[:, 2] += 1


def _border(x: Tensor) -> None:
    x[..., 0, :] += 1
    x[..., -1] += 1


def _sample(x: Tensor) -> None:
    x[1] += 1


def _pixel(x: Tensor) -> None:
    x[:, :, 2, 3] = math.nan


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        (_channel, "40 of 160 numbers differ, only in channel 2", "border"),
        (_border, "only at the border", "channel"),
        (_sample, "only at 1 of dimension 0", "border"),
        (_pixel, "8 of 160 numbers differ, only at 2 of dimension 2, only at 3 of dimension 3", "border"),
    ],
)
def test_the_place_of_an_error_is_told(change: Callable[[Tensor], None], said: str, not_said: str):
    wanted = torch.rand(2, 4, 4, 5) + 1
    found = wanted.clone()
    change(found)
    place = place_of_error(found, wanted, 1e-6)
    assert said in place
    assert not_said not in place
    assert compare([wanted, found], [wanted, wanted]).where == f"output 1: {place}"


class Wrong(nn.BatchNorm2d):
    """A norm whose reader is wrong in one channel."""


def test_a_wrong_merge_can_be_reproduced():
    """The error names the site, the rules, the place, and the inputs; `only` and `rules` of its text give it again."""
    model = build(lambda: seq(conv_norm(3, 4), nn.ReLU(), conv(4, 4), Wrong(4)))
    with READERS.restored():

        @reparamkit.reader(Wrong)
        def _wrong(layer: nn.Module, input: reparamkit.Form) -> reparamkit.Form:
            return reparamkit.scale(read_batch_norm_layer(layer, input), torch.tensor([1.0, 1.0, 1.01, 1.0]))

        with pytest.raises(EquivalenceError) as found:
            reparamkit.fuse(model, X)
        text = str(found.value)
        assert "only in channel 2" in text
        assert "(rules=['chain'], only=['2', '3'])" in text
        assert "of shapes [(" in text
        with pytest.raises(EquivalenceError):
            reparamkit.fuse(model, X, rules=["chain"], only=["2", "3"])
        assert reparamkit.report(reparamkit.fuse(model, X, skip=["3"])).merges
