"""Concatenation and split: layers on parts of an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Model, conv, conv_norm, depthwise, in_parts, norm, parameter, seq
from .parameters import FrozenNorm
from .table import MAPS, TOKENS_8, Structure


class HeadsInPlace(nn.Module):
    """Scores of two heads, of as many samples and tokens as the input has, scaled where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k = (layer(x).view(n, t, 2, 4).transpose(1, 2) for layer in (self.q, self.k))
        scores = q @ k.transpose(-2, -1)
        scores.div_(2.0)
        return scores.softmax(-1)


class Attention(nn.Module):
    """Queries, keys and values of different widths, used at once and by a module of their own; a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 4), nn.Linear(8, 4, bias=False)
        self.v, self.out = nn.Linear(8, 6), nn.Linear(6, 8)
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x) * 0.5
        k = self.k(x).transpose(1, 2)
        return x + self.out(self.mix(q, k, self.v(x)))


class Mix(nn.Module):
    """The product of attention and values."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k, -1) @ v


class FusedAttention(nn.Module):
    """Queries, keys and values of one layer, by heads; the queries are scaled."""

    def __init__(self, scale: float | nn.Parameter, in_place: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.scale, self.in_place = nn.Linear(8, 24), nn.Linear(8, 8), scale, in_place

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.in_place:
            q *= self.scale
        else:
            q = q * self.scale
        mix = torch.softmax(q @ k.transpose(-2, -1), -1)
        return self.out((mix @ v).transpose(1, 2).reshape(b, n, c))


def gated(body: Callable[[nn.Module, Tensor, Tensor], Tensor], **parts: object) -> Model:
    """A function of the two halves of a convolution."""
    return Model(lambda m, x: body(m, *m.conv(x).chunk(2, 1)), conv=conv(4, 8), **parts)


def overwritten(m: Any, x: Tensor) -> Tensor:
    """Every way to write into channels."""
    y = m.a(x)
    y[:, :2] += m.b(x)
    y[:, 2:4].sub_(x[:, :2])
    y[:, -1] = 0.5
    y[:, 1:3, ...] = y[:, 1:3] * m.scale + y[:, :2]
    return m.norm(y)


def filled(m: Any, x: Tensor) -> Tensor:
    """Two halves that are assigned to a new tensor, and what follows in a module of its own."""
    y = torch.empty_like(x)
    y[:, :2], y[:, 2:] = m.b(x), m.c(x)
    return m.norm(y)


class Halves(nn.Module):
    """A convolution that returns what it makes in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(2, 1)


def halves_apart(m: Any, x: Tensor) -> Tensor:
    first, last = m.halves(x)
    return torch.cat([m.a(first), m.b(last)], 1).relu()


def chained(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :2].mul_(m.scale).add_(1.0).sub_(x[:, 2:])
    y[:, 1::2].copy_(m.b(x)[:, 1::2])
    y[:, 4:].fill_(1.0)
    y[:, 3:4].zero_()
    return m.norm(y)


class InPlaceNorm(FrozenNorm):
    """A frozen batch norm that writes into its input, and returns it."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(self.running_mean.view(-1, 1, 1)).div_((self.running_var.view(-1, 1, 1) + 1e-5).sqrt())
        x.mul_(self.weight.view(-1, 1, 1))
        x += self.bias.view(-1, 1, 1)
        return x


def filled_inside(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, h + 2, w + 2) if m.zeros else x.new_ones(n, c, h + 2, w + 2)
    y[:, :, 1:-1, 1:-1] = x
    return m.a(y) + m.b(x)


def normalised(m: Any, x: Tensor) -> Tensor:
    channels = [x[:, k].unsqueeze(1) * m.scale + shift for k, shift in enumerate(m.shifts)]
    return m.stem(torch.cat(channels, 1))


def joined_parts(m: Any, x: Tensor) -> Tensor:
    a, b = x.split(2, 1)
    return torch.cat([m.a(a), m.b(b)], 1)


def summed_chunks(m: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return m.a(a) + m.b(b)  # type: ignore[no-any-return]


def summed_halves(m: Any, x: Tensor) -> Tensor:
    a, b = torch.hsplit(x, 2)
    return m.a(a) + m.b(b)  # type: ignore[no-any-return]


def exchanged(m: Any, x: Tensor) -> Tensor:
    a, b = torch.hsplit(m.a(x), 2)
    c, d = torch.cat([b, a], 1).transpose(1, 2).dsplit([1])
    return m.b(torch.cat([d, c], 2).transpose(1, 2))  # type: ignore[no-any-return]


PARTS = (
    Structure(
        "parts that a module returns, a norm on each",
        lambda: Model(halves_apart, halves=Halves(), a=norm(3), b=norm(3)),
        MAPS,
        "conv relu",
        needs_inputs=True,
        equation="rows of part k: K_k' = s_k K_k",
    ),
    Structure(
        "channels that are written into",
        lambda: Model(overwritten, a=conv(4, 5), b=conv(4, 2, 1), scale=parameter(2, 1, 1), norm=conv_norm(5, 4, 1)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="y with z in rows R: P_R' y + P_R z, P_R the projection on R",
        near="a slice that is overwritten, and read by another name",
    ),
    Structure(
        "halves assigned to a new tensor",
        lambda: Model(filled, b=conv(4, 2), c=conv(4, 2), norm=seq(norm(4), nn.ReLU())),
        MAPS,
        "conv relu",
        equation="K' = [s1 K1; s2 K2]",
        near="a row of pixels that is overwritten",
    ),
    Structure(
        "a map assigned to the inside of zeros",
        lambda: Model(filled_inside, a=conv(4, 4, p=0), b=conv_norm(4, 4, 1), zeros=True),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="zeros with x inside = zero padding of x",
        near="a map assigned to the inside of ones",
    ),
    Structure(
        "writes into a part, one after the other",
        lambda: Model(chained, a=conv(4, 5), b=conv(4, 5, 1), scale=parameter(2, 1, 1), norm=norm(5)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="rows of the part: s (K x) + t; every other row: the rows of K2, 1 and 0 in the last two",
        near="a part that is filled, and read by its own name",
    ),
    Structure(
        "a layer that writes into its argument",
        lambda: seq(conv(4, 5), InPlaceNorm(5), conv(5, 4, 1)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="arithmetic on buffers, in place, is a scale and a shift",
        near="a layer that writes into what others read",
    ),
    Structure(
        "channels that are normalised one by one",
        lambda: Model(normalised, shifts=(0.1, -0.2, 0.3, 0.4), scale=1.5, stem=nn.Conv2d(4, 6, 3, 2)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K' = K diag(a), b' = b + K t: the parts are all channels that there are",
        source="Inception, as ported to PyTorch with transform_input",
        near="scale and shift before padding",
    ),
    Structure(
        "queries that are scaled in place",
        lambda: FusedAttention(0.5, in_place=True),
        TOKENS_8,
        "linear bmm _softmax bmm linear",
        needs_inputs=True,
        equation="s (W x)_q = (D W x)_q, D = s on the rows of q, 1 on all others",
    ),
    Structure(
        "scaled queries of one layer",
        lambda: FusedAttention(0.5),
        TOKENS_8,
        "linear bmm _softmax bmm linear",
        equation="s (W x)_q = (D W x)_q, D = s on the rows of q, 1 on all others",
        near="a part that is scaled, and read as it is",
    ),
    Structure(
        "queries scaled by a number per head",
        lambda: FusedAttention(parameter(2, 1, 1)),
        TOKENS_8,
        "linear bmm _softmax bmm linear",
        source="XCiT",
    ),
    Structure(
        "scaled scores",
        lambda: Model(
            lambda m, x: torch.softmax(m.q(x) @ m.k(x).transpose(1, 2) / 8**0.5, -1),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
        ),
        TOKENS_8,
        "linear linear bmm _softmax",
        needs_inputs=True,
        equation="s (W_q x) (W_k x)^T = ((s W_q) x) (W_k x)^T",
        source="Attention, Vaswani et al. 2017",
        near="scores that are scaled, and read as they are",
    ),
    Structure(
        "scaled scores, in place, of heads that code counts",
        HeadsInPlace,
        TOKENS_8,
        "linear linear bmm _softmax",
        equation="s (W_q x) (W_k x)^T = ((s W_q) x) (W_k x)^T",
        near="scores that are scaled in place, and read under another name",
    ),
    Structure(
        "scores scaled by how many features the keys have",
        lambda: Model(
            lambda m, x: (lambda q, k: torch.softmax(q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5, -1))(m.q(x), m.k(x)),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
        ),
        TOKENS_8,
        "linear linear bmm _softmax",
        equation="s (W_q x) (W_k x)^T = ((s W_q) x) (W_k x)^T",
    ),
    Structure(
        "scores of keys that are transposed as an attribute, scaled by how many features they have",
        lambda: Model(
            lambda m, x: (lambda q, k: torch.softmax(k.size(-1) ** -0.5 * (q @ k.mT), -1))(m.q(x), m.k(x)),
            q=nn.Linear(8, 8),
            k=nn.Linear(8, 8),
        ),
        TOKENS_8,
        "linear linear bmm _softmax",
        equation="s (W_q x) (W_k x)^T = ((s W_q) x) (W_k x)^T",
    ),
    Structure(
        "a gate, scaled per channel",
        lambda: gated(lambda m, a, b: m.scale * (a * b.sigmoid()), scale=parameter(4, 1, 1)),
        MAPS,
        "conv sigmoid mul",
        needs_inputs=True,
        near="a product of activations, scaled",
    ),
    Structure(
        "a norm of one half, and a gate",
        lambda: gated(lambda m, a, b: m.norm(a) * b.sigmoid(), norm=norm(4)),
        MAPS,
        "conv sigmoid mul",
        needs_inputs=True,
        near="a scale of one of two slices that overlap",
    ),
    Structure(
        "scales of the parts of a part",
        lambda: gated(
            lambda m, a, b: (a[:, :1] * m.scale).sigmoid() * (a[:, 1:].sum(1, keepdim=True) * b).tanh(),
            scale=parameter(),
        ),
        MAPS,
        "conv sigmoid sum mul tanh mul",
        needs_inputs=True,
    ),
    Structure(
        "queries, keys and values",
        Attention,
        TOKENS_8,
        "linear bmm _softmax bmm linear add",
        objective="launches",
        equation="[W_q x, W_k x, W_v x] = [W_q; W_k; W_v] x",
    ),
    Structure(
        "two 1x1 of one map",
        lambda: Model(lambda m, x: m.a(x).sigmoid() * m.b(x).tanh(), a=conv_norm(4, 6, 1), b=conv_norm(4, 6, 1)),
        MAPS,
        "conv sigmoid tanh mul",
        objective="launches",
    ),
    Structure(
        "a scale that stays for a concatenation, a norm behind another reader",
        lambda: Model(
            lambda m, x: (lambda y: torch.cat([m.a(y).relu(), y], 1))(x.relu() * m.scale + m.shift),
            a=conv_norm(4, 4, 1),
            scale=parameter(4, 1, 1),
            shift=parameter(4, 1, 1),
        ),
        MAPS,
        "relu scale conv relu cat",
        source="HGNetV2",
    ),
    Structure(
        "a norm behind a concatenation",
        lambda: Model(
            lambda m, x: m.norm(torch.cat([m.a(x.relu()), m.b(x.sigmoid())], 1)),
            a=conv(4, 6),
            b=conv(4, 3, 1),
            norm=norm(9),
        ),
        MAPS,
        "relu sigmoid conv conv cat",
        equation="norm(cat(f, g)) = cat(s1 f + t1, s2 g + t2)",
        near="a norm behind two activations",
    ),
    Structure(
        "a norm behind an activation and a convolution",
        lambda: Model(lambda m, x: m.norm(torch.cat([x.relu(), m.a(x)], 1)), a=conv(4, 4), norm=norm(8)),
        MAPS,
        "relu scale conv cat",
        needs_inputs=True,
        near="a norm behind two activations",
    ),
    Structure(
        "mixed depthwise kernels",
        lambda: seq(in_parts([2, 2], lambda: depthwise(2, 3), lambda: depthwise(2, 5))(), norm(4)),
        MAPS,
        "conv conv cat",
        equation="part k of the norm goes into kernel k: K_k' = s_k K_k",
        near="convolutions on unequal parts",
    ),
    Structure(
        "a norm behind kernels on parts, of which one stays as it is",
        lambda: Model(
            lambda m, x: (lambda p: m.norm(torch.cat([p[0], m.b(p[1]), m.c(p[2]), m.d(p[3])], 1)))(x.chunk(4, 1)),
            b=depthwise(2),
            c=depthwise(2, (1, 5), p=(0, 2)),
            d=depthwise(2, (5, 1), p=(2, 0)),
            norm=norm(8),
        ),
        ((1, 8, 40, 40), (2, 8, 24, 33)),
        "scale conv conv conv cat",
        needs_inputs=True,
        source="InceptionNeXt, Yu et al. 2024",
    ),
    Structure(
        "equal convolutions on equal parts",
        in_parts([2, 2], lambda: conv_norm(2, 3), lambda: conv_norm(2, 3)),
        MAPS,
        "conv",
        equation="cat(K1 x1, K2 x2) = one convolution with 2 groups",
        near="convolutions on unequal parts",
    ),
    Structure(
        "grouped convolutions on chunks",
        lambda: Model(
            lambda m, x: torch.cat([m.a(x.chunk(2, 1)[0]), m.b(x.chunk(2, 1)[1])], dim=1),
            a=conv(2, 4, g=2),
            b=conv(2, 4, g=2),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="cat(K1 x1, K2 x2), of 2 groups each = one convolution with 4 groups",
        near="convolutions on unequal parts",
    ),
    Structure(
        "convolutions on chunks that code goes through",
        lambda: Model(
            lambda m, x: torch.cat([layer(part) for layer, part in zip(m.layers, x.chunk(2, 1), strict=True)], 1),
            layers=nn.ModuleList([conv(2, 4), conv(2, 4)]),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        near="convolutions on unequal parts",
    ),
    Structure(
        "convolutions on sections",
        lambda: Model(
            lambda m, x: torch.cat([m.a(x.tensor_split(2, 1)[0]), m.b(torch.tensor_split(x, 2, dim=1)[1])], 1),
            a=conv(2, 4),
            b=conv(2, 4),
        ),
        MAPS,
        "conv",
        needs_inputs=True,
        near="convolutions on unequal parts",
    ),
    Structure(
        "norms of what lies between positions",
        lambda: Model(
            lambda m, x: (lambda a, b, c: torch.cat([m.c(c), m.a(a), b], 1))(*m.conv(x).tensor_split([1, -2], 1)),
            conv=conv(4, 5),
            a=norm(1),
            c=norm(2),
        ),
        MAPS,
        "conv",
        near="convolutions on unequal parts",
    ),
    Structure(
        "convolutions on parts that code counts",
        lambda: seq(
            conv(4, 4),
            nn.ReLU(),
            Model(
                lambda m, x: m.norm(torch.cat([c(part) for part, c in zip(x.split(2, 1), (m.a, m.b), strict=True)], 1)),
                a=conv(2, 2),
                b=conv(2, 2),
                norm=norm(4),
            ),
        ),
        MAPS,
        "conv relu conv",
        needs_inputs=True,
    ),
    Structure(
        "convolutions of one value, side by side",
        lambda: Model(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv_norm(4, 5), b=conv_norm(4, 3)),
        MAPS,
        "conv",
        equation="cat(K1 x, K2 x) = [K1; K2] x",
        near="concatenated along the batch",
    ),
    Structure(
        "side by side, then 1x1",
        lambda: Model(
            lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(4, 8, 1), b=conv(4, 8, 1), c=conv(16, 4, 1)
        ),
        MAPS,
        "conv",
        equation="W cat(K1 x, K2 x) = (W1 K1 + W2 K2) x",
    ),
    Structure(
        "channels in reverse order, then a convolution",
        lambda: Model(lambda m, x: m.b(m.a(x.flip(1))[:, [2, 0, 1]]), a=conv_norm(4, 3), b=conv(3, 3, 1)),
        MAPS,
        "conv",
        needs_inputs=True,
        equation="K'[o,i] = sum_m K2[o,m] K1[p(m), r(i)], p and r permutations",
    ),
    Structure(
        "a stack of branches, weighted and summed",
        lambda: Model(
            lambda m, x: (torch.stack([m.a(x), m.b(x)]) * m.w.softmax(0)).sum(0),
            a=conv_norm(4, 4),
            b=conv_norm(4, 4, 1),
            w=parameter(2, 1, 1, 1, 1),
        ),
        MAPS,
        "conv",
        equation="K' = sum_k softmax(w)_k s_k K_k",
    ),
    Structure(
        "a split that reads a layer, a norm on each part",
        lambda: Model(
            lambda m, x: (lambda a, b: torch.cat([m.a(a).relu(), m.b(b)], 1))(*m.conv(x).split([3, 3], 1)),
            conv=conv(4, 6),
            a=norm(3),
            b=norm(3),
        ),
        MAPS,
        "conv relu cat",
        equation="rows of part k: K_k' = s_k K_k",
    ),
    Structure(
        "parts of the input, as many as the code takes, a layer on each",
        lambda: Model(joined_parts, a=conv(2, 3), b=conv(2, 3)),
        MAPS,
        "conv",
        equation="[K_a x_a, K_b x_b] = K x, K with groups: the channels of x are those of its parts together",
    ),
    Structure(
        "halves of the input by torch.hsplit, a layer on each, summed",
        lambda: Model(summed_halves, a=conv(2, 3), b=conv(2, 3)),
        MAPS,
        "conv",
        equation="K_a x_a + K_b x_b = [K_a, K_b] x",
    ),
    Structure(
        "chunks of the input, a layer on each, summed",
        lambda: Model(summed_chunks, a=conv(2, 3), b=conv(2, 3)),
        MAPS,
        "conv",
        equation="K_a x_a + K_b x_b = [K_a, K_b] x",
    ),
    Structure(
        "halves that are exchanged, by torch.hsplit and torch.dsplit",
        lambda: Model(exchanged, a=conv(4, 6), b=conv(6, 4, 1)),
        MAPS,
        "conv",
        equation="K'[o] = sum_m K2[o, p(m)] K1[m]",
    ),
    Structure(
        "channels in an order of their own, by torch.take_along_dim",
        lambda: Model(
            lambda m, x: m.b(torch.take_along_dim(m.a(x), m.order[None, :, None, None], 1)),
            a=conv(4, 4),
            b=conv(4, 4, 1),
            order=nn.Buffer(torch.tensor([2, 0, 3, 1])),
        ),
        MAPS,
        "conv",
        equation="K'[o] = sum_m K2[o, m] K1[p(m)]",
        near="positions that differ from place to place",
    ),
    Structure(
        "a weighted sum of channels",
        lambda: Model(lambda m, x: (m.a(x).relu() * m.w).sum(1, keepdim=True), a=conv(4, 6), w=parameter(6, 1, 1)),
        MAPS,
        "conv relu conv",
        equation="sum_c w_c y_c is a matrix of one row, in as many operations",
    ),
)
