"""One layer or sum in the ways that code writes it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, Sum, conv, conv_norm, norm, parameter, repvgg, seq, slopes
from .table import FIXED, MAPS, ROWS, TOKENS_8, Structure


class UncheckedNorm(nn.modules.batchnorm._BatchNorm):
    """For inputs of any rank, as made of a synchronised norm."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class StandardisedConv(nn.Conv2d):
    """The forward is torch's, what it calls is not."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def _spelled(body: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """3x3, 1x1 and identity branches, added up as `body` says."""
    return lambda: Model(body, a=conv_norm(4, 4), b=conv_norm(4, 4, 1), c=norm(4))


def _in_place(m: Any, x: Tensor) -> Tensor:
    out = m.a(x)
    out += m.b(x)
    out += m.c(x)
    return out


def _in_place_method(m: Any, x: Tensor) -> Tensor:
    return m.a(x).add_(m.b(x)).add_(m.c(x))


def _accumulated(m: Any, x: Tensor) -> Tensor:
    out: Any = 0
    for branch in (m.a, m.b, m.c):
        out += branch(x)
    return out


def mean_by_size(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.sum((2, 3)) / (y.shape[2] * y.shape[3]))  # type: ignore[no-any-return]


def mean_by_share(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b((1 / (y.shape[2] * y.shape[3])) * y.sum((2, 3)))  # type: ignore[no-any-return]


def mean_by_axes(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.sum(3).sum(2) / y.size(3) / y.size(2))  # type: ignore[no-any-return]


def mean_by_number(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.sum((2, 3)) / (y.numel() // (y.size(0) * y.size(1))))  # type: ignore[no-any-return]


def _per_channel(m: Any, x: Tensor) -> Tensor:
    _, channels, _, _ = x.shape
    return m.b(channels * m.a(x).relu())  # type: ignore[no-any-return]


def _filled_up(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out += m.a(x)
    for branch in (m.b, m.c):
        out = out + branch(x)
    return out


def _maybe(m: Any, x: Tensor) -> Tensor:
    identity = 0 if m.c is None else m.c(x)
    return m.a(x) + m.b(x) + identity


def _written_into(m: Any, x: Tensor) -> Tensor:
    out = m.a(x)
    out.add_(m.b(x))
    out.add_(m.c(x))
    return out


def _constants_in_a_row(m: Any, x: Tensor) -> Tensor:
    """Every way to multiply by a constant matrix, between two layers."""
    y = torch.einsum("...i,oi->...o", m.a(x), m.w)
    y = torch.einsum(y, [0, 1, 2], m.w, [2, 3], [0, 1, 3])
    y = torch.tensordot(torch.inner(y, m.w), m.w, dims=([-1], [0]))
    y = (m.w.mT @ y.mT).mT.matmul(m.w)
    return torch.einsum("bnhd,hdo->bno", y.unflatten(-1, (2, 4)), m.h) @ m.v


def _masked(m: Any, x: Tensor) -> Tensor:
    y = torch.where(m.mask, m.a(x), m.b(x)).masked_fill(~m.mask, 0.5)
    return torch.addcdiv(torch.add(y, m.w, alpha=0.1), x, m.w, value=0.3)


def _of_its_dtype(m: Any, x: Tensor) -> Tensor:
    numbers = [1.0, 2.0, 3.0, 4.0]
    y = m.a(x) * x.new_tensor(numbers)[:, None, None] + torch.tensor(numbers).to(x)[:, None, None]
    return F.conv2d(y.to(x), m.w.to(x)) * x.new_full((4, 1, 1), 0.3)


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a + b + c": lambda m, x: m.a(x) + m.b(x) + m.c(x),
    "a + (b + c)": lambda m, x: m.a(x) + (m.b(x) + m.c(x)),
    "+=": _in_place,
    "add_": _in_place_method,
    "add_, its result unused": _written_into,
    "0, then +=": _accumulated,
    "zeros, then +=": _filled_up,
    "zeros of a branch": lambda m, x: torch.zeros_like(a := m.a(x)).add_(a) + (m.b(x) + m.c(x)),
    "a branch that may be missing": _maybe,
    "torch.add": lambda m, x: torch.add(torch.add(m.a(x), m.b(x)), other=m.c(x)),
    "alpha": lambda m, x: torch.add(m.a(x).add(m.b(x), alpha=0.5), m.c(x), alpha=-2),
    "a concatenation of new axes": lambda m, x: torch.cat([m.a(x)[None], m.b(x)[None], m.c(x)[None]]).sum(axis=0),
    "sum of a list": lambda m, x: sum([m.a(x), m.b(x), m.c(x)]),
    "sum of a generator": lambda m, x: sum(branch(x) for branch in m.children()),
    "reduce": lambda m, x: reduce(operator.add, (branch(x) for branch in m.children())),
    "layers called one by one": lambda m, x: m.a[1](m.a[0](x)) + m.b[1](m.b[0](x)) + m.c(x),
    "keyword": lambda m, x: m.a(input=x) + m.b(input=x) + m.c(input=x),
    "numbers": lambda m, x: 1 * m.a(x) + m.b(x) / 1 + 0 - (-m.c(x)),
}


def _filled_zeros(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    for branch in (m.a, m.b, m.c):
        out += branch(x)
    return out


def _counted_zeros(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_zeros(n, c, h, w) + m.a(x) + m.b(x) + m.c(x) + torch.full((n, 1, h, w), 0.5, dtype=x.dtype)


def _halved_zeros(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    out = torch.zeros(n, c, (h + 1) // 2, (1 + w) // 2, dtype=x.dtype)
    for branch in (m.a, m.b):
        out = out + branch(x)
    return out


def _for_every_sample(m: Any, x: Tensor) -> Tensor:
    shift = m.c.bias.view(1, -1, 1, 1)
    y = shift.expand_as(x) + m.a(x) * shift.repeat(x.shape[0], 1, 1, 1)
    return y + m.b(x) * shift.expand(x.shape[0], -1, x.shape[2], x.shape[3]) + m.c(x)


SPREAD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "zeros of a shape, then +=": _filled_zeros,
    "zeros and halves of the sizes": _counted_zeros,
    "a parameter for every sample": _for_every_sample,
}


SPELLINGS = (
    *(
        Structure(
            name,
            _spelled(body),
            MAPS,
            "conv",
            equation="K' = K3 + pad(K1) + delta, with the factors of the sum",
        )
        for name, body in BODIES.items()
    ),
    *(
        Structure(
            name,
            _spelled(body),
            MAPS,
            "conv",
            needs_inputs=True,
            equation="K' = K3 + pad(K1) + delta, as zeros and parameters are alike at any size of x",
        )
        for name, body in SPREAD.items()
    ),
    Structure(
        "zeros of half the sizes, rounded up",
        lambda: Model(_halved_zeros, a=conv_norm(4, 4, s=2), b=conv_norm(4, 4, 1, s=2)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = K3 + pad(K1): (n + 1) // 2 positions are those of a stride of 2",
    ),
    Structure(
        "nested",
        lambda: seq(seq(seq(conv(4, 5)), seq(nn.Identity(), seq(norm(5))))),
        MAPS,
        "conv",
        equation="K' = s K, b' = s (b - mu) + beta",
    ),
    Structure(
        "a list of blocks",
        lambda: Model(
            lambda m, x: reduce(lambda y, block: F.relu(block(y)), m.blocks, x),
            blocks=nn.ModuleList(repvgg(4) for _ in range(3)),
        ),
        MAPS,
        "conv relu conv relu conv relu",
        equation="K' = s3 K3 + pad(s1 K1) + s0 delta, in each block",
    ),
    Structure(
        "a dict of branches",
        lambda: Model(
            lambda m, x: sum(m.branches[k](x) for k in ("three", "one")),
            branches=nn.ModuleDict({"one": conv_norm(4, 4, 1), "three": conv_norm(4, 4)}),
        ),
        MAPS,
        "conv",
        equation="K' = s3 K3 + pad(s1 K1)",
    ),
)


SPELLED = (
    Structure(
        "products with constants",
        lambda: Model(_constants_in_a_row, a=nn.Linear(8, 8), w=parameter(8, 8), h=parameter(2, 4, 8), v=parameter(8)),
        TOKENS_8,
        "linear",
        equation="w' = v' W7 ... W1",
    ),
    Structure(
        "experts with fixed gates",
        lambda: Model(
            lambda m, x: torch.einsum("e,ebtd->btd", m.g.softmax(0), torch.stack([e(x) for e in m.experts])),
            g=parameter(3),
            experts=nn.ModuleList(nn.Linear(8, 6) for _ in range(3)),
        ),
        TOKENS_8,
        "linear",
        needs_inputs=True,
        equation="W' = sum_e g_e W_e",
        source="SMEAR, Muqeeth et al. 2023",
    ),
    Structure(
        "a product in other dimensions",
        lambda: Model(lambda m, x: torch.einsum("bnd,dho->bnho", m.a(x), m.h), a=nn.Linear(8, 8), h=parameter(8, 2, 3)),
        TOKENS_8,
        "linear",
        equation="W' = H W, seen as (heads, size)",
    ),
    Structure(
        "constant masks",
        lambda: Model(
            _masked, a=conv(4, 4), b=conv(4, 4, 1), w=parameter(4, 1, 1), mask=(torch.arange(4) > 1)[:, None, None]
        ),
        MAPS,
        "conv",
        equation="where(m, f, g) = m f + (1 - m) g",
        near="a mask with infinity",
    ),
    Structure(
        "constants of a value's dtype",
        lambda: Model(_of_its_dtype, a=conv(4, 4), w=parameter(4, 4, 1, 1)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = W c K, b' = W (c b + c)",
    ),
    Structure(
        "a channel three times",
        lambda: Model(lambda m, x: m.a(x[:, :1].repeat(1, 3, 1, 1)), a=conv(3, 4)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = sum over the channels of K",
    ),
    Structure(
        "a transposed conv to a size",
        lambda: Model(
            lambda m, x: m.n(m.a(x, output_size=[2 * x.size(2), 2 * x.size(3)])),
            a=nn.ConvTranspose2d(4, 4, 3, 2, 1),
            n=norm(4),
        ),
        MAPS,
        "conv",
        equation="a size of stride times the input's is an output_padding",
        near="a transposed conv to the size of another",
    ),
    Structure(
        "synchronised norm, no momentum",
        lambda: seq(conv(4, 4), nn.SyncBatchNorm(4), nn.BatchNorm2d(4, momentum=None)),
        MAPS,
        "conv",
        equation="K' = s2 s1 K, b' = s2 (s1 b + t1) + t2",
    ),
    Structure(
        "a norm with a check of its own",
        lambda: seq(conv(4, 4), UncheckedNorm(4)),
        MAPS,
        "conv",
        equation="K' = s K, b' = s (b - mu) + beta",
    ),
    Structure(
        "a convolution that standardises its weight on the way",
        lambda: seq(StandardisedConv(4, 4, 3), norm(4)),
        MAPS,
        "conv",
        equation="K' = s (K - mean(K))",
        source="Qiao et al. 2019, Weight Standardization",
    ),
    Structure(
        "instance norm with statistics",
        lambda: seq(conv(4, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        MAPS,
        "conv",
        equation="with running statistics it is a batch norm",
        near="instance norm",
    ),
    Structure(
        "instance norm as a function",
        lambda: Model(
            lambda m, x: F.instance_norm(m.a(x), m.n.running_mean, m.n.running_var, m.n.weight, use_input_stats=False),
            a=conv(4, 4),
            n=norm(4),
        ),
        MAPS,
        "conv",
        equation="with running statistics it is a batch norm",
        near="instance norm by statistics of the input",
    ),
    Structure(
        "torch.batch_norm",
        lambda: Model(
            lambda m, x: torch.batch_norm(
                m.a(x), m.n.weight, m.n.bias, m.n.running_mean, m.n.running_var, False, 0.1, 1e-3, False
            ),
            a=conv(4, 4),
            n=norm(4),
        ),
        MAPS,
        "conv",
        equation="K' = s K, b' = s (b - mu) + beta",
        near="functional norm in training mode",
    ),
    Structure(
        "batch norm by keywords",
        lambda: Model(
            lambda m, x: F.batch_norm(
                running_var=m.n.running_var, running_mean=m.n.running_mean, bias=m.n.bias, input=m.a(x), eps=0.1
            ),
            a=conv(4, 4),
            n=norm(4),
        ),
        MAPS,
        "conv",
        equation="K' = s K, b' = s (b - mu) + beta",
        near="functional norm in training mode",
    ),
    Structure(
        "slopes of 1",
        lambda: seq(conv(4, 4), slopes(1.0, 1.0, 1.0, 1.0), norm(4)),
        MAPS,
        "conv",
        equation="PReLU of slope 1 is the identity",
        near="slopes of which one is not 1",
    ),
    Structure(
        "true_divide and negative",
        lambda: Model(lambda m, x: torch.true_divide(torch.negative(m.a(x)), m.w), a=conv(4, 4), w=parameter(4, 1, 1)),
        MAPS,
        "conv",
        equation="K' = -K / w, b' = -b / w",
    ),
    Structure(
        "averages with a divisor of their own",
        lambda: Sum([conv(4, 4), nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=5)]),
        MAPS,
        "conv",
        equation="K' = K + 1 / divisor on the diagonal",
        near="averages that do not count padding",
    ),
    Structure(
        "averages with ceil_mode that cuts nothing",
        lambda: Sum([conv(4, 4), nn.AvgPool2d(3, 1, 1, ceil_mode=True)]),
        MAPS,
        "conv",
        equation="K' = K + 1 / k^2 on the diagonal",
        near="averages with ceil_mode",
    ),
    Structure(
        "an adaptive average of equal windows",
        lambda: Model(
            lambda m, x: (lambda y: m.b(y) + F.adaptive_avg_pool2d(y, (2, None)))(x.reshape(-1, 4, 4, 6)),
            b=conv(4, 4, (2, 1), s=(2, 1), p=0),
        ),
        FIXED,
        "conv",
        needs_inputs=True,
        equation="K' = K + 1 / 2 on the diagonal, windows of 2 rows at stride 2",
        near="an adaptive average of windows that differ",
    ),
    Structure(
        "a convolution as a product with windows",
        lambda: Model(
            lambda m, x: m.n((m.w @ F.unfold(x, 3, padding=1)).view(x.shape[0], 6, *x.shape[2:])),
            w=parameter(6, 36),
            n=norm(6),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K'[o, c, t] = s W[o, 9 c + t], b' = t",
    ),
    Structure(
        "an ensemble of heads, stacked and averaged",
        lambda: Model(
            lambda m, x: torch.stack([head(x) for head in m.heads], -1).mean(-1),
            heads=nn.ModuleList(nn.Linear(6, 3) for _ in range(3)),
        ),
        ROWS,
        "linear",
        needs_inputs=True,
        equation="W' = mean W_i, b' = mean b_i",
    ),
    Structure(
        "a sum of one column with several",
        lambda: Model(
            lambda m, x: (lambda a: m.value(x) + a - a.mean(-1, keepdim=True))(m.advantage(x)),
            value=nn.Linear(6, 1),
            advantage=nn.Linear(6, 5),
        ),
        ROWS,
        "linear",
        needs_inputs=True,
        equation="W' = 1 w + (I - 1 1^T / n) W_a",
        source="Dueling networks, Wang et al. 2016",
        near="a sum that broadcasts pixels",
    ),
    Structure(
        "the mean over a map, as a sum and a division by its size",
        lambda: Model(mean_by_size, a=conv(4, 8, 1), b=nn.Linear(8, 5)),
        MAPS,
        "mean linear",
        equation="(1 / h w) sum_p K x_p = K (mean x)",
        near="a sum over a map, divided by the size of another axis",
    ),
    Structure(
        "the mean over a map, as a sum and one over its size",
        lambda: Model(mean_by_share, a=conv(4, 8, 1), b=nn.Linear(8, 5)),
        MAPS,
        "mean linear",
        equation="(1 / h w) sum_p K x_p = K (mean x)",
        near="a sum over a map, divided by the size of another axis",
    ),
    Structure(
        "activations times how many channels the input has, which code takes before any layer",
        lambda: Model(_per_channel, a=conv(4, 8), b=conv(8, 5)),
        MAPS,
        "conv relu conv",
    ),
    Structure(
        "channels less their mean, before a convolution",
        lambda: Model(lambda m, x: m.a(x - x.mean(1, keepdim=True)), a=conv(4, 5)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = K (I - 1 1^T / c)",
        near="pixels less their mean, before a convolution",
    ),
    Structure(
        "a sum over a map, divided by the share of one channel in all numbers",
        lambda: Model(mean_by_number, a=conv(4, 8, 1), b=nn.Linear(8, 5)),
        MAPS,
        "mean linear",
    ),
    Structure(
        "a sum over a map, divided by the product of its sizes, which code takes from the end",
        lambda: Model(
            lambda m, x: (lambda y: m.b(y.sum((-2, -1)) / math.prod(y.shape[-2:])))(m.a(x)),
            a=conv(4, 8, 1),
            b=nn.Linear(8, 5),
        ),
        MAPS,
        "mean linear",
    ),
    Structure(
        "a sum over tokens, divided by how many there are, counted from the end",
        lambda: Model(
            lambda m, x: (lambda y: m.b(y.sum(-2) / y.shape[-2]))(m.a(x)), a=nn.Linear(8, 6), b=nn.Linear(6, 5)
        ),
        TOKENS_8,
        "mean linear",
        near="a sum over tokens, divided by the number of features",
    ),
    Structure(
        "the mean over a map, as two sums and two divisions",
        lambda: Model(mean_by_axes, a=conv(4, 8, 1), b=nn.Linear(8, 5)),
        MAPS,
        "mean mean linear",
        equation="(1 / h) (1 / w) sum_i sum_j K x_ij = K (mean x)",
        near="a sum over a map, divided by the size of another axis",
    ),
)
