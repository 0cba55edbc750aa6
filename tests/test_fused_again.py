"""What is fused leaves nothing to a second fuse: the first knows what will be gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from structures import Model, Shape, Sum, build, conv, error, norm, operations, run, sample, seq
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit.testing import randomize

SHAPE, THIN = (2, 4, 8, 10), (2, 1, 5, 6)


class Masked(nn.Module):
    """Keeps what a mask says."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.mask > 0)


class Difference(nn.Module):
    """Computes for nothing."""

    def forward(self, x: Tensor, y: Tensor) -> None:
        x - y


class Wide(nn.Module):
    """A layer and its norm, for wide maps."""

    def __init__(self) -> None:
        super().__init__()
        self.row = seq(conv(1, 1, 1), norm(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.row(x) if x.shape[-1] > 3 else x


class Second(nn.Module):
    """Normalises what it gets first, and does nothing that is needed with what it gets second."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.unread = norm(4), conv(4, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.unread(y)
        return self.n(x) + x


class Unused(nn.Module):
    """Calls a layer for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.layer = norm(4), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n(x)
        self.layer(x)
        return x


class Counter(nn.Module):
    """Counts its calls, so that its code stays."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.row = seq(*layers)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.row(x)


class InPlace(nn.ModuleList):
    """Branches side by side, added in place."""

    def forward(self, x: Tensor) -> Tensor:
        total = self[0](x)
        for branch in list(self)[1:]:
            total += branch(x)
        return total


def tied() -> nn.Module:
    """The weight of a layer is that of one which is called for nothing."""
    model = Model(lambda m, x: m.last(m.unused(m.a(x)).relu() * 2), a=conv(4, 4), unused=Unused(), last=conv(4, 4, 1))
    model.last.weight = model.unused.layer.weight
    return model


def unread_block(m: Any, x: Tensor) -> Tensor:
    x = m.n(x)
    F.relu(m.masked(m.a(x)))
    return m.b(x)


def unread_cat(m: Any, x: Tensor) -> Tensor:
    x = m.r(x)
    x = m.n(m.a(x)) + m.m(m.b(x)) + x
    m.last(torch.cat([m.c(x), m.d(x), x], 1))
    return x * 0.5


def given_for_nothing(m: Any, x: Tensor) -> Tensor:
    x = m.n(x)
    y = m.a(x)
    m.difference(y, m.row(y))
    return x


def given_second(m: Any, x: Tensor) -> Tensor:
    y = m.b(x)
    return m.second(m.a(x), y) + m.c(y).relu()


def shifted_tokens(m: Any, x: Tensor) -> Tensor:
    x = m.a(x) + m.b(x) + x
    return F.linear(x.flatten(2), m.weight) - (m.n.weight / (m.n.running_var + 0.1).sqrt())[..., None]


def divided_for_nothing(m: Any, x: Tensor) -> Tensor:
    y = m.a(x) * torch.sigmoid(m.g.weight) + x
    y / float(y.shape[-1])
    return m.b(y) + y


def written_for_nothing(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] += m.a(x.split([2, 2], 1)[0])
    z = torch.zeros_like(y)
    z[:, :2] = m.b(y[:, :2])
    z[:, 2:] = m.c(y[:, 2:]) + y[:, 2:]
    return y


def low_rank(m: Any, x: Tensor) -> Tensor:
    x = x + m.gamma * m.pool(m.a(x))
    return m.base(x) + m.up(m.down(x))


def stacked(m: Any, x: Tensor) -> Tensor:
    x = -x[:, :, None]
    return torch.stack([m.a(x), m.b(x)]).mean(0)


MODELS: dict[str, tuple[Callable[[], nn.Module], Shape | None]] = {
    "a block for nothing": (
        lambda: Model(unread_block, n=nn.GroupNorm(1, 4), a=conv(4, 4, p=3), masked=Masked(), b=conv(4, 4, 1)),
        SHAPE,
    ),
    "a concatenation for nothing": (
        lambda: Model(
            unread_cat,
            r=nn.Conv2d(4, 16, 3, 2, 1, groups=4, padding_mode="reflect"),
            **{name: conv(16, 16, 1) for name in "abd"},
            **{name: norm(16) for name in "nm"},
            c=conv(16, 16, 5),
            last=conv(48, 6, 1),
        ),
        None,
    ),
    "a call that makes nothing": (
        lambda: Model(given_for_nothing, n=norm(1), a=conv(1, 1, p=0), row=Wide(), difference=Difference()),
        THIN,
    ),
    "an argument that nobody needs": (
        lambda: Model(given_second, a=conv(4, 4), b=conv(4, 4), c=conv(4, 4, 1), second=Second()),
        SHAPE,
    ),
    "a tied weight that is called for nothing": (tied, SHAPE),
    "a shift along a dimension that a layer does not see": (
        lambda: Model(
            shifted_tokens, a=conv(4, 4), b=conv(4, 4, 1, g=4), weight=nn.Parameter(torch.rand(80, 80)), n=norm(4)
        ),
        None,
    ),
    "a guard in code that went into the code around": (
        lambda: seq(
            nn.Conv1d(1, 8, 3),
            Sum(
                [
                    seq(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)),
                    seq(nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 5, dilation=2, padding=4), nn.BatchNorm1d(8)),
                ]
            ),
        ),
        (2, 1, 8),
    ),
    "a sum in code that went into the code around": (
        lambda: seq(
            nn.Softmax(-1),
            norm(16),
            Sum(
                [
                    seq(conv(16, 16, 5, g=4), norm(16)),
                    conv(16, 16, 1, g=2),
                    seq(norm(16), nn.ReLU()),
                    nn.Identity(),
                ]
            ),
        ),
        (2, 16, 5, 5),
    ),
    "a value for nothing that reads a size": (
        lambda: Model(divided_for_nothing, a=conv(4, 4), g=nn.PReLU(), b=seq(conv(4, 4, bias=False), norm(4))),
        (2, 4, 9, 6),
    ),
    "a tensor that is filled for nothing": (
        lambda: Model(written_for_nothing, a=conv(2, 2, 1), b=conv(2, 2, bias=False), c=conv(2, 2, 1, bias=False)),
        (2, 4, 3, 9),
    ),
    "a low-rank branch behind a sum that has several forms": (
        lambda: Model(
            low_rank,
            **{"a": seq(nn.Conv2d(4, 4, 3, dilation=2, padding=2), norm(4)), "gamma": nn.Parameter(torch.ones(()))},
            pool=nn.AvgPool2d(3, 1, 1),
            **{"base": nn.Linear(10, 10), "down": nn.Linear(10, 1, False), "up": nn.Linear(1, 10, False)},
        ),
        SHAPE,
    ),
    "maps whose rank the layers tell once a sign is gone": (
        lambda: Model(stacked, a=nn.Conv3d(4, 4, 1), b=nn.Conv3d(4, 4, 3, padding=1)),
        None,
    ),
    "a sum that is affine once a norm is gone": (
        lambda: InPlace([conv(4, 4, 1), seq(conv(4, 4), norm(4), nn.ReLU(inplace=True)), seq(conv(4, 4, 5), norm(4))]),
        None,
    ),
}


def folded_before(m: Any, x: Tensor) -> Tensor:
    return m.counter(F.conv2d(x, m.weight + m.weight.flip(0))).relu()


def split_after(m: Any, x: Tensor) -> Tensor:
    x, y = m.counter(x).split([2, 2], 1)
    return m.b(torch.cat([x, y * 2], 1))


def scaled_after(m: Any, x: Tensor) -> Tensor:
    return m.counter(m.a(x)) * m.scale


def summed_between(m: Any, x: Tensor) -> Tensor:
    return m.counter(m.a(x) + m.b(x)).relu()


BESIDE_CODE: dict[str, Callable[[], nn.Module]] = {
    "arithmetic on a weight before": lambda: Model(
        folded_before, weight=nn.Parameter(torch.rand(4, 4, 3, 3)), counter=Counter(conv(4, 4, 1), norm(4))
    ),
    "parts after": lambda: Model(split_after, counter=Counter(conv(4, 4, 1), norm(4)), b=conv(4, 4, 1, bias=False)),
    "a scale after": lambda: Model(
        scaled_after, a=conv(4, 4), counter=Counter(norm(4)), scale=nn.Parameter(torch.rand(4, 1, 1))
    ),
    "a sum before": lambda: Model(
        summed_between, a=conv(4, 4), b=conv(4, 4, 1), counter=Counter(conv(4, 4, 1), norm(4))
    ),
}


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"as_graph": True}], ids=["copy", "in place", "graph"])
@pytest.mark.parametrize("name", BESIDE_CODE)
def test_a_layer_in_code_that_stays_merges_with_one_in_code_that_is_written(name: str, options: dict[str, bool]):
    """The one is swapped, the other is left out where its code is written again; both codes run as before."""
    model, x = build(BESIDE_CODE[name]), sample(SHAPE, torch.float32)
    wanted = run(model, x)
    fused = reparamkit.fuse(model, x, **options)
    assert operations(fused, x).split().count("conv") == 1
    assert not reparamkit.report(reparamkit.fuse(fused, x)).merges
    calls = fused.get_buffer("counter.calls").clone()
    assert error(run(fused, x), wanted) <= 1e-6
    assert fused.get_buffer("counter.calls") == calls + 1


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_for_a_second_fuse(name: str):
    """What nobody reads keeps no merge from being made, if the code that makes it is written again."""
    make, shape = MODELS[name]
    model, x = build(make), sample(shape or SHAPE, torch.float32)
    example = x if shape else None
    fused = reparamkit.fuse(model, example)
    assert reparamkit.report(fused).merges
    assert not reparamkit.report(reparamkit.fuse(fused, example)).merges
    assert error(run(fused, x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("inplace", [False, True])
def test_what_merges_only_in_code_that_was_written_is_reported_with_the_rest(inplace: bool):
    """Every layer that a merge names is in the model, none is said to be left, and other weights can be converted."""
    model, x = build(MODELS["a value for nothing that reads a size"][0]), sample((2, 4, 9, 6), torch.float32)
    other = randomize(build(MODELS["a value for nothing that reads a size"][0]), 1)
    wanted, weights = [run(each, x) for each in (model, other)], other.state_dict()
    fused = reparamkit.fuse(model, x, inplace=inplace)
    report, layers = reparamkit.report(fused), dict(fused.named_modules())
    assert {merge.path for merge in report.merges} <= {*layers, "(merged further)"}
    assert "a" in report.merges[-1].members
    assert "a" not in {refusal.path for refusal in report.refusals}
    assert report.after.stored == sum(t.numel() for t in fused.state_dict().values())
    assert error(run(fused, x), wanted[0]) <= 1e-6
    fused.load_state_dict(reparamkit.convert_state_dict(fused, weights))
    assert error(run(fused, x), wanted[1]) <= 1e-6
