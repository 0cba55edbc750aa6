"""Models that catch an unsound fuser: each must keep its outputs, and merge no more than is exact."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Any

import pytest
import torch
from structures import (
    MAPS,
    FrozenNorm,
    Model,
    Scalar,
    Shape,
    Sum,
    build,
    conv,
    conv_norm,
    depthwise,
    error,
    hooked,
    norm,
    operations,
    repvgg,
    run,
    sample,
    seq,
    wide,
)
from structures.blocks import parameter
from structures.near_misses import AlwaysTraining
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import reparamkit
from reparamkit import CaptureError

# Convolutions with even kernels say so when padding="same".
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@dataclass(frozen=True)
class Trap:
    """left: the operations that run afterwards; None where more than one answer is right."""

    number: int
    name: str
    make: Callable[[], nn.Module]
    left: str | None = None
    shapes: tuple[Shape, ...] = MAPS

    def __str__(self) -> str:
        return f"T{self.number}, {self.name}"


def two(body: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Two convolutions and two norms, called as `body` says."""
    return lambda: Model(body, a=conv(4, 4), b=conv(4, 4), n=norm(4), m=norm(4))


# --- models -----------------------------------------------------------------------------------------


def shared_scales(m: Any, x: Tensor) -> Tensor:
    small = m.n(m.a(F.avg_pool2d(x, 2)))
    return m.m(m.a(x)) + F.interpolate(small, size=x.shape[2:])


def part_before_a_write(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    part = y[:, :2]
    y.mul_(2)
    return m.n(torch.cat([part, y[:, 2:]], 1)) + m.b(x)


class Doubling(nn.Module):
    """Writes into what it is given."""

    def forward(self, x: Tensor) -> None:
        x.mul_(2)


class Caller(nn.Module):
    """Reads what a call has written into."""

    def __init__(self, layer: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.layer, self.doubled, self.after = layer, Doubling(), after

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.doubled(y)
        return self.after(y) + x


def relu_in_place_before_skip(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(F.relu(x, inplace=True)) + x


def relu_in_place_after_branch(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    y = m.n(x)
    return y + F.relu_(x)


def added_in_place_to_itself(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(x)
    x = x.add_(m.a(x))
    return m.n(x)


def written_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    rows = y.view(y.shape[0], 4, -1)
    rows += 1
    return m.n(y)


def written_before_it_is_read(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(x)
    x[:, :2] = torch.sigmoid(x[:, :2])
    return m.n(m.a(x))


def written_between(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(x)
    y = m.a(x)
    x[:, :2] = torch.sigmoid(x[:, :2])
    return m.n(y) + m.b(x)


def written_by_what_stays(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(x).transpose(1, -1)
    z = y.add_(1).transpose(1, -1)
    return m.n(z) * torch.sigmoid(z)


def written_between_two_readers(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(x)
    y = m.a(x)
    x[:, :2] = 1.0
    return y + m.b(x)


def swapped_names(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    a, b = b, a
    a += b
    return m.n(a) - b


def flat_and_back(m: Any, x: Tensor) -> Tensor:
    y = m.r(x).abs()
    y = m.fc(y.reshape(y.shape[0], -1)).reshape(y.shape)
    return y + m.c(y)


def channel_shuffle(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    n, c, h, w = y.shape
    return m.b(y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def same_padding_like_tensorflow(m: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    pad_h, pad_w = max((-(h // -2) - 1) * 2 + 3 - h, 0), max((-(w // -2) - 1) * 2 + 3 - w, 0)
    x = F.pad(x, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
    return m.n(F.conv2d(x, m.a.weight, m.a.bias, stride=2))


class Alpha(nn.Module):
    """A branch that a learned number switches off."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(4, 4), conv_norm(4, 4, 1)
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        if self.alpha:
            return self.dense(x) + self.alpha * self.point(x)
        return self.dense(x) + self.point(x)


class DropPath(nn.Module):
    """Stochastic depth: nothing at inference."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.rand(x.shape[0], 1, 1, 1)


class Counting(nn.Module):
    """Counts its calls, and computes a norm for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.unused = conv(4, 4), norm(4), norm(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.conv(x)
        self.unused(y)
        return self.norm(y)


class Cached(nn.Module):
    """Keeps a constant made of a parameter in a dictionary, as attention biases are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias, self.cache = conv_norm(4, 4), nn.Parameter(torch.rand(4, 1, 1)), {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.detach() * 2
        return torch.relu(self.conv(x)) + self.cache["bias"].to(x.dtype)


class Written(nn.Module):
    """A kernel that is made of a parameter and then written into, in one of several ways."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.write, self.kernel, self.norm = write, nn.Parameter(torch.rand(4, 4, 3, 3)), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.write(self.kernel * 1, self.kernel), padding=1))


def first_row(w: Tensor, p: Tensor) -> Tensor:
    w[0] = p[1]
    return w


def first_row_through_a_view(w: Tensor, p: Tensor) -> Tensor:
    w[0].copy_(p[1])
    return w


def doubled_after_a_view(w: Tensor, p: Tensor) -> Tensor:
    flat = w.view(4, -1)
    w.mul_(2)
    return flat.view_as(p)


def filled(w: Tensor, p: Tensor) -> Tensor:
    made = torch.zeros(4, 4, 3, 3, dtype=p.dtype)
    for k in range(3):
        made[k] = w[k + 1]
    return made


def used() -> nn.Module:
    """A model that was called before it is fused."""
    model = build(Cached)
    run(model, sample(MAPS[0], torch.float32))
    return model


class Unpadded(nn.Conv2d):
    """Claims not to pad, and pads in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class Doubled(nn.BatchNorm2d):
    """Does more than its forward when it is called."""

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super()._call_impl(*args, **kwargs)  # type: ignore[misc]


def doubling(model: nn.Module) -> nn.Module:
    """The second layer gets another forward than its class has."""
    model[1].forward = MethodType(lambda layer, x: 2 * nn.BatchNorm2d.forward(layer, x), model[1])  # type: ignore[index]
    return model


def changed(model: nn.Module, **settings: Any) -> nn.Module:
    """The first layer gets other settings."""
    vars(model[0]).update(settings)  # type: ignore[index]
    return model


class Wavelet(nn.Module):
    """Linear, and the same at every second pixel only: no convolution computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.skip = depthwise(16), depthwise(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.mix(F.pixel_unshuffle(x, 2)), 2) + self.skip(x)


class AlwaysDropout(nn.Dropout):
    """Dropout that ignores eval()."""

    def train(self, mode: bool = True) -> AlwaysDropout:
        return super().train(True)


class Zero(nn.Module):
    """A branch that training has switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def old_style(parametrize: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    """The layer, with one of the deprecated weight hooks."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return parametrize(layer)


def pruned(layer: nn.Module, *names: str) -> nn.Module:
    """The layer, with masks over half of these tensors."""
    with torch.no_grad():
        for name in names:
            prune.l1_unstructured(layer, name, 0.5)
    return layer


def of_parts(m: Any, x: Tensor) -> Tensor:
    first, rest = x.split([1, 3], 1)
    channels = torch.cat([m.a(first), m.b(rest)], 1).unbind(1)
    return 0 + channels[0] + channels[1]


EVEN: tuple[Shape, ...] = ((2, 4, 8, 10), (1, 4, 6, 12))

TRAPS = (
    Trap(
        1,
        "a norm in a separable row",
        lambda: seq(conv(4, 16, (1, 7), p=(0, 3), bias=False), norm(16), conv(16, 2, (7, 1), p=(3, 0))),
        "conv cat add",
    ),
    Trap(1, "unpadded rows", lambda: seq(conv(4, 8, 1), norm(8), conv(8, 2, 2, p=0)), "conv"),
    Trap(2, "one convolution, two places", two(lambda m, x: m.a(x) + m.n(m.a(torch.relu(x))))),
    Trap(3, "one convolution, two norms", two(lambda m, x: m.n(m.a(x)) * torch.relu(m.m(m.a(x))))),
    Trap(3, "one value, two norms", two(lambda m, x: (lambda y: m.n(y) * torch.relu(m.m(y)))(m.a(x)))),
    Trap(3, "a pair used twice", two(lambda m, x: m.n(m.a(torch.relu(m.n(m.a(x))))))),
    Trap(4, "momentum=None", lambda: seq(conv(4, 4), nn.BatchNorm2d(4, momentum=None)), "conv"),
    Trap(4, "affine=False", lambda: seq(conv(4, 4), nn.BatchNorm2d(4, affine=False)), "conv"),
    Trap(4, "instance norm with statistics", lambda: seq(conv(4, 4), nn.InstanceNorm2d(4, track_running_stats=True))),
    Trap(4, "group norm", lambda: seq(conv(4, 4), nn.GroupNorm(2, 4))),
    Trap(
        5,
        "poolformer",
        lambda: Model(lambda m, x: m.pool(x) - x, pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        "pool sub",
    ),
    Trap(6, "identity of another width", lambda: Model(lambda m, x: m.a(x)[:, :4] + x, a=conv(4, 6))),
    Trap(6, "strided identity", lambda: Model(lambda m, x: m.a(x) + x[:, :, ::2, ::2], a=conv(4, 4, s=2))),
    Trap(
        7,
        "norm after a permute",
        lambda: Model(lambda m, x: m.n(m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), fc=nn.Linear(4, 4), n=norm(4)),
        "linear add",
    ),
    Trap(
        7,
        "norm on the wrong axis of a square",
        lambda: Model(lambda m, x: m.n(m.fc(x)), fc=nn.Linear(4, 4), n=norm(4)),
        "linear norm",
        ((2, 4, 4, 4), (1, 4, 4, 4)),
    ),
    Trap(
        7,
        "layer norm, then tokens",
        lambda: Model(lambda m, x: m.fc(m.n(x).transpose(1, 2)), n=nn.LayerNorm(5), fc=nn.Linear(5, 5)),
        "native_layer_norm linear add",
        ((2, 5, 5), (1, 5, 5)),
    ),
    Trap(8, "relu in place before a skip", two(relu_in_place_before_skip)),
    Trap(8, "a part taken before a write", two(part_before_a_write)),
    Trap(8, "a write by what is called", lambda: seq(Caller(conv(4, 4), norm(4))), "conv mul_ norm add"),
    Trap(8, "relu in place after a branch", two(relu_in_place_after_branch)),
    Trap(8, "a value added to itself in place", two(added_in_place_to_itself)),
    Trap(8, "a view that is written through", two(written_through_a_view)),
    Trap(8, "names swapped, then +=", two(swapped_names)),
    Trap(
        8,
        "a norm for nothing, and its input overwritten",
        lambda: Model(lambda m, x: (lambda y: (m.n(y), torch.sigmoid_(y))[1])(x.mean((2, 3))), n=nn.GroupNorm(2, 4)),
    ),
    Trap(8, "a value that is written into before it is read", two(written_before_it_is_read), "relu sigmoid conv"),
    Trap(8, "a value that is written into while it is merged", two(written_between)),
    Trap(8, "a value that two layers read, written into between them", two(written_between_two_readers)),
    Trap(8, "a write that is read elsewhere too", two(written_by_what_stays)),
    Trap(
        9,
        "one norm, two readers",
        lambda: Model(
            lambda m, x: (lambda y: m.a(y) * torch.sigmoid(m.b(y)))(m.n(x)), n=norm(4), a=conv(4, 4, 1), b=conv(4, 4, 1)
        ),
        "conv conv sigmoid mul",
    ),
    Trap(
        9,
        "one norm, a reader that cannot take it",
        lambda: Model(lambda m, x: (lambda y: m.a(y) * torch.sigmoid(y))(m.n(x)), n=norm(4), a=conv(4, 4, 1)),
        "norm conv sigmoid mul",
    ),
    Trap(
        9,
        "a bottleneck that is read twice, once behind a padded convolution",
        lambda: Model(
            lambda m, x: (lambda y: torch.cat([y, F.silu(m.m(m.b(y)))], 1))(m.n(m.a(x))),
            a=conv(48, 48, 1),
            n=norm(48),
            b=conv(48, 48),
            m=norm(48),
        ),
        "conv conv silu cat",
        ((2, 48, 12, 12), (1, 48, 11, 13)),
    ),
    Trap(
        9,
        "a bottleneck that is read twice, once in a sum",
        lambda: Model(
            lambda m, x: (lambda y: torch.relu(y).sum(1, keepdim=True) * (m.b(y) + m.c(torch.sigmoid(x))))(m.n(m.a(x))),
            a=conv(16, 8, 1),
            n=norm(8),
            b=conv(8, 3, 1),
            c=conv(16, 3, 1),
        ),
        "conv relu sum conv sigmoid conv add mul",
        ((2, 16, 12, 12), (1, 16, 11, 13)),
    ),
    Trap(9, "one convolution on two scales", two(shared_scales), None, EVEN),
    Trap(10, "weight norm by hook", lambda: seq(old_style(nn.utils.weight_norm, conv(4, 4)), norm(4))),
    Trap(10, "spectral norm by hook", lambda: seq(old_style(nn.utils.spectral_norm, conv(4, 4)), norm(4))),
    Trap(10, "a pruned weight", lambda: seq(pruned(conv(4, 4), "weight"), norm(4)), "conv"),
    Trap(10, "a pruned weight and bias", lambda: seq(pruned(conv(4, 4), "weight", "bias"), norm(4)), "conv"),
    Trap(
        10, "a class that calls itself differently", lambda: seq(conv(4, 4), Doubled(4), norm(4)), "conv norm mul norm"
    ),
    Trap(
        10,
        "a layer with a forward of its own",
        lambda: doubling(seq(conv(4, 4), norm(4), conv(4, 4))),
        "conv norm mul conv",
    ),
    Trap(10, "a class that pads in its forward", lambda: seq(Unpadded(4, 4, 3), norm(4)), "conv"),
    *(
        Trap(
            11,
            f"{mode} beside zeros",
            lambda mode=mode: Sum([nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode), conv(4, 4)]),
        )
        for mode in ("reflect", "circular", "replicate")
    ),
    Trap(
        11,
        "an even kernel padded to the same size",
        lambda: Sum([nn.Conv2d(4, 4, 2, padding="same"), conv(4, 4)]),
        "conv",
    ),
    Trap(
        11,
        "an even kernel padded to the same size, and its norm",
        lambda: seq(nn.Conv2d(4, 5, (1, 4), padding="same"), norm(5)),
        "pad conv",
    ),
    Trap(
        11,
        "an even kernel per channel, padded to the same size, and its norm",
        lambda: seq(nn.Conv2d(4, 4, (1, 4), padding="same", groups=4), norm(4)),
        "pad conv",
    ),
    Trap(
        11,
        "a branch padded on one side",
        lambda: Model(lambda m, x: m.a(F.pad(x, (1, 0, 1, 0))) + m.b(x), a=conv(4, 4, 2, p=0), b=conv(4, 4)),
        "conv",
    ),
    Trap(11, "padding as in tensorflow", two(same_padding_like_tensorflow), None),
    Trap(12, "identity in groups of three", lambda: repvgg(6, g=2), "conv", ((2, 6, 8, 9), (1, 6, 7, 5))),
    Trap(
        12,
        "groups that do not nest",
        lambda: Sum([conv(12, 12, g=2), conv(12, 12, g=3)]),
        None,
        ((2, 12, 5, 6), (1, 12, 4, 4)),
    ),
    Trap(12, "a transposed convolution in groups", lambda: seq(nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), norm(6))),
    Trap(
        12,
        "grouped 1x1 then grouped 3x3",
        lambda: seq(conv(8, 8, 1, g=4, bias=False), conv(8, 16, g=4, bias=False), norm(16)),
        "conv",
        ((2, 8, 6, 7), (1, 8, 5, 5)),
    ),
    Trap(12, "a channel shuffle between", lambda: Model(channel_shuffle, a=conv(4, 4, 1, g=2), b=conv(4, 4, 1, g=2))),
    Trap(13, "leaky slope of one", lambda: seq(conv(4, 4), nn.LeakyReLU(1.0), norm(4))),
    Trap(13, "prelu, all ones but one", lambda: seq(conv(4, 4), nn.PReLU(4), norm(4)), "conv _prelu_kernel norm"),
    Trap(
        13,
        "stochastic depth",
        lambda: Model(lambda m, x: x + m.drop(m.a(x)), a=conv_norm(4, 4), drop=DropPath()),
        "conv",
    ),
    Trap(13, "dropout of nothing, always", lambda: seq(conv(4, 4), AlwaysDropout(0.0), norm(4))),
    Trap(14, "a branch switched off by a number", lambda: Alpha(0.0)),
    Trap(14, "a branch switched on by a number", lambda: Alpha(0.7)),
    Trap(14, "a counter in the forward", Counting),
    Trap(14, "a constant kept from an earlier call", used),
    Trap(14, "a kernel, a row overwritten", lambda: Written(first_row), "conv"),
    Trap(14, "a kernel, a row overwritten through a view", lambda: Written(first_row_through_a_view), "mul conv norm"),
    Trap(14, "a kernel, overwritten under a view", lambda: Written(doubled_after_a_view), "mul mul_ conv norm"),
    Trap(14, "a kernel, added to in place", lambda: Written(lambda w, p: w.add_(p)), "conv"),
    Trap(14, "a kernel, filled row by row", lambda: Written(filled), "conv"),
    Trap(
        14, "a kernel, drawn at random", lambda: Written(lambda w, p: w.uniform_(-1e-9, 1e-9)), "mul uniform_ conv norm"
    ),
    Trap(
        15,
        "low rank beside full",
        lambda: Sum([conv(4, 4), seq(conv(4, 1, bias=False), conv(1, 4, 1, bias=False))]),
        "conv",
    ),
    Trap(15, "periodic every two pixels", Wavelet, None, EVEN),
    *(
        Trap(16, name, lambda body=body: Model(body, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), left, ((4, 4), (2, 4)))
        for name, body, left in (
            ("a mean of everything, by an empty list", lambda m, x: m.b(m.a(x) + m.b(x).mean([])), None),
            ("a bias per row", lambda m, x: F.linear(m.a(x), m.b.weight, m.b.bias[:1, None]), None),
            (
                "a sum that changes the dtype",
                lambda m, x: m.b(torch.cumsum(m.a(x), 1, dtype=torch.float64).to(x)),
                None,
            ),
            ("flip by a keyword", lambda m, x: m.b(torch.flip(m.a(x), dims=[1])), "linear"),
            ("permute by a keyword", lambda m, x: m.b(torch.permute(m.a(x), dims=(0, 1))), "linear"),
            ("reshape by a keyword", lambda m, x: m.b(torch.reshape(m.a(x), shape=(-1, 1, 4))), "linear"),
            ("one index without a dimension", lambda m, x: torch.index_select(m.a(x), 1, torch.tensor(2)), None),
        )
    ),
    Trap(
        15,
        "a hook before a scale that is absorbed",
        lambda: hooked(
            Model(
                lambda m, x: m.c(m.n(sum(torch.unbind(x, 1)))),
                n=seq(norm(4), norm(4)),
                c=nn.Conv2d(4, 4, 1, padding=1, padding_mode="replicate"),
            ),
            "n.0",
            before=True,
        ),
        None,
        ((2, 3, 4, 6, 6), (1, 3, 4, 5, 7)),
    ),
    Trap(
        15,
        "a size that only a hooked norm has",
        lambda: hooked(
            Model(flat_and_back, r=seq(norm(4), norm(4)), fc=nn.Linear(48, 48, bias=False), c=conv(4, 4)), "r.0"
        ),
        None,
        ((2, 4, 3, 4), (1, 4, 3, 4)),
    ),
    Trap(15, "a norm asked for its dtype", two(lambda m, x: m.n(m.a(x.to(m.n.weight.dtype)))), "conv"),
    Trap(15, "a padding that was set later", lambda: changed(conv_norm(4, 4), padding=0), "conv"),
    Trap(15, "sums that begin with 0", two(lambda m, x: torch.relu(0 + m.n(m.a(x)) + 0)), "conv relu"),
    Trap(
        15,
        "the part of a concatenation that is all of a layer, without its axis",
        lambda: Model(of_parts, a=conv(1, 1, 1), b=conv(3, 3, 1)),
        None,
        EVEN,
    ),
    Trap(
        15,
        "half of the channels, and what is left of their mean",
        lambda: Model(
            lambda m, x: m.c(m.n(x).split([2, 2], 1)[1].flip(1).mean(1).flip(2)).sum(-2),
            n=norm(4),
            c=nn.Conv1d(8, 6, 1),
        ),
        None,
        ((2, 4, 8, 10), (1, 4, 8, 12)),
    ),
    Trap(15, "scale zero", lambda: seq(conv(4, 4), Zero(), norm(4))),
    Trap(15, "fifty norms", lambda: seq(conv(4, 4), *(FrozenNorm(4) for _ in range(50)), Scalar(4, 1, 1)), "conv"),
)


@cache
def trapped(trap: Trap) -> tuple[nn.Module, nn.Module]:
    model = build(trap.make)
    return model, reparamkit.fuse(model, sample(trap.shapes[0], torch.float32))


@pytest.mark.parametrize("trap", TRAPS, ids=str)
def test_outputs_stay(trap: Trap):
    """The fused model equals the float64 original, at every size."""
    model, fused = trapped(trap)
    for shape in trap.shapes:
        x = sample(shape, torch.float32)
        assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


@pytest.mark.parametrize("trap", [t for t in TRAPS if t.left is not None], ids=str)
def test_what_is_left(trap: Trap):
    """Everything that is exact to merge was merged, and nothing else."""
    _, fused = trapped(trap)
    assert operations(fused, sample(trap.shapes[0], torch.float32)) == trap.left


@pytest.mark.parametrize("trap", TRAPS, ids=str)
def test_outputs_stay_without_example_inputs(trap: Trap):
    """Without example inputs the outputs stay as well, for every model that can be captured."""
    model = build(trap.make)
    with suppress(CaptureError):
        fused = reparamkit.fuse(model)
        x = sample(trap.shapes[-1], torch.float32)
        assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def test_state_that_the_forward_writes_is_still_written():
    """A buffer that the forward updates is updated by the fused forward, and not by fusing."""
    model = build(Counting)
    fused = reparamkit.fuse(model, sample(MAPS[0], torch.float32))
    assert model.calls == fused.calls == 0
    for _ in range(3):
        run(fused, sample(MAPS[0], torch.float32))
    assert fused.calls == 3


def test_a_half_precision_weight_is_never_infinite():
    """A merge whose weights overflow the dtype of the layers is refused, with words."""
    model = build(lambda: conv_norm(4, 4)).half()
    model[1].running_var.zero_()
    model[1].eps, model[0].weight.data = 1e-12, model[0].weight.data * 1e3
    fused = reparamkit.fuse(model)
    assert all(torch.isfinite(p).all() for p in fused.parameters())
    assert any("overflow" in refusal.reason for refusal in reparamkit.report(fused).refusals)


@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_half_precision_layer_is_never_all_but_zero(with_inputs: bool):
    """A merge whose numbers are all far below the smallest normal one of the dtype is refused, with words."""
    model = build(lambda: conv_norm(4, 4))
    model[1].running_mean.zero_()
    model[1].running_var.fill_(1e4)
    with torch.no_grad():
        model[1].weight.fill_(1e-5)
        model[1].bias.zero_()
    x, model = 100 * sample(MAPS[0], torch.float16), model.half()
    fused = reparamkit.fuse(model, x if with_inputs else None)
    assert error(run(fused, x), run(model, x)) <= 1e-2
    assert any("too small" in refusal.reason for refusal in reparamkit.report(fused).refusals)


class Wide(nn.Module):
    """Takes another way for wide maps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.narrow, self.wide = norm(4), conv(4, 4, 1), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.wide(y) if y.shape[-1] > 9 else self.narrow(y)


def test_a_merge_behind_a_branch_holds_for_that_branch():
    """What was merged on the way that was traced is right for every size that takes it, and refused for others."""
    model = build(Wide)
    fused = reparamkit.fuse(model, sample((2, 4, 8, 10), torch.float32))
    assert reparamkit.report(fused).merges
    x = sample((1, 4, 5, 12), torch.float32)
    assert error(run(fused, x), run(model, x)) <= 1e-6
    with pytest.raises(reparamkit.GuardError):
        run(fused, sample((2, 4, 8, 7), torch.float32))


@pytest.mark.parametrize("example", [(4, 6), None], ids=["with inputs", "without inputs"])
def test_a_norm_of_features_is_not_one_of_tokens(example: Shape | None):
    """BatchNorm1d normalises the last dimension of (N, C) and the middle one of (N, C, L): the rank is guarded."""
    model = build(lambda: seq(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    fused = reparamkit.fuse(model, None if example is None else sample(example, torch.float32))
    x = sample((4, 6), torch.float32)
    assert operations(fused, x) == "linear"
    assert error(run(fused, x), run(model, x)) <= 1e-6
    with pytest.raises(reparamkit.GuardError):
        run(fused, sample((3, 6, 6), torch.float32))


def test_a_mean_of_tokens_is_not_taken_for_one_of_channels():
    """Without example inputs, tokens of which only the channels are known may have a dimension more than a batch."""
    model = build(lambda: Model(lambda m, x: m.head(m.norm(x).mean(1)), norm=nn.LayerNorm(8), head=nn.Linear(8, 3)))
    fused = reparamkit.fuse(model)
    x = sample((2, 5, 8), torch.float32)
    assert error(run(fused, x), run(model, x)) <= 1e-6


def test_numbers_made_of_parameters_that_stay_are_more_numbers():
    """A scale that is computed from a weight takes the place of the computation, not of the weight."""
    model = build(lambda: Model(lambda m, x: m.fc(x).relu() * m.fc.weight.abs().sum(1), fc=nn.Linear(6, 6)))
    fused = reparamkit.fuse(model, sample((4, 6), torch.float32))
    assert sum(p.numel() for p in fused.parameters()) <= sum(p.numel() for p in model.parameters())
    assert any("raise stored numbers" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def swapped_halves(m: Any, x: Tensor) -> Tensor:
    first, second = m.n(x).chunk(2, 1)
    return m.m(torch.cat([second, first], 1))


def test_a_rank_that_is_assumed_is_guarded_whatever_layer_is_written():
    """Norms of features around swapped halves are one matrix, which takes no other rank."""
    model = build(lambda: Model(swapped_halves, n=nn.BatchNorm1d(4), m=nn.BatchNorm1d(4)))
    fused = reparamkit.fuse(model)
    for shape in ((3, 4), (3, 4, 8)):
        x = sample(shape, torch.float32)
        with suppress(reparamkit.GuardError):
            assert error(run(fused, x), run(model, x)) <= 1e-6


class Dead(nn.Module):
    """Computes a sum that nobody reads beside a pair that merges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_norm(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        _ = y + x
        return self.second(y)


def test_a_value_that_nobody_reads_keeps_no_layer():
    """Dead code is no reader."""
    model, x = build(Dead), sample(MAPS[0], torch.float32)
    fused = reparamkit.fuse(model, x)
    assert operations(fused, x) == "conv"
    assert error(run(fused, x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("example", [(6, 6), None])
def test_the_transpose_of_a_vector_is_not_that_of_a_matrix(example: Shape | None):
    """``x.t()`` takes both, and a sum behind it tells them apart."""
    model = build(lambda: Model(lambda m, x: m.a(x).t() + m.c, a=nn.Linear(6, 6), c=nn.Parameter(torch.randn(6, 1))))
    fused = reparamkit.fuse(model, None if example is None else sample(example, torch.float32))
    x, vector = sample((6, 6), torch.float32), sample((6,), torch.float32)
    assert error(run(fused, x), run(model, x)) <= 1e-6
    with suppress(reparamkit.GuardError):
        assert error(run(fused, vector), run(model, vector)) <= 1e-6


def test_layers_that_change_the_rank_are_not_stacked():
    """Only layers that are a matrix along one dimension are."""
    model = build(lambda: seq(conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)))
    x = sample((2, 4, 4, 6), torch.float32)
    fused = reparamkit.fuse(model, x, objective="launches")
    assert operations(fused, x) == "conv relu linear"


def power_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    flat = y.flatten()
    flat **= 2
    return m.n(y)


def remainder_of_a_part(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    half = y[:, :2]
    half %= 0.3
    return m.n(y)


def relu_in_place_by_a_number(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    F.relu(y, inplace=1)  # type: ignore[arg-type]
    return m.n(y)


def written_by_an_uncommon_name(view: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        view(y).mul_(2)
        return m.n(y)

    return body


def statistics_written(m: Any, x: Tensor) -> Tensor:
    F.batch_norm(x, m.n.running_mean, m.n.running_var, training=True)
    return m.n(m.a(x))


def buffer_written(m: Any, x: Tensor) -> Tensor:
    m.n.running_mean.add_(0.5)
    return m.n(m.a(x))


class Unread(nn.Module):
    """Branches on data, and writes into what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            x.mul_(2)
        return x


def written_by_code_that_is_not_traced(m: Any, x: Tensor) -> Tensor:
    y = m.n(m.a(x))
    m.unread(x)
    return y + m.m(m.b(x))


def with_one_mean() -> nn.Module:
    """A norm that learns in every call the mean that another one uses."""
    model = Model(lambda m, x: m.n(m.a(m.learning(x))), a=conv(4, 4), n=norm(4), learning=AlwaysTraining(4))
    model.learning.running_mean = model.n.running_mean
    return model


class Halving(nn.Module):
    """Writes into what it gets; `last` is what it gives."""

    def __init__(self, last: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.last, self.c = last, conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        x[:, 1:3] *= 3
        return self.last(self, x)


def halved(body: Callable[[Any, Tensor], Tensor], last: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Model(body, a=conv(4, 4, 1), b=conv(4, 4, 1), n=norm(4), halving=Halving(last))


def read_after_the_call(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.halving(y) + m.n(m.b(y))


def read_after_two_calls(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.halving(y) + m.halving(y)


WRITES: dict[str, Callable[[], nn.Module]] = {
    "a power through a view": two(power_through_a_view),
    "a remainder of a part": two(remainder_of_a_part),
    "relu in place, by a number": two(relu_in_place_by_a_number),
    "parts of given sizes": two(written_by_an_uncommon_name(lambda y: y.split_with_sizes([1, 3], 1)[1])),
    "statistics": two(statistics_written),
    "a buffer": two(buffer_written),
    "a module that is not traced": lambda: Model(
        written_by_code_that_is_not_traced, a=conv(4, 4), b=conv(4, 4), n=norm(4), m=norm(4), unread=Unread()
    ),
    "one mean of two norms": with_one_mean,
    "in a call that reads it": halved(lambda m, x: m.n(m.halving(m.a(x))), lambda m, x: m.c(x) + x),
    "in a call that gives it back": halved(lambda m, x: m.n(m.b(m.halving(m.a(x)))), lambda m, x: x),
    "in a call, and read after it": halved(read_after_the_call, lambda m, x: m.c(x)),
    "in two calls": halved(read_after_two_calls, lambda m, x: m.c(x)),
    "in a call, of the input": halved(lambda m, x: m.n(m.b(m.halving(x))) + m.a(x), lambda m, x: m.c(x)),
}


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_is_read_as_it_is_then(name: str, with_inputs: bool):
    """Memory that changes while the forward runs, under whatever name, gives the same in the fused model."""
    model, x = build(WRITES[name]), sample(MAPS[0], torch.float32)
    # All merges that are taken to be exact, and not only those that pay.
    fused = reparamkit.fuse(model, x if with_inputs else None, objective="launches")
    for shape in MAPS:
        assert error(run(fused, sample(shape, torch.float32)), run(model, sample(shape, torch.float32))) <= 1e-6


def test_what_a_call_writes_and_alone_reads_is_followed():
    """As in code that is no call."""

    def tripled(m: Any, x: Tensor) -> Tensor:
        x[:, 1:3] *= 3
        return m.c(x) + x

    inner = Model(tripled, c=conv(4, 4))
    model = build(lambda: Model(lambda m, x: m.n(m.inner(m.a(x))), a=conv(4, 4, 1), inner=inner, n=norm(4)))
    x = sample(MAPS[0], torch.float32)
    fused = reparamkit.fuse(model, x)
    assert "mul" not in operations(fused, x)
    assert error(run(fused, x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("shape", [(4, 7), (2, 4, 7), (2, 3, 4, 7)])
def test_a_product_from_the_left_takes_tensors_of_any_rank(shape: Shape):
    """One convolution would compute it, of tensors of two or three dimensions only."""
    model = build(
        lambda: Model(lambda m, x: m.v @ (m.w @ x) + m.b, w=parameter(6, 4), v=parameter(3, 6), b=parameter(1, 3, 1))
    )
    fused = reparamkit.fuse(model)
    assert error(run(fused, sample(shape, torch.float32)), run(model, sample(shape, torch.float32))) <= 1e-6
    assert any("does not take tensors of all ranks" in refusal.reason for refusal in reparamkit.report(fused).refusals)


class Heads(nn.Module):
    """Splits the last axis into two heads."""

    def forward(self, x: Tensor) -> Tensor:
        """x: shape (n, t, c). Returns (n, 2, t, c / 2)."""
        n, t, c = x.shape
        return x.reshape(n, t, 2, c // 2).transpose(1, 2)


class Attending(nn.Module):
    """One part is called three times, and a merge goes through one of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.k, self.v = Heads(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        v = self.heads(self.v(x))
        q, k = self.heads(self.q(x)) * 0.3, self.heads(self.k(x))
        return F.scaled_dot_product_attention(q, k, v)


def test_a_part_that_is_written_out_at_one_place_stays_for_the_others():
    model = build(Attending)
    for length in (5, 7):
        x = sample((2, length, 8), torch.float32)
        fused = reparamkit.fuse(model, x)
        assert reparamkit.report(fused).merges
        assert error(run(fused, x), run(model, x)) <= 1e-5


def replaced_first(m: Any, x: Tensor) -> Tensor:
    """As class attention does it: the first token apart, then both parts of what was joined."""
    joined = torch.cat([torch.relu(x[:, :1]), x[:, 1:] if m.views else 2 * x], 1)
    return joined[:, :1] + m.a(joined[:, 1:])  # type: ignore[no-any-return]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("views", [False, True])
def test_a_part_of_a_concatenation_is_cropped_once(views: bool, verify: bool):
    """The way to it crops what the concatenation put before; not one of the two is left alone."""
    model = build(lambda: Model(replaced_first, a=nn.Linear(8, 8)))
    model.views = views
    x = sample((2, 5, 8), torch.float32)
    fused = reparamkit.fuse(model, x, verify=verify, objective="launches")
    assert error(run(fused, x), run(model, x)) <= 1e-5


def test_zeros_of_a_layer_do_not_forget_what_it_takes():
    """The layer is only asked for a shape, and refuses inputs of other channels all the same."""
    model = build(lambda: Model(lambda m, x: (torch.zeros_like(m.a(x)) + m.b(x)).relu(), a=conv(4, 4), b=norm(4)))
    for fused in (reparamkit.fuse(model), reparamkit.fuse(model, sample((2, 4, 6, 6), torch.float32))):
        with pytest.raises((RuntimeError, reparamkit.GuardError)):
            run(fused, sample((2, 3, 6, 6), torch.float32))


@pytest.mark.parametrize("example", [(2, 4, 6, 6), None])
def test_zeros_of_a_layer_beside_its_input_do_not_forget_what_it_takes(example: Shape | None):
    """Nothing is left but the input, of which other channels are refused all the same."""
    model = build(lambda: Model(lambda m, x: torch.zeros_like(m.a(x)) + x, a=conv(4, 4)))
    fused = reparamkit.fuse(model, None if example is None else sample(example, torch.float32))
    for channels in (1, 3):
        with pytest.raises((RuntimeError, reparamkit.GuardError)):
            run(fused, sample((2, channels, 6, 6), torch.float32))


def test_a_parameter_for_every_sample_is_one_for_the_first_dimension():
    """Where the rank is another, the code repeats the parameter for every channel."""
    model = build(
        lambda: Model(lambda m, x: m.a(x) * m.s.repeat(x.shape[0], 1, 1, 1), a=conv(4, 4), s=parameter(1, 4, 1, 1))
    )
    fused = reparamkit.fuse(model, sample((2, 4, 6, 6), torch.float32))
    for shape in ((3, 4, 5, 5), (4, 6, 6)):
        x = sample(shape, torch.float32)
        with suppress(reparamkit.GuardError):
            assert error(run(fused, x), run(model, x)) <= 1e-5
            assert run(fused, x).shape == run(model, x).shape


def test_a_guard_of_a_dimension_that_is_not_there_says_so():
    """A factor for each sample is guarded by the batch size; a single sample has none."""
    model = build(
        lambda: Model(lambda m, x: m.a(x) * m.s - m.t, a=conv(4, 4), s=parameter(2, 4, 1, 1), t=parameter(2, 4, 1, 1))
    )
    fused = reparamkit.fuse(model, sample((2, 4, 6, 6), torch.float32))
    with pytest.raises(reparamkit.GuardError):
        run(fused, sample((4, 6, 6), torch.float32))


def halves_in_bfloat16(m: Any, x: Tensor) -> Tensor:
    first, last = m.a(x).bfloat16().chunk(2, -1)
    first *= m.s
    return first + last


@pytest.mark.parametrize("objective", ["default", "launches"])
def test_what_is_written_into_keeps_its_format(objective: str):
    """A value in bfloat16 that is scaled in place by a number in float32 stays in bfloat16."""
    model = build(lambda: Model(halves_in_bfloat16, a=nn.Linear(8, 8), s=parameter(4)))
    x = sample((2, 5, 8), torch.float32)
    fused = reparamkit.fuse(model, x, objective=objective, verify=False)
    assert run(fused, x).dtype is torch.bfloat16
    assert error(run(fused, x), run(model, x)) <= 1e-2


def squashed_copy(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    copy = torch.zeros_like(y) + y
    return copy.tanh_() + y


def copy_of_what_is_squashed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    copy = torch.zeros_like(y) + y
    return y.tanh_() + copy


def squashed_input(m: Any, x: Tensor) -> Tensor:
    copy = torch.zeros_like(x) + x
    return copy.tanh_()


def copied_input(m: Any, x: Tensor) -> Tensor:
    return torch.zeros_like(x) + x


@pytest.mark.parametrize("body", [squashed_copy, copy_of_what_is_squashed, squashed_input, copied_input])
@pytest.mark.parametrize("example", [(2, 4, 6, 6), None], ids=["with inputs", "without inputs"])
def test_a_copy_is_no_view_of_what_it_is_a_copy_of(body: Callable[..., Any], example: Shape | None):
    """A sum with zeros has memory of its own: what is written into it, or into the other, is not seen in both."""
    model = build(lambda: Model(body, a=conv(4, 4)))
    fused = reparamkit.fuse(model, None if example is None else sample(example, torch.float32), verify=False)
    mine, theirs = (sample((2, 4, 6, 6), torch.float32) for _ in range(2))
    with torch.no_grad():
        out = fused(mine)
        assert error(out, model(theirs)) <= 1e-6
        out.zero_()
    assert torch.equal(mine, theirs)


def mean_of_two(m: Any, x: Tensor) -> Tensor:
    return torch.flatten(torch.stack([m.a(x), m.b(x)]).mean(0), start_dim=1)


@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_rank_that_is_only_possible_ends_in_no_error(with_inputs: bool):
    """For all that is known, the mean could be one number, which has no dimensions to flatten."""
    model, x = build(lambda: Model(mean_of_two, a=conv(4, 4), b=conv(4, 4))), sample((2, 4, 5, 5), torch.float32)
    fused = reparamkit.fuse(model, x) if with_inputs else reparamkit.fuse(model)
    assert error(run(fused, x), run(model, x)) <= 1e-6


def shuffled_and_summed(m: Any, x: Tensor) -> Tensor:
    y = m.out(nn.functional.pixel_shuffle(m.first(m.linear(x)), 2)).flatten(2).transpose(1, 2)
    y = y.mT.unflatten(-1, (10, 6))
    return m.a(y) + y


def test_a_bias_that_differs_from_place_to_place_ends_in_no_error():
    """It has no borders, and no layer of borders adds it."""
    layers = {"linear": nn.Linear(3, 3), "first": nn.Conv2d(2, 16, 3, padding=1), "out": nn.Conv2d(4, 2, 1)}
    model = build(lambda: Model(shuffled_and_summed, **layers, a=nn.Conv2d(2, 2, 1)))
    x = sample((2, 2, 5, 3), torch.float32)
    assert error(run(reparamkit.fuse(model, x), x), run(model, x)) <= 1e-5


def test_views_that_undo_each_other_before_a_scale_go_with_the_merge():
    """They are in the code of another module than the scale, which the merge does without."""
    shuffled = seq(nn.Conv2d(4, 4, 3), nn.PixelShuffle(2), nn.PixelUnshuffle(2))
    last = nn.Conv2d(4, 2, 4, padding=2, padding_mode="replicate")
    model = build(lambda: seq(shuffled, norm(4), last, norm(2)))
    x = sample((2, 4, 9, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert error(run(fused, x), run(model, x)) <= 1e-5


@pytest.mark.parametrize("channels", [1, 4])
def test_a_window_that_does_not_fit_ends_in_no_error(channels: int):
    """For all that is known, the norm is of vectors: then nothing is left behind the first window."""
    layers = nn.BatchNorm1d(channels), nn.Conv1d(channels, channels, 3), nn.Conv1d(channels, channels, 5, padding=2)
    model, x = build(lambda: seq(*layers)), sample((2, channels, 9), torch.float32)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-6


def test_a_scale_before_a_crop_is_no_window():
    """What is cropped behind a scale leaves it one: a convolution would multiply more often."""
    numbers = nn.ParameterList([torch.rand(4, 1, 1), torch.rand(4, 1, 1)])
    model = build(lambda: Model(lambda m, x: (x + (x - m.s[0] / m.s[1]))[:, :, 1:-1, 1:], s=numbers))
    x = sample((2, 4, 6, 7), torch.float32)
    fused = reparamkit.fuse(model, x)
    made = reparamkit.report(fused)
    assert made.merges
    assert made.after.ops < made.before.ops
    assert made.after.flops <= made.before.flops
    assert error(run(fused, x), run(model, x)) <= 1e-6


class Regrouping(nn.Module):
    """A block that asks its own result for sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = parameter(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        batch, channels, *sizes = x.shape
        return x.reshape(batch * channels, 1, *sizes)


def test_a_size_that_an_argument_has_keeps_no_layer_before_the_call():
    """It is read from what the layer reads."""
    model = build(lambda: seq(nn.Softmax(-1), nn.Linear(9, 9), Regrouping()))
    x = sample((2, 1, 9, 9), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert error(run(fused, x), run(model, x)) <= 1e-6
    assert operations(fused, x) == "_softmax linear"


def turned_round(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).reshape(-1, 4, 7)
    return y.index_select(1, torch.arange(y.shape[1]).flip(0))


def test_an_order_that_is_counted_out_is_known():
    """As many as a size that is known are counted."""
    model, x = build(lambda: Model(turned_round, a=nn.Linear(28, 28))), sample((2, 28), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert reparamkit.report(fused).merges
    assert error(run(fused, x), run(model, x)) <= 1e-6


def cut_off(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.norm(torch.cat([x.relu(), m.a(x.sigmoid())], 1))
    return m.b(y[:, :4]) + m.c(y[:, :4]), y.sigmoid()


def test_what_is_cut_off_on_the_way_stands_in_the_way_of_no_proof():
    """The merge does not read what the model makes of it."""
    layers = {"norm": norm(8), "a": conv(4, 4), "b": conv(4, 4, 1), "c": nn.Conv2d(4, 4, 1, bias=False)}
    model, x = build(lambda: Model(cut_off, **layers)), sample((2, 4, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, x, objective="launches")
    assert operations(fused, x).count("conv") == 2
    assert all("could not be run" not in refusal.reason for refusal in reparamkit.report(fused).refusals)
    for mine, theirs in zip(run(fused, x), run(model, x), strict=True):
        assert error(mine, theirs) <= 1e-6


class NormOfTokens(nn.Module):
    """A linear layer and a norm of all tokens, in the shape that the layer gave (LeViT)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(ins, outs, bias=False), nn.BatchNorm1d(outs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


def test_a_size_is_read_of_an_argument_where_the_value_that_stays_is_out_of_sight():
    """Outside of each block there is a value that stays and has the sizes; its code sees what it gets."""
    blocks = {name: NormOfTokens(*sizes) for name, sizes in zip("abcd", 2 * [(8, 16), (16, 8)], strict=True)}
    table = {"table": nn.Embedding(5, 8)}

    def forward(m: Any, x: Tensor) -> Tensor:
        x = x.sigmoid() + m.table.weight
        x = x + m.b(m.a(x).relu())
        return x + m.d(m.c(x).relu())

    model, x = build(lambda: Model(forward, **blocks, **table)), sample((2, 5, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in fused.modules())
    assert error(run(fused, x), run(model, x)) <= 1e-5


def pinned_behind_a_merge(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.pool(m.norm(m.conv(m.up(x)) + m.skip(x))))
    return y.flatten(2).unflatten(-1, (3, 3)) * 2


def test_a_guard_keeps_no_layer_that_another_merge_takes():
    """The size of the sum, which the second merge needs to be 6, is read of what the first one gives."""
    layers = {"up": nn.ConvTranspose2d(1, 1, 2, 2), "conv": nn.Conv2d(1, 1, 3, 2, 1), "pool": nn.AvgPool2d(3, 2, 1)}
    model = build(lambda: Model(pinned_behind_a_merge, **layers, skip=norm(1), norm=norm(1)))
    x = sample((2, 1, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert len(reparamkit.report(fused).merges) == 2
    assert "transpose" not in operations(fused, x)
    assert error(run(fused, x), run(model, x)) <= 1e-6
    with pytest.raises(reparamkit.GuardError):
        fused(sample((2, 1, 10, 10), torch.float32))


class TwoRanks(nn.ModuleList):
    """A sum of branches of a single channel, in place; a norm says how many channels there are, of either rank."""

    def forward(self, x: Tensor) -> Tensor:
        total = self[0](x)
        for branch in list(self)[1:]:
            total += branch(x)
        return total + x


def test_what_a_layer_fixes_at_one_rank_is_not_known_at_another():
    """The channels of a norm over samples are the last dimension, those of one over maps are not."""
    branches = [
        seq(nn.BatchNorm1d(1), nn.AvgPool1d(3, 1, 1)),
        seq(nn.Conv1d(1, 1, 3, padding=1), nn.BatchNorm1d(1)),
        seq(nn.Conv1d(1, 1, 3, dilation=2, padding=2), nn.Conv1d(1, 1, 3, padding=1), nn.BatchNorm1d(1)),
    ]
    model = build(lambda: Model(lambda m, x: m.branches(x.narrow(1, 0, 1)), branches=TwoRanks(branches)))
    x = sample((2, 4, 5), torch.float32)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-6


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("name", ["view", "view_as"])
def test_a_view_of_what_a_layer_made_may_be_none_of_its_input(name: str, readers: int):
    """The numbers that a layer gets may lie in an order in which there is no such view."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.n(x.transpose(1, 2)[..., :4])
        x = x.view(-1, 128) if name == "view" else x.view_as(x.reshape(-1, 128))
        return m.a(x) if readers == 1 else m.a(x).relu() + m.b(x)

    parts = {"n": conv(8, 8, 1, g=8), "a": nn.Linear(128, 16), "b": nn.Linear(128, 16)}
    model, x = build(lambda: Model(forward, **parts)), sample((2, 4, 8, 8), torch.float32)
    for example in (x, None):
        assert error(run(reparamkit.fuse(model, example), x), run(model, x)) <= 1e-6


def test_what_is_known_of_a_dimension_out_of_sight_is_known_once_it_is_seen():
    """A convolution knows the channels of an input that a linear layer takes with any dimensions; it took for ever."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return torch.cat([m.b(x), y], -1)

    model = build(lambda: Model(forward, a=conv(8, 8, g=2), b=nn.Linear(6, 6)))
    x = sample((2, 8, 3, 6), torch.float32)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-6


def test_a_layer_that_changes_the_channels_is_not_before_a_view_that_names_them():
    """The channels are any number in the code of the view, and those of a convolution behind it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = x + x
        return m.a(x.reshape(x.shape[0], x.shape[1], -1))

    model, x = build(lambda: Model(forward, a=nn.Conv1d(2, 4, 3, 3, 2))), sample((2, 2), torch.float32)
    assert error(run(reparamkit.fuse(model, x), x), run(model, x)) <= 1e-6


def _written_through_names(m: Any, x: Tensor) -> Tensor:
    """A part and the whole, written into by turns."""
    y = m.a(x)
    part = y[:, 3:]
    part.mul_(2.0).tanh_()
    y.sub_(0.3)
    part.add_(1.0)
    return m.n(y)


def _written_in_a_part_of_a_part(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :2][:, :1].add_(1.0)
    return m.n(y)


def _read_by_two_names(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    part = y[:, 1:]
    same = part.clamp_(-1, 1).neg_()
    y[:, :2] *= 2.0
    part[:, 1::2] = 0.25
    return m.n(y) + same.sum()


def _copied_onto_itself(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 2:].copy_(y[:, :2])
    y[:, 1::2] = y[:, :2].clone()
    return m.n(y)


def _nothing_is_left_of_it(m: Any, x: Tensor) -> Tensor:
    y, z = m.a(x), m.b(x)
    z[:, 2:].copy_(y[:, 1::2] * 2)
    y[:, 0:1].fill_(0.5)
    y[:, 0:1].mul_(2.0).add_(1.0)
    z[:, 1:3] = 0.25
    z[:, 3].zero_()
    z[:, :, 1:] -= m.c(x)[:, :, 1:]
    return m.n(y) + torch.tanh(z)


def _by_calls_of_a_module(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    part, same = y[:, 2:], m.write(y)
    m.write(part.relu_())
    return m.n(y) * same.sigmoid()


def _sizes_are_read_after(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:] = x
    y += x
    return F.layer_norm(y, y.shape[-1:])


def _read_by_two_merges(m: Any, x: Tensor) -> Tensor:
    """One could take in what is written, and read the value before; the other reads what was written."""
    y = m.a(x).relu()
    y += 1
    z = y + y
    return m.row(z) + m.n(z) + F.avg_pool2d(m.thin(z), 3, 1, 1)


class AddingInPlace(nn.Module):
    """Writes into its argument, and returns it."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(1.5)
        x += 0.2
        return x


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
@pytest.mark.parametrize(
    "body",
    [
        _written_through_names,
        _written_in_a_part_of_a_part,
        _read_by_two_names,
        _copied_onto_itself,
        _nothing_is_left_of_it,
        _by_calls_of_a_module,
        _sizes_are_read_after,
        _read_by_two_merges,
    ],
)
def test_writes_into_parts(body: Callable[[Any, Tensor], Tensor], with_inputs: bool):
    """Whatever is written into a part, and by whichever name it is read later, the output is that of the model."""
    parts = {name: conv(4, 4) for name in "abc"} | {"n": norm(4), "write": AddingInPlace()}
    parts |= {"row": conv_norm(4, 4, 1), "thin": seq(depthwise(4), norm(4))}
    model = build(lambda: Model(body, **parts), torch.float64)
    x = sample((2, 4, 8, 8))
    fused = reparamkit.fuse(model, x if with_inputs else None)
    for shape in ((2, 4, 8, 8), (1, 4, 5, 6), (0, 4, 8, 8)):
        torch.testing.assert_close(run(fused, sample(shape)), run(model, sample(shape)), rtol=1e-10, atol=1e-10)


class Rows(nn.Module):
    """A linear layer and a norm over the rows of all tokens, as LeViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.n(x.flatten(0, 1)).reshape_as(x)


def test_a_number_that_a_weight_gives_is_no_decision_of_code_before():
    """The code around has made plain numbers of sizes; that of the channels is none of them."""

    def forward(m: Any, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        return m.rows(x[:, : side * side].relu()) if side > 2 else m.rows(x)

    model = build(lambda: Model(forward, rows=Rows()))
    x = sample((2, 16, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in fused.modules())
    for batch in (1, 2, 5):
        x = sample((batch, 16, 8), torch.float32)
        assert error(run(fused, x), run(model, x)) <= 1e-6


def _part_of_a_copy(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is merged reads what the copy was made of: the copy is written into before."""
    y = x.clone()
    y[:, :1] = m.a(x.split([1, 2], 1)[0])
    z = y.reshape(-1, 3, 49).mT
    return (m.b(z) + z).mT.unflatten(-1, (7, 7)), y


def _behind_a_norm_as_a_function(m: Any, x: Tensor) -> Tensor:
    y = F.batch_norm(x, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias)
    y.transpose(1, -1).add_(1)
    return m.m(y)


def _of_a_stack(m: Any, x: Tensor) -> Tensor:
    """The layer that adds has a dimension more than what is stacked."""
    return torch.stack((x, x * 2), 1).transpose(1, -1).add_(1).transpose(1, -1)


def _of_a_turned_round_copy(m: Any, x: Tensor) -> Tensor:
    """No layer says how many channels a half of the input has, but the one that reads it."""
    a, b = x.chunk(2, 1)
    y = torch.cat((b, a), 1)
    z = y.clone()
    z[:, :1] += m.a(y.split([1, 2], 1)[0])
    return z


COPIES: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[], dict[str, nn.Module]], Shape]] = {
    "part": (_part_of_a_copy, lambda: {"a": conv(1, 1, 1), "b": nn.Linear(3, 3)}, (2, 3, 7, 7)),
    "norm": (_behind_a_norm_as_a_function, lambda: {"n": norm(6), "m": norm(6)}, (2, 6, 5, 4)),
    "stack": (_of_a_stack, dict, (2, 3, 3, 6)),
    "turned": (_of_a_turned_round_copy, lambda: {"a": conv(1, 1)}, (2, 3, 9, 5)),
}


@pytest.mark.parametrize("name", COPIES)
def test_what_is_written_into_a_copy_is_read_behind_it_only(name: str):
    body, parts, shape = COPIES[name]
    model, x = build(lambda: Model(body, **parts())), sample(shape, torch.float32)
    for found, wanted in zip(run(reparamkit.fuse(model, x), x), run(model, x), strict=True):
        assert error(found, wanted) <= 1e-6


def test_a_scale_of_a_part_is_proved_at_the_rank_that_its_split_has():
    """Without inputs the map may be one image, of which the split would take rows."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = F.conv1d(m.n(x + x), F.pad(m.weight, (1, 1))).split([1, 1], 1)
        return torch.cat((a, b * 2), 1)

    parts = {"n": nn.BatchNorm1d(2), "weight": nn.Parameter(torch.rand(2, 2, 1))}
    model = build(lambda: Model(forward, **parts))
    assert reparamkit.report(reparamkit.fuse(model)).merges


def test_what_is_added_from_place_to_place_costs_what_it_costs_when_fused_again():
    """A pass that adds is one operation per element, whether it is planned or read."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return torch.add(y, m.shift, alpha=0.5) + y

    parts = {"a": nn.Conv1d(4, 8, 4, 3, 3, bias=False), "shift": nn.Parameter(torch.rand(3))}
    model, x = build(lambda: Model(forward, **parts)), sample((2, 4, 6), torch.float32)
    fused = reparamkit.fuse(model, x)
    once, again = (reparamkit.report(each) for each in (fused, reparamkit.fuse(fused, x)))
    assert once.after.flops == again.before.flops < once.before.flops


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_what_is_written_for_a_model_without_weights_has_the_dtype_of_its_input(dtype: torch.dtype):
    """No parameter tells it; without an input nothing does."""
    model = Model(lambda m, x: (x * 2 + 1) * 3).eval()
    x = sample((2, 4, 6), dtype)
    fused = reparamkit.fuse(model, x, objective="launches")
    assert len(reparamkit.report(fused).merges) == 1
    assert fused(x).dtype == dtype
    assert error(run(fused, x), run(model, x)) <= 4 * torch.finfo(dtype).eps
    (refusal,) = reparamkit.explain(model, objective="launches").refusals
    assert "pass example_inputs" in refusal.reason


@pytest.mark.parametrize("example", [(2, 4, 1, 1), None])
def test_maps_of_one_pixel_that_a_linear_layer_insists_on_stay_the_only_ones(example: Shape | None):
    """A convolution would take any: the linear layer behind the flatten is what refused them."""
    model = build(lambda: seq(conv(4, 4, 1), nn.Flatten(), nn.Linear(4, 3)))
    fused = reparamkit.fuse(model, None if example is None else sample(example, torch.float32))
    x = sample((2, 4, 1, 1), torch.float32)
    assert error(run(fused, x), run(model, x)) <= 1e-6
    with pytest.raises(RuntimeError):
        model(sample(MAPS[0], torch.float32))
    with pytest.raises((RuntimeError, reparamkit.GuardError)):
        fused(sample(MAPS[0], torch.float32))


def test_a_scale_of_a_wider_dtype_changes_that_of_the_value():
    """Without an example nothing tells the dtype beside it; folded into the layer, the scale would lose its own."""
    scale = torch.rand(4, 1, 1, dtype=torch.float64)
    model = Model(lambda m, x: m.a(x) * m.g, a=conv(4, 4, 1), g=nn.Parameter(scale)).eval()
    fused = reparamkit.fuse(model)
    x = sample(MAPS[0], torch.float32)
    assert run(fused, x).dtype == run(model, x).dtype == torch.float64


class Spread(nn.Module):
    """A linear layer as GPT-2 has it: the weight is transposed, and the shape a sum of tuples."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(c_in, c_out)), nn.Parameter(torch.randn(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + (self.bias.shape[0],))  # noqa: RUF005


def test_a_shape_may_be_a_sum_of_two():
    """``x.size()[:-1] + (n,)`` has the sizes of both."""
    model, x = build(lambda: seq(Spread(4, 6), nn.Linear(6, 3))), sample((2, 5, 4), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert operations(fused, x) == "linear"
    for shape in ((2, 5, 4), (1, 7, 4)):
        other = sample(shape, torch.float32)
        assert error(run(fused, other), run(model, other)) <= 1e-6


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_pixels_that_are_joined_between_two_layers_are_joined_for_other_channels_too(offset: float):
    """``flatten(2)`` of a patch embedding does not see how many channels the layer behind it makes."""
    code = lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2)) + offset  # noqa: E731
    model = build(lambda: Model(code, a=conv(3, 8, 4, s=4, p=0), b=nn.Linear(8, 6)))
    fused = reparamkit.fuse(model, sample((2, 3, 8, 8), torch.float32))
    assert operations(fused, sample((2, 3, 8, 8), torch.float32)) == "conv"
    for shape in ((2, 3, 8, 8), (1, 3, 13, 4)):
        x = sample(shape, torch.float32)
        assert error(run(fused, x), run(model, x)) <= 1e-6


def test_what_writes_into_an_argument_that_it_gets_by_name_ends_in_no_error():
    """It has no first argument by position."""
    parts = {"conv": conv(4, 4, 1), "norm": norm(4), "act": nn.ReLU(inplace=True)}

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return m.act(input=y) + y

    model, x = build(lambda: Model(forward, **parts)), sample((2, 4, 6, 6), torch.float32)
    for example in (None, x):
        assert error(run(reparamkit.fuse(model, example), x), run(model, x)) <= 1e-5


def test_a_choice_by_a_condition_on_the_input_is_refused_as_one():
    """A condition is of another dtype than the numbers it chooses from, which is no change of dtype."""
    code = lambda m, x: m.n(torch.where(x > 0, m.a(x), x))  # noqa: E731
    model = build(lambda: Model(code, a=conv(4, 4, 1), n=norm(4)))
    refusals = reparamkit.explain(model, sample(MAPS[0], torch.float32)).refusals
    assert all("its condition is computed from the input" in each.reason for each in refusals)


def _skipped(write: Callable[[Tensor], Any], sign: int = 1) -> Callable[[Any, Tensor], Tensor]:
    """A layer over a concatenation, and a part of that, into which is written in between."""

    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.sigmoid(m.grow(x))
        z = m.mix(torch.cat([x, y], 1))
        write(y)
        return z + sign * y

    return body


WRITES_BEHIND_A_CONCATENATION: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda y: y,
    "a function": lambda y: y.tanh_(),
    "a view": lambda y: y.view(-1).tanh_(),
    "a part": lambda y: y[:, 1:].tanh_(),
    "a part of a part": lambda y: y[:, :, 1:][..., 0].fill_(0.5),
    "a scale": lambda y: y.mul_(0.5),
    "an index": lambda y: y.index_fill_(1, torch.tensor([0]), 2.0),
}


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", WRITES_BEHIND_A_CONCATENATION)
def test_a_skip_of_what_was_concatenated_is_read_as_it_is_then(name: str, sign: int, with_inputs: bool):
    """A layer takes the skip in, as long as that still is a part of what the layer reads."""
    body = _skipped(WRITES_BEHIND_A_CONCATENATION[name], sign)
    model = build(lambda: Model(body, grow=conv(4, 4), mix=conv(8, 4))).double()
    x = sample((2, 4, 5, 6))
    fused = reparamkit.fuse(model, x if with_inputs else None)
    assert error(run(fused, x), run(model, x)) <= 1e-12
    if name == "nothing" and with_inputs:
        assert len(reparamkit.report(fused).merges) == 1


def test_a_skip_of_a_part_of_unknown_size_is_read():
    """Without inputs nothing says how many channels the input has, until the layer over the concatenation does."""
    body = lambda m, x: m.mix(torch.cat([x, torch.sigmoid(m.grow(x))], 1)) * 0.2 + x  # noqa: E731
    model, x = build(lambda: Model(body, grow=conv(4, 4), mix=conv(8, 4))), sample((2, 4, 5, 6), torch.float32)
    fused = reparamkit.fuse(model)
    assert reparamkit.report(fused).merges
    assert error(run(fused, x), run(wide(model), x.double())) <= 1e-6


def sums_of_sums(m: Any, x: Tensor) -> Tensor:
    n, length, _ = x.shape
    x = x.reshape(n, length, 4)
    for _ in range(30):
        x = x + x.relu()
    heads = m.linear(x).view(n, length, 2, -1)
    _, _, _, width = heads.shape
    return m.out((heads * (1.0 / math.sqrt(width))).reshape(n, length, -1))


def test_what_is_computed_in_many_ways_is_asked_for_its_dtype_once():
    """A root of a size has the dtype of no tensor; there are as many ways to one as there are ways through the sums."""
    model = build(lambda: Model(sums_of_sums, linear=nn.Linear(4, 4), out=nn.Linear(4, 4)))
    x = sample((2, 3, 4), torch.float32)
    assert error(run(reparamkit.fuse(model), x), run(model, x)) <= 1e-5


def _row_in_vain(m: Any, x: Tensor) -> Tensor:
    y = m.b(m.a(x))
    y[:, :1] = 0
    return x


def _scale_in_vain(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    g = F.gelu(x)
    y = m.scales(g)
    z, t = m.a(y), m.b(y)
    y.mul_(0)
    return z, t, g


def _scale_of_one_reader_in_vain(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    g = F.gelu(x)
    y = m.scales(g)
    z = m.a(y)
    y[:, :1] = 0
    return z, g


@pytest.mark.parametrize("with_inputs", [True, False])
@pytest.mark.parametrize("objective", ["default", "params", "flops", "launches"])
@pytest.mark.parametrize("body", [_row_in_vain, _scale_in_vain, _scale_of_one_reader_in_vain])
def test_code_that_writes_in_vain_writes_into_no_other_value(body: Any, objective: Any, with_inputs: bool):
    """Where a merge leaves nothing in the place of layers, their value is what they read."""
    scales = seq(conv(4, 4, 1, g=4, bias=False), conv(4, 4, 1, g=4, bias=False))
    model = build(lambda: Model(body, a=conv(4, 4, 1, g=2), b=conv(4, 4, 1, g=4), scales=scales))
    x = sample((2, 4, 5, 6), torch.float32)
    fused = reparamkit.fuse(model, x.clone() if with_inputs else None, objective=objective)
    wanted, found = (run(m, x.clone()) for m in (model, fused))
    pairs = [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True)
    assert all(error(a, b) <= 1e-6 for a, b in pairs)


class WritingInto(nn.Module):
    """Code that cannot be traced, and that writes into what it gets."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return y
        y += 1
        x *= 2
        return x + y


class Handed(nn.Module):
    """Hands what a row gives, and its second argument, to such code. keeps: it reads that value afterwards too."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.row, self.writes, self.keeps = conv_norm(4, 4), WritingInto(), keeps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.row(x)
        seen = z.flatten(1)
        made = self.writes(z, y)
        return made + seen.view_as(y) if self.keeps else made.sigmoid()


@pytest.mark.parametrize("keeps", [False, True])
def test_what_untraced_code_writes_into_is_made_by_one_layer_if_nothing_else_sees_it(keeps: bool):
    """The other argument is the caller's, whose memory the first does not share."""
    model = build(lambda: Handed(keeps))
    x, y = sample((2, 4, 6, 6), torch.float32), sample((2, 4, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, (x, y.clone()))
    assert isinstance(fused.row[1], nn.BatchNorm2d if keeps else nn.Identity)
    mine, his = y.clone(), y.clone()
    assert error(fused(x, mine), model(x, his)) <= 1e-6
    assert torch.equal(mine, his)
