"""A scale of a part is absorbed by the layer that makes the whole, or stays where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from structures import Model, build, error, operations, run, sample, wide
from torch import Tensor, nn

import reparamkit

X = sample((2, 5, 8), torch.float64)


def of_queries(model: nn.Module, x: Tensor) -> Tensor:
    y = model.qk(x)
    return (y[..., :4] * model.scale).sigmoid() * y[..., 4:].tanh()


def scaled(*shape: int) -> nn.Module:
    """Queries and keys of one layer; the queries are scaled."""
    parts = {"qk": nn.Linear(8, 8), "scale": nn.Parameter(torch.ones(shape))}
    return build(lambda: Model(of_queries, **parts), torch.float64)


@pytest.mark.parametrize(
    "option", [{}, {"inplace": True}, {"as_graph": True}, {"verify": False}, {"objective": "launches"}], ids=str
)
def test_the_layer_before_absorbs_it(option: dict[str, Any]):
    model, reference = scaled(4), wide(scaled(4))
    reference.load_state_dict(model.state_dict())
    fused = reparamkit.fuse(model, X, **option)
    assert operations(fused, X) == "linear sigmoid tanh mul"
    assert error(run(fused, X), run(reference, X)) < 1e-12


@pytest.mark.parametrize("option", [{}, {"inplace": True}, {"as_graph": True}], ids=str)
def test_a_scale_that_nothing_absorbs_stays_where_it_is(option: dict[str, Any]):
    """No code is written again, no operation is moved: a number per token is none of the layer's."""
    model = scaled(5, 1)
    want = run(model, X)
    fused = reparamkit.fuse(model, X, **option)
    assert operations(fused, X) == "linear mul sigmoid tanh mul"
    assert torch.equal(run(fused, X), want)
    if not option:
        assert type(fused).forward is type(model).forward


def test_other_weights_get_the_same_scale():
    """The recipe of the merged layer knows where its numbers are from."""
    fused, other = reparamkit.fuse(scaled(4), X), scaled(4)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3).add_(1)
    fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()))
    assert error(run(fused, X), run(other, X)) < 1e-12


def test_a_wrong_scale_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """That the scale of the whole is the scale of the part is proved by running both."""
    monkeypatch.setattr("reparamkit.engine.raising.broadcast", lambda op: torch.full((4,), 1.01, dtype=torch.float64))
    with pytest.raises(reparamkit.EquivalenceError):
        reparamkit.fuse(scaled(4))


def test_it_can_be_skipped():
    assert operations(reparamkit.fuse(scaled(4), X, skip="qk"), X) == operations(scaled(4), X)
