"""Layers whose weight is computed in each call (torch.nn.utils.parametrize)."""

from __future__ import annotations

import pytest
import torch
from structures import build, conv, error, norm, operations, run, sample, seq
from torch import Tensor, nn
from torch.nn.utils import parametrize

import reparamkit

X = sample((2, 4, 8, 8), torch.float32)


class LowRank(nn.Module):
    """Adds a product of parameters of its own."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rows, 2)), nn.Parameter(torch.randn(2, columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.a @ self.b).reshape(weight.shape)


class Dropped(nn.Module):
    """Leaves out connections at random, in eval mode as well."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (torch.rand_like(weight) > 0.5)


def parametrized(made: nn.Module) -> nn.Module:
    layer = conv(4, 4)
    parametrize.register_parametrization(layer, "weight", made)
    return seq(layer, norm(4))


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_parametrization_with_parameters_is_folded(with_inputs: bool):
    """Its code reads them in a run, which no trace has seen; nobody else does."""
    model = build(lambda: parametrized(LowRank(4, 36)))
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert operations(fused, X) == "conv"
    assert error(run(fused, X), run(model, X)) <= 1e-5


def test_a_weight_that_is_drawn_is_not_folded():
    """One draw would stand for all calls; and drawing leaves no trace in the random state."""
    model = build(lambda: parametrized(Dropped()))
    before = torch.get_rng_state()
    fused = reparamkit.fuse(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not reparamkit.report(fused).merges
    assert "random numbers" in reparamkit.report(fused).refusals[-1].reason
    torch.manual_seed(0)
    wanted = run(model, X)
    torch.manual_seed(0)
    assert error(run(fused, X), wanted) <= 1e-6


class Branch(nn.Module):
    """Computes a weight; never sees an input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.rand(4, 4, 3, 3)), nn.Parameter(torch.rand(4))

    def forward(self) -> Tensor:
        return torch.einsum("oihw,o->oihw", self.weight, self.scale)


class Online(nn.Module):
    """A convolution with the weight of a module, a norm and a skip, as a block of OREPA is."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.point = Branch(), nn.Parameter(torch.rand(4, 4, 1, 1))
        self.norm, self.skip = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.branch() + nn.functional.pad(self.point, (1, 1, 1, 1))
        return torch.relu(self.norm(nn.functional.conv2d(x, weight, padding=1)) + self.skip(x))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_module_that_computes_the_weight_of_a_merged_layer_is_not_called(with_inputs: bool, inplace: bool):
    """Nothing reads what it gives any more, and its parameters go."""
    model = build(lambda: seq(Online(), Online()))
    wanted = run(model, X)
    fused = reparamkit.fuse(model, X if with_inputs else None, inplace=inplace)
    assert operations(fused, X) == "conv relu conv relu"
    assert [name for name, _ in fused.named_parameters() if "branch" in name] == []
    assert error(run(fused, X), wanted) <= 1e-5
