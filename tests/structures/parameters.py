"""Parameter arithmetic: weights that are computed, norms that are written as functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Model, OwnNorm, bias_free, conv, conv_norm, norm, parameter, seq, with_border
from .table import MAPS, ROWS, TOKENS_8, Structure


class FrozenNorm(nn.Module):
    """Batch norm as arithmetic on buffers, as in detectors."""

    def __init__(self, c: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.5), ("bias", 0.3), ("running_mean", 0.2), ("running_var", 1.3)):
            self.register_buffer(name, torch.linspace(value - 0.2, value + 0.2, c))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


def _fused_levels(m: Model, x: Tensor) -> Tensor:
    w = F.relu(m.w)
    w = w / (w.sum() + 1e-4)
    return m.c(w[0] * x.relu() + w[1] * x.sigmoid())


class StdConv(nn.Conv2d):
    """A convolution with weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SummedWeights(nn.Module):
    """weight = w1 + alpha w2."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(c, c, 3, 3)) for _ in range(2))
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w1 + self.alpha * self.w2, padding=1)


class OwnPadding(SummedWeights):
    """As many zeros as the kernel's own size asks for."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w1 * self.alpha, padding=self.w1.shape[-1] // 2)


class Functional(nn.Module):
    """Convolution, batch norm and linear layer as functions of parameters."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.gamma, self.beta = (
            nn.Parameter(torch.randn(c, c, 3, 3)),
            nn.Parameter(torch.ones(c)),
            nn.Parameter(torch.zeros(c)),
        )
        self.head = nn.Parameter(torch.randn(2 * c, c))
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, c))
        self.register_buffer("var", torch.linspace(0.5, 1.5, c))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = F.relu(F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, eps=1e-3))
        x = F.batch_norm(x.mean((2, 3)), self.mean, self.var)
        return F.linear(x, self.head)


class BorderNorm(nn.Module):
    """A batch norm, then padding by what it makes of zero: the way DBB keeps 1x1 - 3x3 rows exact."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.norm, self.pad = norm(channels), pad

    def forward(self, x: Tensor) -> Tensor:
        n, p = self.norm, self.pad
        assert n.running_mean is not None
        assert n.running_var is not None
        border = (n.bias - n.running_mean * n.weight / torch.sqrt(n.running_var + n.eps)).view(1, -1, 1, 1)
        return with_border(n(x), border, p)


class Edges(nn.Module):
    """A convolution whose kernel is written entry by entry, as ECB does in its own eval mode: 3x3 + scaled Sobel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.dense, self.point, self.scale = conv(c, c), conv(c, c, 1), parameter(c, 1, 1)
        self.register_buffer("sobel", torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]))

    def forward(self, x: Tensor) -> Tensor:
        mask, edges = self.scale * self.sobel, torch.zeros(self.dense.weight.shape, dtype=self.dense.weight.dtype)
        for k in range(len(edges)):
            edges[k, k] = mask[k]
        kernel = self.dense.weight + F.conv2d(edges, self.point.weight.permute(1, 0, 2, 3))
        inner = torch.ones(1, len(edges), 3, 3, dtype=kernel.dtype) * self.point.bias.view(1, -1, 1, 1)
        return F.conv2d(x, kernel, F.conv2d(inner, edges).view(-1) + self.dense.bias, padding=1)


class Standardised(nn.Conv2d):
    """Weight standardisation with one call for both statistics (BiT)."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(var + 1e-10), self.bias, padding=self.padding)


class Signs(torch.autograd.Function):
    """The sign of each weight, and one factor of their number."""

    @staticmethod
    def forward(ctx, w):
        return math.sqrt(2.0 / (w.shape[1] * w.shape[2] * w.shape[3])) * w.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class OneBit(nn.Conv2d):
    """A convolution whose weights are one bit each."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, Signs.apply(self.weight), padding=self.padding)


class Rotated(nn.Module):
    """A linear layer behind a rotation by blocks (OFT): R = (I - S) inverse(I + S), S skew."""

    def __init__(self, features: int, blocks: int) -> None:
        super().__init__()
        self.base, self.s = nn.Linear(features, features), parameter(blocks, features // blocks, features // blocks)

    def forward(self, x: Tensor) -> Tensor:
        skew = self.s - self.s.transpose(1, 2)
        eye = torch.eye(skew.shape[1], dtype=skew.dtype)
        turns = torch.bmm(eye - skew, torch.inverse(eye + skew))
        return self.base(x @ torch.block_diag(*torch.unbind(turns)))


class Spectrum(nn.Module):
    """A linear layer and the transform of a few learned frequencies (FourierFT)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.base, self.entries = nn.Linear(features, features), parameter(3)
        self.register_buffer("at", torch.tensor([[0, 1, 2], [1, 3, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        dense = torch.zeros(self.base.weight.shape, dtype=self.entries.dtype)
        dense[self.at[0], self.at[1]] = self.entries
        return self.base(x) + F.linear(x, torch.fft.ifft2(dense).real)


class LowRank(nn.Module):
    """A linear layer and a product of two thin ones beside it."""

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(features, features)
        self.a, self.b = nn.Linear(features, rank, bias=False), nn.Linear(rank, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))


FUNCTIONS = (
    Structure(
        "functional conv, bn, linear",
        lambda: Functional(4),
        MAPS,
        "conv relu mean linear",
        equation="K' = s K; W' = W diag(s)",
        near="functional norm in training mode",
    ),
    Structure(
        "functional norm after a layer",
        lambda: seq(conv(4, 5), OwnNorm(5)),
        MAPS,
        "conv",
        equation="F.batch_norm with training=False",
        near="functional norm in training mode",
    ),
    Structure(
        "frozen batch norm",
        lambda: seq(conv(4, 5), FrozenNorm(5)),
        MAPS,
        "conv",
        equation="arithmetic on buffers is a scale and a shift",
        source="torchvision, DETR",
        near="norm in training mode",
    ),
    Structure(
        "weight standardisation",
        lambda: seq(StdConv(4, 5, 3, padding=1), norm(5)),
        MAPS,
        "conv",
        equation="W = (V - mean(V)) / std(V), computed once",
        source="Qiao et al. 2019",
        near="a class with its own forward",
    ),
    Structure(
        "weight = w1 + alpha w2",
        lambda: seq(SummedWeights(4), norm(4)),
        MAPS,
        "conv",
        equation="the kernel is a sum of parameters",
        source="OREPA, Hu et al. 2022",
    ),
    Structure(
        "padding by half the size of the kernel",
        lambda: seq(OwnPadding(4), norm(4)),
        MAPS,
        "conv",
    ),
    Structure(
        "weight norm",
        lambda: seq(nn.utils.parametrizations.weight_norm(conv(4, 5)), norm(5)),
        MAPS,
        "conv",
        equation="W = g V / |V|, computed once",
        source="Salimans and Kingma 2016",
        near="tied weights",
    ),
    Structure(
        "spectral norm",
        lambda: seq(nn.utils.parametrizations.spectral_norm(conv(4, 5)), norm(5)),
        MAPS,
        "conv",
        equation="W = V / sigma(V), computed once",
        source="Miyato et al. 2018",
    ),
    Structure(
        "product with a constant matrix",
        lambda: Model(
            lambda m, x: (x @ m.a) @ m.b, a=nn.Parameter(torch.randn(6, 9)), b=nn.Parameter(torch.randn(9, 2))
        ),
        ROWS,
        "linear",
        equation="(x A) B = x (A B)",
    ),
)


PARAMETERS = (
    Structure(
        "a border that is the norm of zero",
        lambda: seq(bias_free(4, 4), BorderNorm(4, 1), nn.Conv2d(4, 6, 3, bias=False), norm(6)),
        MAPS,
        "conv",
        equation="pad(s x + t) with t = s pad(x) + t",
        source="DBB, Ding et al. 2021",
        near="a border that is no bias",
    ),
    Structure(
        "a border that is the bias",
        lambda: Model(
            lambda m, x: m.b(with_border(m.a(x), m.a.bias.view(1, -1, 1, 1), 1)), a=conv(4, 4, 1), b=nn.Conv2d(4, 6, 3)
        ),
        MAPS,
        "conv",
        equation="pad(K x + b) with b = K pad(x) + b",
        source="ECBSR, Zhang et al. 2021",
        near="a border that is no bias",
    ),
    Structure(
        "weight standardisation alone",
        lambda: Model(
            lambda m, x: F.conv2d(x, m.w - m.w.mean((1, 2, 3), keepdim=True), m.b),
            w=parameter(6, 4, 3, 3),
            b=parameter(6),
        ),
        MAPS,
        "conv",
        equation="W = V - mean(V), computed once",
        near="a class with its own forward",
    ),
    Structure(
        "weight norm alone",
        lambda: seq(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))),
        MAPS,
        "conv",
        equation="W = g V / |V|, computed once",
        source="Salimans and Kingma 2016",
        near="tied weights",
    ),
    Structure(
        "lora",
        lambda: LowRank(8, 2),
        TOKENS_8,
        "linear",
        equation="W' = W + scale B A",
        source="LoRA, Hu et al. 2021",
        near="expand then project",
    ),
    Structure(
        "implicit add and multiply",
        lambda: Model(
            lambda m, x: m.c(x + m.a) * m.b, c=conv(4, 6, 1), a=parameter(1, 4, 1, 1), b=parameter(1, 6, 1, 1)
        ),
        MAPS,
        "conv",
        equation="K' = m K, b' = m (b + K a)",
        source="YOLOR, Wang et al. 2021",
    ),
    Structure(
        "implicit add and multiply, each in the shape of the value",
        lambda: Model(
            lambda m, x: m.b.expand_as(y := m.c(m.a.expand_as(x) + x)) * y,
            c=conv(4, 6, 1),
            a=parameter(1, 4, 1, 1),
            b=parameter(1, 6, 1, 1),
        ),
        MAPS,
        "conv",
        equation="K' = m K, b' = m (b + K a)",
        source="YOLOR, Wang et al. 2021",
    ),
    Structure(
        "gated by lerp",
        lambda: Model(lambda m, x: torch.lerp(x, m.c(x), 0.3), c=conv_norm(4, 4)),
        MAPS,
        "conv",
        equation="x + a (s K x - x): K' = a s K + (1 - a) delta",
    ),
    Structure(
        "a kernel that is written in place",
        lambda: seq(Edges(4), nn.PReLU()),
        MAPS,
        "conv _prelu_kernel",
        equation="K' = K3 + (a M) K1, M a Sobel mask",
        source="ECBSR, Zhang et al. 2021",
    ),
    Structure(
        "both statistics of a weight",
        lambda: seq(Standardised(4, 5, 3, padding=1), norm(5)),
        MAPS,
        "conv",
        equation="W = (V - mean(V)) / std(V), computed once",
        source="BiT, Kolesnikov et al. 2020",
    ),
    Structure(
        "one bit per weight",
        lambda: seq(OneBit(4, 5, 3, padding=1, bias=False), norm(5)),
        MAPS,
        "conv",
        equation="W = sqrt(2 / (c k k)) sign(V), computed once",
        source="McDonnell 2018",
    ),
    Structure(
        "a rotation by blocks",
        lambda: Rotated(8, 2),
        TOKENS_8,
        "linear",
        equation="W' = W R, R = (I - S) inverse(I + S)",
        source="OFT, Qiu et al. 2023",
    ),
    Structure(
        "a spectrum",
        lambda: Spectrum(8),
        TOKENS_8,
        "linear",
        equation="W' = W + real(ifft(E)), E sparse",
        source="FourierFT, Gao et al. 2024",
    ),
    Structure(
        "factors that are integers",
        lambda: Model(
            lambda m, x: m.c(x) * (m.a // 2).view(-1, 1, 1) * m.b, c=conv(4, 4), a=torch.arange(4), b=torch.tensor(True)
        ),
        MAPS,
        "conv",
        equation="K' = (a // 2) K",
        near="a division that rounds",
    ),
    Structure(
        "normalised weights of a sum",
        lambda: Model(_fused_levels, w=parameter(2), c=conv_norm(4, 6)),
        MAPS,
        "relu mul sigmoid mul add conv",
        equation="w / (sum(w) + eps), once",
        source="BiFPN, Tan et al. 2020",
    ),
    Structure(
        "experts that are always mixed alike",
        lambda: Model(
            lambda m, x: F.conv2d(x, (m.r.view(-1, 1, 1, 1, 1) * m.w).sum(0), torch.matmul(m.r, m.b), padding=1),
            r=parameter(3),
            w=parameter(3, 6, 4, 3, 3),
            b=parameter(3, 6),
        ),
        MAPS,
        "conv",
        equation="K' = r1 K1 + r2 K2 + r3 K3",
        source="CondConv, Yang et al. 2019",
    ),
    Structure(
        "a number decides",
        lambda: Model(
            lambda m, x: m.a(x) + m.b(x) * m.s if m.s else m.a(x), a=conv(4, 4), b=conv(4, 4, 1), s=parameter(1)
        ),
        MAPS,
        "conv",
        equation="`if self.alpha:` is decided by the parameter",
        source="PP-YOLOE, Xu et al. 2022",
    ),
    Structure(
        "a constant matrix on the left",
        lambda: Model(lambda m, x: m.b @ (m.a @ x) + x, a=parameter(9, 5), b=parameter(5, 9)),
        ((2, 5, 8), (1, 5, 7)),
        "conv",
        needs_inputs=True,
        equation="B (A x) + x = (B A + I) x",
    ),
    Structure(
        "einsum after linear",
        lambda: Model(lambda m, x: torch.einsum("bnc,dc->bnd", m.a(x), m.w), a=nn.Linear(8, 8), w=parameter(6, 8)),
        TOKENS_8,
        "linear",
        needs_inputs=True,
        equation="V (W x + b) = (V W) x + V b",
    ),
)
