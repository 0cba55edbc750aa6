"""A scale of a part is absorbed by the layer that makes the whole, or stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from structures import Model, build, conv, error, norm, operations, run, sample, wide
from torch import Tensor, nn
from torch.nn import functional as F

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


def normed(model: nn.Module, x: Tensor) -> Tensor:
    y = model.conv(x)
    return model.norm(y[:, :4]) * y[:, 4:].sigmoid()


@pytest.mark.parametrize("option", [{}, {"inplace": True}], ids=str)
def test_a_norm_of_a_part_leaves_the_model(option: dict[str, Any]):
    """It is named in the report, and nothing is left of it."""
    image = sample((2, 4, 6, 6), torch.float64)
    model = build(lambda: Model(normed, conv=conv(4, 8), norm=norm(4)), torch.float64)
    want = run(model, image)
    fused = reparamkit.fuse(model, image, **option)
    assert error(run(fused, image), want) < 1e-12
    assert {name.partition(".")[0] for name in fused.state_dict()} == {"conv"}
    assert [{*merge.members} for merge in reparamkit.report(fused).merges] == [{"conv", "norm"}]


def scores(model: nn.Module, x: Tensor) -> Tensor:
    return ((model.q(x) @ model.k(x).transpose(1, 2)) * model.scale).softmax(-1)


@pytest.mark.parametrize("option", [{}, {"inplace": True}, {"as_graph": True}, {"verify": False}], ids=str)
def test_a_scale_of_a_product_goes_to_a_factor(option: dict[str, Any]):
    parts = {"q": nn.Linear(8, 6), "k": nn.Linear(8, 6), "scale": nn.Parameter(torch.ones(1))}
    model = build(lambda: Model(scores, **parts), torch.float64)
    want, weights = run(model, X), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = reparamkit.fuse(model, X, **option)
    assert operations(fused, X) == "linear linear bmm _softmax"
    assert error(run(fused, X), want) < 1e-12
    if not option:
        assert {*reparamkit.report(fused).merges[0].members} == {"mul", "q"}
        fused.load_state_dict(reparamkit.convert_state_dict(fused, weights))
        assert error(run(fused, X), want) < 1e-12


def one_read(m: nn.Module, x: Tensor) -> Tensor:
    q, k = m.q(x), m.k(x)
    return ((q @ k.mT) * 0.5).tanh() + q.sum()


def both_read(m: nn.Module, x: Tensor) -> Tensor:
    q, k = m.q(x), m.k(x)
    return ((q @ k.mT) * 0.5).tanh() + q.sum() + k.sum()


@pytest.mark.parametrize(
    ("body", "left"),
    [(one_read, "linear linear bmm tanh sum add"), (both_read, "linear linear bmm mul tanh sum add sum add")],
)
def test_a_factor_that_is_read_elsewhere_keeps_its_numbers(body: Callable[[Any, Tensor], Tensor], left: str):
    """The other factor takes the scale; if both are read elsewhere, neither does."""
    model = build(lambda: Model(body, q=nn.Linear(8, 6), k=nn.Linear(8, 6)), torch.float64)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == left
    assert error(run(fused, X), run(model, X)) < 1e-12


def in_place(m: nn.Module, x: Tensor) -> Tensor:
    q, k = m.qk(x).chunk(2, -1)
    q = q * m.scale
    q += 1
    return q.sigmoid() * k


def viewed(m: nn.Module, x: Tensor) -> Tensor:
    q, k = m.qk(x).chunk(2, -1)
    return (q * m.scale).view(x.shape[0], -1).sigmoid() * k.sum((1, 2))[:, None]


@pytest.mark.parametrize("body", [in_place, viewed])
def test_what_is_written_into_or_viewed_stays_a_tensor_of_its_own(body: Callable[[Any, Tensor], Tensor]):
    """A part of another may neither be, if gradients are recorded or its numbers lie apart."""
    parts = {"qk": nn.Linear(8, 8), "scale": nn.Parameter(torch.ones(4))}
    model = build(lambda: Model(body, **parts), torch.float64)
    fused = reparamkit.fuse(model, X)
    with torch.enable_grad():
        assert error(fused(X), run(model, X)) < 1e-12


def test_without_sizes_the_report_counts_the_part():
    """It is as much less, in proportion, as with sizes."""
    known, unknown = (reparamkit.report(reparamkit.fuse(scaled(4), *given)) for given in ((X,), ()))
    ratios = [report.after.flops / report.before.flops for report in (known, unknown)]
    assert abs(ratios[0] - ratios[1]) < 1e-3


def of_many_steps(m: nn.Module, x: Tensor) -> Tensor:
    scale = m.scale
    for _ in range(40):
        scale = scale + scale.sigmoid()
    q, k = m.qk(x).chunk(2, -1)
    return (q * scale).sigmoid() * k.tanh()


def test_a_scale_that_many_steps_make():
    """Each step is looked at once, though the next one reads it twice."""
    model = build(lambda: Model(of_many_steps, qk=nn.Linear(8, 8), scale=nn.Parameter(torch.ones(4))), torch.float64)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "linear sigmoid tanh mul"
    assert error(run(fused, X), run(model, X)) < 1e-12


def rejoined(m: Any, x: Tensor) -> Tensor:
    x = m.mix(x.clamp(-1, 1).reshape(-1, 27)).reshape(-1, 4, 3, 9)
    a, b = x.split([2, 2], 1)
    y = torch.zeros_like(x)
    y[:, :2], y[:, 2:] = m.scale(a), b
    return F.conv2d(y, m.weight - m.weight.mean(1, keepdim=True), None, 1, 1)


@pytest.mark.parametrize("verify", [True, False])
def test_parts_that_are_joined_again_do_not_take_the_scale_of_one_along(verify: bool):
    """Of the whole, which the scale is raised to, nothing would be left to put it back behind."""
    parts = {"mix": nn.Linear(27, 27), "scale": conv(2, 2, 1, g=2), "weight": nn.Parameter(torch.rand(4, 4, 3, 3))}
    model, x = build(lambda: Model(rejoined, **parts), torch.float64), sample((2, 4, 3, 9), torch.float64)
    assert error(run(reparamkit.fuse(model, x, verify=verify), x), run(model, x)) < 1e-12


@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_value_that_is_returned_as_well_is_not_scaled_in_part(as_graph: bool, given: bool):
    """The end of the graph reads the whole, though nothing reads that."""

    def forward(m: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.layer(x)
        a, b = y.split([2, 2], 1)
        return torch.cat([a, b * 2], 1), y

    model, x = build(lambda: Model(forward, layer=conv(4, 4))), sample((2, 4, 6, 7), torch.float32)
    fused = reparamkit.fuse(model, x if given else None, as_graph=as_graph, verify=False)
    assert all(error(a, b) <= 1e-6 for a, b in zip(run(fused, x), run(model, x), strict=True))


def by_channels(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    q, k = m.qk(x).view(n, 2, c, h * w).unbind(1)
    return (q.mT @ k).div_(c**0.5).softmax(-1)  # type: ignore[no-any-return]


def test_a_size_that_code_computes_a_scale_of_is_the_one_that_layers_fix():
    """Without an example too, where the proof draws values of which only sizes are read."""
    model = build(lambda: Model(by_channels, qk=nn.Conv2d(4, 8, 1)), torch.float64)
    image = sample((2, 4, 3, 5), torch.float64)
    fused = reparamkit.fuse(model)
    assert operations(fused, image) == operations(model, image).replace("div_ ", "")
    assert error(run(fused, image), run(model, image)) < 1e-12
