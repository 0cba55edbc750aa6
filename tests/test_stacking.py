"""Layers that read one value become one where the fewest launches are asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from structures import Model, build, conv, error, operations, run, sample
from torch import Tensor, nn

import reparamkit

X = sample((2, 5, 8), torch.float32)
MAP = sample((2, 4, 7, 9), torch.float32)


def pair(body: Callable[..., Tensor], a: nn.Module | None = None, b: nn.Module | None = None) -> nn.Module:
    """Two layers and a forward."""
    return build(lambda: Model(body, a=a or nn.Linear(8, 4), b=b or nn.Linear(8, 4)))


def of_one_value(model: nn.Module, x: Tensor) -> Tensor:
    return model.a(x).sigmoid() * model.b(x).tanh()


def test_other_objectives_leave_them():
    model = pair(of_one_value)
    assert operations(reparamkit.fuse(model, X), X) == operations(model, X)


@pytest.mark.parametrize("option", [{"without": ["stack_layers"]}, {"rules": ["chain", "parallel_sum"]}], ids=str)
def test_the_rule_can_be_switched_off(option: dict[str, list[str]]):
    model = pair(of_one_value)
    assert operations(reparamkit.fuse(model, X, objective="launches", **option), X) == operations(model, X)


def overwritten(model: nn.Module, x: Tensor) -> Tensor:
    a, b = model.a(x), model.b(x)
    a[:, 0] = 0
    return a.sigmoid() * b.tanh()


def of_another_value(model: nn.Module, x: Tensor) -> Tensor:
    return model.a(x).sigmoid() * model.b(x.relu()).tanh()


LEFT = {
    "a result that is written into": (lambda: pair(overwritten), X),
    "layers of two values": (lambda: pair(of_another_value), X),
    "convolutions of other sizes": (lambda: pair(of_one_value, conv(4, 6, 1), conv(4, 6, 3)), MAP),
    "depthwise convolutions": (lambda: pair(of_one_value, conv(4, 4, g=4), conv(4, 4, g=4)), MAP),
    "other strides": (lambda: pair(lambda m, x: m.a(x).mean() * m.b(x), conv(4, 4), conv(4, 4, s=2)), MAP),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_stacked_is_left(name: str):
    """And the model is as it was, bit for bit."""
    make, x = LEFT[name]
    model = make()
    fused = reparamkit.fuse(model, x, objective="launches")
    assert operations(fused, x) == operations(model, x)
    assert torch.equal(run(fused, x), run(model, x))


def test_a_hook_on_one_of_them_sees_what_it_saw():
    model, seen = pair(of_one_value), []
    model.a.register_forward_hook(lambda module, args, output: seen.append(output))
    fused = reparamkit.fuse(model, X, objective="launches")
    seen.clear()
    run(model, X), run(fused, X)
    assert torch.equal(*seen)


def test_the_stacked_layer_trains():
    """The parts of its result are views, into which the model does not write."""
    model = pair(of_one_value)
    fused = reparamkit.fuse(model, X, objective="launches").train()
    fused(X).sum().backward()
    model(X).sum().backward()
    stacked = torch.cat([model.a.weight.grad, model.b.weight.grad])
    (weight,) = (p for p in fused.parameters() if p.dim() == 2)
    assert error(weight.grad, stacked) <= 1e-6


def of_tokens(model: nn.Module, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    heads = model.b(x).unflatten(-1, (2, 2))
    return model.a(x).reshape(n, t, 2, 2).sigmoid() * heads.tanh()


def test_parts_of_what_was_stacked_have_the_rank_of_the_whole():
    """The code tells the rank, and what a split gives has none itself."""
    model = pair(of_tokens)
    fused = reparamkit.fuse(model, objective="launches")
    assert error(run(fused, X), run(model, X)) <= 1e-6
    assert "stack_layers" in {rule for merge in reparamkit.report(fused).merges for rule in merge.rules}
