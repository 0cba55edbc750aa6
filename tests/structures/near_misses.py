"""Networks that look mergeable and are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import (
    Model,
    Scalar,
    Sum,
    conv,
    conv_norm,
    depthwise,
    in_parts,
    nearest,
    norm,
    parameter,
    seq,
    slopes,
    with_border,
)
from .norms import PreNorm
from .parts import filled_inside
from .table import MAPS, ROWS, TOKENS_8, NearMiss, Shape

TOKENS_5: tuple[Shape, ...] = ((2, 5, 8), (1, 5, 8))


def scaled_under_two_names(m: Any, x: Tensor) -> Tensor:
    scores = m.q(x) @ m.k(x).transpose(1, 2)
    same = scores.view(scores.shape)
    scores.mul_(0.5)
    return same.softmax(-1) * scores


class OwnForward(nn.Conv2d):
    """A convolution whose class says more than its weights: the output is clipped."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


class TwoReaders(nn.Module):
    """A convolution whose output is read by a norm and by an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) * torch.sigmoid(y)


class Doubling(nn.Module):
    """Writes into its argument, and returns nothing."""

    def forward(self, x: Tensor) -> None:
        x.mul_(2)


class AlwaysTraining(nn.BatchNorm2d):
    """A batch norm that ignores eval()."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)


def hooked(model: nn.Module, path: str, *, before: bool = False) -> nn.Module:
    """The model, with a hook on one module that doubles its output (or input)."""
    module = model.get_submodule(path)
    if before:
        module.register_forward_pre_hook(_double_input)
    else:
        module.register_forward_hook(_double_output)
    return model


def _double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def _double_input(module: nn.Module, args: Any) -> Any:
    return (2 * args[0],)


def tied(first: nn.Module, second: nn.Module, *between: nn.Module) -> nn.Module:
    """Two layers with others between them that share one weight."""
    second.weight = first.weight
    return seq(first, *between, second)


def _overwrites_its_source(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(x)
    a = m.a(y)
    y.mul_(2)
    return a + m.b(y) + torch.tanh(y)


def _overwrites_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y[:, :2]
    y[:, :1] = 0
    return m.norm(y)[:, 2:] + view


def _fills_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y[:, :2]
    view.fill_(0.5)
    return m.norm(y)[:, 2:] * torch.sigmoid(view)


def _overwrites_a_row(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :, 0] = 0
    return m.norm(y)


def _writes_into_its_input(m: Any, x: Tensor) -> Tensor:
    x += m.a(x)
    return m.norm(x)


def _activates_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    view = y[:]
    z = F.relu(y, inplace=True)
    return m.norm(view) + z


def _autocast(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    with torch.autocast("cpu", torch.bfloat16):
        x = m.b(x)
    return m.norm(x.to(m.norm.weight.dtype))


def _branches(body: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Model(body, a=conv(4, 4), b=conv(4, 4), norm=norm(4))


SQUARE: tuple[Shape, ...] = ((2, 5, 5), (1, 5, 5))


def _post_norm(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    return y + m.fc(y).relu()


def _looked_at(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    return m.fc(y) * y.amax(-1, keepdim=True)


class Storing(PreNorm):
    """A model that keeps what its norm gave."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.norm(x)
        return self.inner(self.last)


class Probed(PreNorm):
    """A model whose norm is also used by itself, by a method that is no part of forward."""

    def features(self, x: Tensor) -> Tensor:
        return self.norm(x)


NORM_MISSES = (
    NearMiss(
        "layer norm, read by a residual too",
        lambda: Model(_post_norm, norm=nn.LayerNorm(8), fc=nn.Linear(8, 8)),
        TOKENS_8,
        "native_layer_norm linear relu add",
        "cannot absorb it: add",
    ),
    NearMiss(
        "layer norm, looked at by a gate",
        lambda: Model(_looked_at, norm=nn.LayerNorm(8), fc=nn.Linear(8, 8)),
        TOKENS_8,
        "native_layer_norm linear amax mul",
        "cannot absorb it: amax",
    ),
    NearMiss(
        "layer norm over channels, mix of tokens",
        lambda: Model(lambda m, x: m.fc(m.norm(x).transpose(1, 2)), norm=nn.LayerNorm(5), fc=nn.Linear(5, 5)),
        SQUARE,
        "native_layer_norm linear add",
        "raise|dimension|several",
        needs_inputs=True,
    ),
    NearMiss(
        "layer norm, head tied to an embedding",
        lambda: tied(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8)),
        TOKENS_8,
        "linear relu native_layer_norm linear",
        "tied",
    ),
    NearMiss(
        "a hook on a layer norm",
        lambda: hooked(seq(nn.LayerNorm(8), nn.Linear(8, 8)), "0"),
        TOKENS_8,
        "native_layer_norm mul linear",
        "hooks",
    ),
    NearMiss(
        "a layer norm called twice",
        lambda: Model(lambda m, x: m.fc(m.norm(m.fc(m.norm(x)).relu())), norm=nn.LayerNorm(8), fc=nn.Linear(8, 8)),
        TOKENS_8,
        "native_layer_norm linear relu native_layer_norm linear",
        "called at 2 places",
    ),
    NearMiss(
        "a layer norm used by another method",
        lambda: Probed(nn.LayerNorm(8), nn.Linear(8, 8)),
        TOKENS_8,
        "native_layer_norm linear add",
        "method 'features'",
    ),
    NearMiss(
        "a layer norm whose weight the code reads too",
        lambda: Model(lambda m, x: m.fc(m.norm(x)).relu() * m.norm.weight, norm=nn.LayerNorm(8), fc=nn.Linear(8, 8)),
        TOKENS_8,
        "native_layer_norm linear relu mul",
        "reads its parameters",
    ),
    NearMiss(
        "a normalised value kept as an attribute",
        lambda: Storing(nn.LayerNorm(8), nn.Linear(8, 8)),
        TOKENS_8,
        "native_layer_norm linear",
        "as an attribute",
    ),
    NearMiss(
        "the value between two layers kept as an attribute",
        lambda: Storing(nn.Linear(8, 8), Scalar(8)),
        TOKENS_8,
        "linear mul",
        "as an attribute",
    ),
    NearMiss(
        "a weight rounded on the way",
        lambda: Model(lambda m, x: m.a(x * m.w.half().float()), a=nn.Linear(8, 8), w=parameter(8)),
        TOKENS_8,
        "_to_copy _to_copy mul linear",
        "rounded to float16",
    ),
    NearMiss(
        "group norm before padding",
        lambda: seq(nn.GroupNorm(2, 4), conv(4, 4)),
        MAPS,
        "native_group_norm conv",
        "padding|unknown rank",
    ),
)

NEAR_MISSES = (
    NearMiss(
        "a full matrix and one of rank one, behind a nonlinearity",
        lambda: Model(
            lambda m, x: m.fc(x) + torch.outer((x @ m.u).tanh(), m.u), fc=nn.Linear(6, 6), u=nn.Parameter(torch.rand(6))
        ),
        ROWS,
        "linear mv tanh mul add",
        "broadcasting|nothing|dimension",
        needs_inputs=True,
    ),
    NearMiss(
        "a batch of matrices that the input makes",
        lambda: Model(lambda m, x: torch.bmm(m.fc(x), x.mT @ x), fc=nn.Linear(8, 8)),
        TOKENS_8,
        "linear bmm bmm",
        "product of two values",
        needs_inputs=True,
    ),
    NearMiss(
        "a convolution of a map and of its mirror image, which stays mirrored",
        lambda: Model(lambda m, x: m.conv(x) + m.conv(x.flip(3)), conv=conv(4, 6)),
        MAPS,
        "conv flip conv add",
        "resample",
    ),
    NearMiss(
        "a sum with zeros that is spread over pixels",
        lambda: Model(
            lambda m, x: torch.zeros_like(x) + m.a(x), a=seq(nn.AdaptiveAvgPool2d(1), conv(4, 4, 1, bias=False))
        ),
        MAPS,
        "zeros_like mean conv add",
        "broadcasting is not merged",
        needs_inputs=True,
    ),
    NearMiss(
        "a parameter for every sample of another value",
        lambda: Model(
            lambda m, x: m.a(x[:1]) * m.s.expand(x.shape[0], -1, -1, -1), a=conv(4, 4), s=parameter(1, 4, 1, 1)
        ),
        MAPS,
        "conv mul",
        "may differ in shape",
        needs_inputs=True,
    ),
    NearMiss(
        "a part that is scaled, and read as it is",
        lambda: Model(
            lambda m, x: (lambda a, b: (a * m.s).sigmoid() * b.tanh() * a)(*m.conv(x).chunk(2, 1)),
            conv=conv(4, 8),
            s=parameter(4, 1, 1),
        ),
        MAPS,
        "conv mul sigmoid tanh mul mul",
        "would raise FLOPs",
        needs_inputs=True,
    ),
    NearMiss(
        "a scale of one of two slices that overlap",
        lambda: Model(
            lambda m, x: (lambda y: (y[:, :5] * m.s).sigmoid() * y[:, 3:])(m.conv(x)),
            conv=conv(4, 8),
            s=parameter(5, 1, 1),
        ),
        MAPS,
        "conv mul sigmoid mul",
        "needed elsewhere too",
        needs_inputs=True,
    ),
    NearMiss(
        "scores that are scaled, and read as they are",
        lambda: Model(
            lambda m, x: (lambda a: (a * 0.5).softmax(-1) * a)(m.q(x) @ m.k(x).transpose(1, 2)),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
        ),
        TOKENS_8,
        "linear linear bmm mul _softmax mul",
        "",
        needs_inputs=True,
    ),
    NearMiss(
        "scores that are scaled in place, and read under another name",
        lambda: Model(scaled_under_two_names, q=nn.Linear(8, 8), k=nn.Linear(8, 8)),
        TOKENS_8,
        "linear linear bmm mul_ _softmax mul",
        "",
        needs_inputs=True,
    ),
    NearMiss(
        "positions that differ from place to place",
        lambda: Model(
            lambda m, x: m.b(torch.take_along_dim(m.a(x), m.order, 1)),
            a=conv(4, 2, 1),
            b=conv(2, 4, 1),
            order=nn.Buffer(torch.tensor([[0, 1], [1, 0]])[None, :, :, None].repeat(1, 1, 4, 1)),
        ),
        ((2, 4, 8, 6), (1, 4, 8, 5)),
        "conv gather conv",
        "differ from place to place",
    ),
    NearMiss(
        "brought to a third of the size, a norm before",
        lambda: Model(
            lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=1 / 3, mode="bilinear")), a=norm(4), b=conv(4, 5, 1)
        ),
        ((2, 4, 8, 10), (1, 4, 9, 7)),
        "norm upsample_bilinear2d conv",
        "products with sizes are rounded|mixes several dimensions",
    ),
    NearMiss(
        "pixels less their mean, before a convolution",
        lambda: Model(lambda m, x: m.a(x - x.mean((2, 3), keepdim=True)), a=conv(4, 5)),
        MAPS,
        "mean sub conv",
        "broadcast",
    ),
    NearMiss(
        "a sum over tokens, divided by the number of features",
        lambda: Model(lambda m, x: m.b(m.a(x).sum(-2) / x.shape[-1]), a=nn.Linear(8, 6), b=nn.Linear(6, 5)),
        TOKENS_8,
        "linear sum linear",
        "a sum over an axis whose size is free",
    ),
    NearMiss(
        "a sum over a map, divided by the size of another axis",
        lambda: Model(
            lambda m, x: (lambda y: m.b(y.sum((2, 3)) / (y.shape[2] * y.size(2))))(m.a(x)),
            a=conv(4, 8, 1),
            b=nn.Linear(8, 5),
        ),
        ((2, 4, 8, 8), (1, 4, 9, 7)),
        "conv sum div linear",
        "a sum over an axis whose size is free",
    ),
    NearMiss(
        "scores scaled by a number per key",
        lambda: Model(
            lambda m, x: ((m.q(x) @ m.k(x).transpose(1, 2)) * m.s).softmax(-1),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
            s=parameter(5),
        ),
        TOKENS_5,
        "linear linear bmm mul _softmax",
        "",
        needs_inputs=True,
    ),
    NearMiss(
        "a product of activations, scaled",
        lambda: Model(lambda m, x: (x.relu() * x.sigmoid() * m.s).tanh(), s=parameter(4, 1, 1)),
        MAPS,
        "relu sigmoid mul mul tanh",
        "",
        needs_inputs=True,
    ),
    NearMiss(
        "a part of an activation, scaled",
        lambda: Model(
            lambda m, x: (lambda a, b: (a * m.s).sigmoid() * b)(*m.conv(x).relu().chunk(2, 1)),
            conv=conv(4, 8),
            s=parameter(4, 1, 1),
        ),
        MAPS,
        "conv relu mul sigmoid mul",
        "would raise",
        needs_inputs=True,
    ),
    NearMiss(
        "queries scaled by a number per token",
        lambda: Model(
            lambda m, x: (lambda q, k: (q * m.s).sigmoid() * k)(*m.qk(x).chunk(2, -1)),
            qk=nn.Linear(8, 8),
            s=parameter(5, 1),
        ),
        TOKENS_5,
        "linear mul sigmoid mul",
        "no single layer",
        needs_inputs=True,
    ),
    NearMiss(
        "a mask with infinity",
        lambda: Model(
            lambda m, x: m.a(x).masked_fill(m.mask, float("-inf")).relu(),
            a=conv(4, 4),
            mask=(torch.arange(4) > 1)[:, None, None],
        ),
        MAPS,
        "conv masked_fill relu",
        "not finite",
    ),
    NearMiss(
        "a transposed conv to the size of another",
        lambda: Model(
            lambda m, x: m.n(m.b(m.a(x).relu(), output_size=x.shape[2:])),
            a=conv(4, 4, s=2),
            b=nn.ConvTranspose2d(4, 4, 3, 2, 1),
            n=norm(4),
        ),
        MAPS,
        "conv relu conv norm",
        r"no fixed multiple|computed at run time",
    ),
    NearMiss(
        "a value without its history",
        lambda: Model(lambda m, x: m.a(x.detach()) + m.b(x), a=conv(4, 4), b=conv(4, 4, 1)),
        MAPS,
        "conv conv add",
        "history",
    ),
    *NORM_MISSES,
    NearMiss("relu between", lambda: seq(conv(4, 4), nn.ReLU(), norm(4)), MAPS, "conv relu norm", "ReLU|not affine"),
    NearMiss("padded 3x3, padded 3x3", lambda: seq(conv(4, 8, bias=False), conv(8, 4)), MAPS, "conv conv", "padding"),
    NearMiss("bias before padding", lambda: seq(conv(4, 8, 1), conv(8, 4)), MAPS, "conv conv", "padding"),
    NearMiss("norm before padding", lambda: seq(norm(4), conv(4, 4)), MAPS, "norm conv", "padding"),
    NearMiss(
        "bias before padding that is sampled",
        lambda: seq(conv(4, 16, 1), norm(16), conv(16, 4, s=2)),
        MAPS,
        "conv conv",
        "padding.*free",
    ),
    NearMiss(
        "scale and shift before padding",
        lambda: Model(
            lambda m, x: m.c(x * m.scale + m.shift),
            c=conv(4, 4),
            scale=parameter(1, 4, 1, 1),
            shift=parameter(1, 4, 1, 1),
        ),
        MAPS,
        "scale conv",
        "padding.*raise",
    ),
    NearMiss("average, then padded conv", lambda: seq(nn.AvgPool2d(2, 1), conv(4, 4)), MAPS, "pool conv", "padding"),
    NearMiss(
        "3x3, bilinear, 3x3",
        lambda: seq(conv(4, 4), nn.Upsample(scale_factor=2, mode="bilinear"), conv(4, 4)),
        MAPS,
        "conv upsample_bilinear2d conv",
        "resampled between two layers|full matrix|nothing linear",
    ),
    NearMiss(
        "a norm behind zero padding",
        lambda: Model(lambda m, x: m.norm(F.pad(m.conv(x), (2, 0, 0, 0))), conv=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv pad norm",
        "pad|zero",
    ),
    NearMiss("norm before a padded average", lambda: seq(norm(4), nn.AvgPool2d(3, 1, 1)), MAPS, "norm pool", "padding"),
    NearMiss(
        "expand then project",
        lambda: seq(conv(8, 2, 1, bias=False), conv(2, 8, 1)),
        ((2, 8, 6, 6), (1, 8, 5, 7)),
        "conv conv",
        "raise FLOPs",
    ),
    NearMiss(
        "depthwise then pointwise",
        lambda: seq(depthwise(8), conv(8, 8, 1)),
        ((2, 8, 6, 6), (1, 8, 5, 7)),
        "conv conv",
        "raise FLOPs",
    ),
    NearMiss(
        "depthwise then pointwise, a norm behind each",
        lambda: seq(depthwise(8, bias=False), norm(8), conv(8, 8, 1, bias=False), norm(8)),
        ((2, 8, 6, 6), (1, 8, 5, 7)),
        "conv conv",
        "raise FLOPs",
    ),
    NearMiss(
        "expand then project, a norm behind each",
        lambda: seq(conv_norm(8, 2, 1), conv_norm(2, 8, 1)),
        ((2, 8, 6, 6), (1, 8, 5, 7)),
        "conv conv",
        "raise FLOPs",
    ),
    NearMiss(
        "strips of a large cross",
        lambda: Sum([depthwise(4, (11, 1), p=(5, 0)), depthwise(4, (1, 11), p=(0, 5))]),
        MAPS,
        "conv conv add",
        "raise FLOPs",
    ),
    NearMiss(
        "norm before a transposed conv",
        lambda: seq(norm(4), nn.ConvTranspose2d(4, 6, 3, 2)),
        MAPS,
        "norm conv",
        "each position of a stride",
    ),
    NearMiss(
        "a border that is no bias",
        lambda: Model(
            lambda m, x: m.b(with_border(m.a(x), m.v, 1)),
            a=conv(4, 4, 1),
            b=nn.Conv2d(4, 6, 3),
            v=parameter(1, 4, 1, 1),
        ),
        MAPS,
        "conv pad conv",
        "other values than the bias",
        needs_inputs=True,
    ),
    NearMiss(
        "strides that differ",
        lambda: Model(
            lambda m, x: m.a(x) + F.interpolate(m.b(x), size=m.a(x).shape[2:]), a=conv(4, 4), b=conv(4, 4, s=2)
        ),
        MAPS[:1],
        "conv conv conv upsample_nearest2d add",
        "resample an axis differently|computed at run time",
    ),
    NearMiss(
        "nearest, padded conv",
        lambda: seq(nearest(2), conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "raise stored numbers|rank",
    ),
    NearMiss(
        "1x1, then nearest",
        lambda: seq(conv(4, 4, 1), nearest(2)),
        MAPS,
        "conv upsample_nearest2d",
        "raise",
        objective="flops",
    ),
    NearMiss(
        "nearest by a factor that float32 does not hold",
        lambda: seq(nearest(25), conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "full matrix|fixed sizes|not whole|save nothing",
        objective="flops",
    ),
    NearMiss(
        "nearest by a half",
        lambda: seq(nearest(1.5), conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "full matrix|fixed sizes|not whole|save nothing",
        objective="flops",
    ),
    NearMiss(
        "nearest to a size that is no multiple for others",
        lambda: Model(lambda m, x: m.a(F.interpolate(x, size=(16, 20))), a=conv(4, 4)),
        MAPS,
        "upsample_nearest2d conv",
        "full matrix|fixed sizes|rank|raise|save nothing",
        objective="flops",
    ),
    NearMiss(
        "bilinear, padded conv",
        lambda: seq(nn.UpsamplingBilinear2d(scale_factor=2), conv(4, 4)),
        MAPS,
        "upsample_bilinear2d conv",
        "full matrix|fixed sizes|save nothing",
        objective="flops",
    ),
    NearMiss(
        "one layer, twice on one value and once on another",
        lambda: Model(lambda m, x: m.a(x) + m.a(x) + m.a(x.relu()), a=conv(4, 4)),
        MAPS,
        "conv conv add relu conv add",
        "called at 3 places",
    ),
    NearMiss(
        "a map assigned to the inside of ones",
        lambda: Model(filled_inside, a=conv(4, 4, p=0), b=conv_norm(4, 4, 1), zeros=False),
        MAPS,
        "new_ones conv conv add",
        "may differ in shape|size is free",
    ),
    NearMiss(
        "a kernel that is a plain tensor, norm",
        lambda: Model(
            lambda m, x: m.norm(F.conv2d(x, m.kernel, padding=1, groups=4)),
            kernel=torch.ones(1, 1, 3, 3).expand(4, 1, 3, 3) / 9,
            norm=norm(4),
        ),
        MAPS,
        "conv norm",
        "would raise stored numbers",
    ),
    NearMiss(
        "a sum that broadcasts channels",
        lambda: Model(lambda m, x: x + m.a(x), a=conv(4, 1)),
        MAPS,
        "conv add",
        "broadcast|would raise FLOPs",
    ),
    NearMiss(
        "a sum that broadcasts pixels",
        lambda: Model(lambda m, x: x + m.a(F.adaptive_avg_pool2d(x, 1)), a=conv(4, 4, 1)),
        MAPS,
        "mean conv add",
        "broadcast",
    ),
    NearMiss(
        "a window of one size that is computed",
        lambda: Model(
            lambda m, x: m.fc(F.avg_pool2d(m.norm(x), x.size(2)).mean((2, 3))), norm=norm(4), fc=nn.Linear(4, 3)
        ),
        ((2, 4, 5, 8), (2, 4, 6, 7)),
        "norm pool mean linear",
        "not that of the axis",
    ),
    NearMiss(
        "norm in training mode", lambda: seq(conv(4, 4), AlwaysTraining(4)), MAPS, "conv add norm", "training mode"
    ),
    NearMiss(
        "norm without running statistics",
        lambda: seq(conv(4, 4), nn.BatchNorm2d(4, track_running_stats=False)),
        MAPS,
        "conv norm",
        "statistics",
    ),
    NearMiss(
        "functional norm that updates its statistics",
        lambda: Model(
            lambda m, x: F.batch_norm(m.a(x), m.mean.clone(), m.var.clone(), training=True),
            a=conv(4, 4),
            mean=torch.zeros(4),
            var=torch.ones(4),
        ),
        MAPS,
        "conv norm",
        "written in place while the forward runs",
    ),
    NearMiss(
        "functional norm in training mode",
        lambda: Model(
            lambda m, x: F.batch_norm(m.a(x), None, None, m.norm.weight, m.norm.bias, training=True),
            a=conv(4, 4),
            norm=norm(4),
        ),
        MAPS,
        "conv norm",
        "training=True",
    ),
    NearMiss(
        "instance norm", lambda: seq(conv(4, 4), nn.InstanceNorm2d(4)), MAPS, "conv norm", "InstanceNorm|not affine"
    ),
    NearMiss(
        "a convolution called twice",
        lambda: Model(lambda m, x: m.norm(m.a(torch.relu(m.a(x)))), a=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv relu conv norm",
        "called at 2 places",
    ),
    NearMiss("an output used elsewhere", TwoReaders, MAPS, "conv norm sigmoid mul", "elsewhere|add work"),
    NearMiss(
        "one kernel of two convolutions, a norm behind each",
        lambda: Model(
            lambda m, x: m.a(F.conv2d(x, m.kernel)) * torch.relu(m.b(F.conv2d(x, m.kernel))),
            kernel=nn.Parameter(torch.rand(4, 4, 3, 3)),
            a=norm(4),
            b=norm(4),
        ),
        MAPS,
        "conv norm conv norm relu mul",
        "raise stored numbers",
    ),
    NearMiss("a hook on the convolution", lambda: hooked(conv_norm(4, 4), "0"), MAPS, "conv mul norm", "hooks"),
    NearMiss("a hook on the norm", lambda: hooked(conv_norm(4, 4), "1", before=True), MAPS, "conv mul norm", "hooks"),
    NearMiss(
        "a hook around one of them",
        lambda: hooked(seq(seq(conv(4, 4)), norm(4)), "0"),
        MAPS,
        "conv mul norm",
        "hooks",
    ),
    NearMiss(
        "averages that do not count padding",
        lambda: Sum([conv(4, 4), nn.AvgPool2d(3, 1, 1, count_include_pad=False)]),
        MAPS,
        "conv pool add",
        "resample an axis differently|full matrix",
    ),
    NearMiss(
        "instance norm by statistics of the input",
        lambda: Model(lambda m, x: F.instance_norm(m.a(x), eps=1e-3), a=conv(4, 4)),
        MAPS,
        "conv norm",
        "use_input_stats",
    ),
    NearMiss(
        "slopes of which one is not 1",
        lambda: seq(conv(4, 4), slopes(1.0, 1.0, 1.0 - 1e-6, 1.0), norm(4)),
        MAPS,
        "conv _prelu_kernel norm",
        "PReLU",
    ),
    NearMiss(
        "a shrinkage of nearly nothing",
        lambda: seq(conv(4, 4), nn.Softshrink(1e-6), norm(4)),
        MAPS,
        "conv softshrink norm",
        "not affine",
    ),
    NearMiss(
        "a division that rounds",
        lambda: Model(lambda m, x: m.b(torch.div(m.a(x), 1e-6, rounding_mode="floor")), a=conv(4, 4), b=norm(4)),
        MAPS,
        "conv div norm",
        "not understood|rounding",
    ),
    NearMiss(
        "a view of as many channels as a layer has",
        lambda: Model(
            lambda m, x: m.b(m.a(x.relu()).mean((2, 3), keepdim=True).view(-1, 6)), a=conv(4, 6, 1), b=nn.Linear(6, 3)
        ),
        MAPS,
        "relu conv mean linear",
        "cannot be followed|before an average|rank of this tensor",
    ),
    NearMiss(
        "a norm before a mix of tokens, counted from the end",
        lambda: Model(
            lambda m, x: m.b(m.a(x.relu()).transpose(-1, -2)).transpose(-1, -2), a=nn.LayerNorm(8), b=nn.Linear(16, 5)
        ),
        ((2, 16, 8), (1, 16, 8)),
        "relu native_layer_norm linear add",
        "no single layer|several dimensions|rank of this tensor",
    ),
    NearMiss(
        "an adaptive average of windows that differ",
        lambda: Model(lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 3)), a=conv(4, 4), b=conv(4, 4)),
        MAPS,
        "conv _adaptive_avg_pool2d conv",
        "resampled between two layers",
    ),
    NearMiss(
        "averages with ceil_mode",
        lambda: Sum([conv(4, 4, 2, s=2, p=0), nn.AvgPool2d(2, 2, ceil_mode=True)]),
        ((2, 4, 8, 8), (1, 4, 6, 4)),
        "conv pool add",
        "ceil_mode|full matrix|fixed sizes",
    ),
    NearMiss(
        "reflected padding",
        lambda: Sum([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), conv(4, 4)]),
        MAPS,
        "reflection_pad2d conv conv add",
        "resample an axis differently|full matrix",
    ),
    NearMiss(
        "F.pad with a value",
        lambda: Model(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), value=0.5)), a=conv(4, 4, p=0)),
        MAPS,
        "pad conv",
        "value 0.5",
    ),
    NearMiss(
        "convolutions on unequal parts",
        in_parts([1, 3], lambda: conv(1, 4), lambda: conv(3, 6)),
        MAPS,
        "conv conv cat",
        "raise FLOPs",
        needs_inputs=True,
    ),
    NearMiss(
        "depthwise on all channels but some",
        in_parts([1, 3], nn.Identity, lambda: depthwise(3)),
        MAPS,
        "conv cat",
        "raise FLOPs",
        needs_inputs=True,
    ),
    NearMiss(
        "a norm behind two activations",
        lambda: Model(lambda m, x: m.norm(torch.cat([x.relu(), m.a(x).relu()], 1)), a=conv(4, 4), norm=norm(8)),
        MAPS,
        "relu conv relu cat norm",
        "raise FLOPs|nothing linear",
    ),
    NearMiss(
        "concatenated along the batch",
        lambda: Model(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 0)), a=conv(4, 4), b=conv(4, 4), norm=norm(4)),
        MAPS[:1],
        "conv conv cat norm",
        "raise|nothing linear|several dimensions",
    ),
    NearMiss(
        "tied weights", lambda: tied(conv(4, 4), conv(4, 4), norm(4), nn.ReLU()), MAPS, "conv norm relu conv", "tied"
    ),
    NearMiss(
        "F.dropout by default",
        lambda: Model(lambda m, x: m.norm(F.dropout(m.a(x), 1e-9)), a=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv bernoulli_ div_ mul norm",
        "dropout",
    ),
    NearMiss(
        "a leaky slope near 1",
        lambda: seq(conv(4, 4), nn.LeakyReLU(0.999), norm(4)),
        MAPS,
        "conv leaky_relu norm",
        "LeakyReLU|not affine",
    ),
    NearMiss(
        "a class with its own forward",
        lambda: seq(OwnForward(4, 4, 3, padding=1), norm(4)),
        MAPS,
        "conv clamp norm",
        "not affine|forward",
    ),
    NearMiss(
        "an input overwritten in between",
        _branches(_overwrites_its_source),
        MAPS,
        "relu conv mul_ conv add tanh add",
        "in-place|in place",
    ),
    NearMiss(
        "a slice up to a position that is computed otherwise",
        lambda: Model(lambda m, x: m.norm(m.conv(x)[..., : x.shape[-1] // 2]), conv=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv norm",
        "bounds are computed at run time",
    ),
    NearMiss(
        "a slice that counts from the end where there is little",
        lambda: Model(lambda m, x: m.norm(m.conv(x)[..., : x.shape[-1] - 3]), conv=conv(4, 4), norm=norm(4)),
        MAPS,
        "conv norm",
        "bounds are computed at run time",
    ),
    NearMiss(
        "a slice that is overwritten, and read by another name",
        _branches(_overwrites_a_view),
        MAPS,
        "conv fill_ norm add",
        "in-place|in place",
    ),
    NearMiss(
        "a part that is filled, and read by its own name",
        _branches(_fills_a_view),
        MAPS,
        "conv fill_ norm sigmoid mul",
        "in-place|in place",
    ),
    NearMiss(
        "a layer that writes into what others read",
        lambda: Model(
            lambda m, x: (lambda y: (m.write(y), m.norm(y))[1])(m.conv(x)),
            conv=conv(4, 4),
            write=Doubling(),
            norm=norm(4),
        ),
        MAPS,
        "conv mul_ norm",
        "in-place|in place",
    ),
    NearMiss(
        "a row of pixels that is overwritten",
        _branches(_overwrites_a_row),
        MAPS,
        "conv fill_ norm",
        "in-place|in place",
    ),
    NearMiss(
        "the input of the model is overwritten",
        _branches(_writes_into_its_input),
        MAPS,
        "conv add norm",
        "in-place|in place",
    ),
    NearMiss(
        "an activation in place, its input read again",
        _branches(_activates_in_place),
        MAPS,
        "conv relu norm add",
        "in-place|in place",
    ),
    NearMiss(
        "autocast between", _branches(_autocast), MAPS, "conv _to_copy _to_copy _to_copy conv _to_copy norm", "autocast"
    ),
    NearMiss(
        "norm over tokens, as many as channels",
        lambda: seq(nn.Linear(5, 5), nn.BatchNorm1d(5)),
        SQUARE,
        "linear norm",
        "dimension|axis|axes|fixed|raise",
        needs_inputs=True,
    ),
    NearMiss(
        "norm over channels, mix of tokens",
        lambda: Model(lambda m, x: m.fc(m.norm(x)), norm=nn.BatchNorm1d(5), fc=nn.Linear(5, 5)),
        SQUARE,
        "norm linear",
        "dimension|axis|axes|fixed|raise",
        needs_inputs=True,
    ),
    NearMiss(
        "a skip around a concatenation of what is computed from it",
        lambda: Model(lambda m, x: m.fuse(torch.cat([m.grow(x), x], 1).tanh()) + x, grow=conv(4, 4), fuse=conv(8, 4)),
        MAPS,
        "conv cat tanh conv add",
        "would",
    ),
)
