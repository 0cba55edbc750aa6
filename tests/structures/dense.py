"""Convolutions beside full matrices: locality injection."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from .blocks import Model, Sum, conv, conv_norm, norm, seq
from .table import FIXED, TOKENS, Structure


class TokenMixer(nn.Module):
    """The token-mixing linear layer of ResMLP beside a convolution that all channels share."""

    def __init__(self, h: int, w: int) -> None:
        super().__init__()
        self.h, self.w, self.tokens = h, w, nn.Linear(h * w, h * w)
        self.local = conv_norm(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        across = x.transpose(1, 2)
        maps = self.local(across.reshape(n * c, 1, self.h, self.w)).reshape(n, c, t)
        return (self.tokens(across) + maps).transpose(1, 2)


class Affine(nn.Module):
    """alpha x + beta over channels, the norm of ResMLP."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, c)), nn.Parameter(torch.zeros(1, 1, c))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class PartitionMixer(nn.Module):
    """RepMLP: a map in partitions, plus what a perceptron makes of their averages; then a grouped fully connected layer
    beside convolutions, each with its norm. The partitions are reshaped to (-1, numbers).
    """

    def __init__(self, c: int, h: int, w: int) -> None:
        super().__init__()
        self.c, self.h, self.w, inner = c, h, w, 4 * c
        self.average = nn.AvgPool2d((h, w))
        self.perceptron = seq(nn.BatchNorm1d(inner), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, inner))
        self.fc = nn.Conv2d(c * h * w, c * h * w, 1, groups=4, bias=False)
        self.fc_norm, self.local = nn.BatchNorm1d(c * h * w), Sum(conv_norm(c, c, k, g=4) for k in (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = self.c, self.h, self.w
        context = self.perceptron(self.average(x).reshape(x.size(0), -1)).view(-1, c, 2, 1, 2, 1)
        parts = (x.view(-1, c, 2, h, 2, w) + context).permute(0, 2, 4, 1, 3, 5)
        out = self.fc_norm(self.fc(parts.reshape(-1, c * h * w, 1, 1)).view(-1, c * h * w)).view(-1, 2, 2, c, h, w)
        out += self.local(parts.reshape(-1, c, h, w)).view(-1, 2, 2, c, h, w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, 2 * h, 2 * w)


class CountingMixer(PartitionMixer):
    """The same, all of whose sizes are those of its input."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.size()
        h, w, rows, columns = self.h, self.w, height // self.h, width // self.w
        context = self.perceptron(self.average(x).reshape(n, -1)).reshape(n, c, rows, 1, columns, 1)
        parts = (x.reshape(-1, c, rows, h, columns, w) + context).permute(0, 2, 4, 1, 3, 5)
        out = self.fc_norm(self.fc(parts.reshape(-1, c * h * w, 1, 1)).reshape(-1, c * h * w))
        out = out.reshape(-1, rows, columns, c, h, w)
        out += self.local(parts.reshape(-1, c, h, w)).reshape(-1, rows, columns, c, h, w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(n, c, height, width)


class ShareSets(nn.Module):
    """RepMLPNet: sets of channels that share a fully connected layer over a map, beside a convolution. All sizes but
    the number of channels of a set are those of the input.
    """

    def __init__(self, sets: int, h: int, w: int) -> None:
        super().__init__()
        self.sets, wide = sets, sets * h * w
        self.fc, self.fc_norm = nn.Conv2d(wide, wide, 1, groups=sets, bias=False), norm(sets)
        self.local = conv_norm(sets, sets, 3, g=sets)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(-1, self.sets, h, w)
        out = self.fc(x.reshape(-1, self.sets * h * w, 1, 1)).reshape(-1, self.sets, h, w)
        return (self.fc_norm(out) + self.local(x)).reshape(n, c, h, w)


class PublishedMixer(ShareSets):
    """The code of RepMLPNet as published: each branch is put into its partition before they are added."""

    def __init__(self, c: int, sets: int, h: int, w: int) -> None:
        super().__init__(sets, h, w)
        self.c, self.h, self.w = c, h, w

    def partitions(self, x: Tensor, rows: int, columns: int) -> Tensor:
        return x.reshape(-1, rows, columns, self.sets, self.h, self.w)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // self.h, x.shape[3] // self.w
        parts = x.reshape(-1, self.c, rows, self.h, columns, self.w).permute(0, 2, 4, 1, 3, 5)
        mixed = self.fc(parts.reshape(-1, self.sets * self.h * self.w, 1, 1)).reshape(-1, self.sets, self.h, self.w)
        out = self.partitions(self.fc_norm(mixed), rows, columns)
        local = 0
        local += self.local(parts.reshape(-1, self.sets, self.h, self.w))
        out += self.partitions(local, rows, columns)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def shaped_as_before(m: nn.Module, x: Tensor) -> Tensor:
    sets = x.view(-1, 2, 4, 3)
    return m.fc(sets.flatten(1)[..., None]).view_as(sets) + m.local(sets)


class FlatMap(nn.Module):
    """A fully connected layer over a flattened map beside a convolution: the plainest locality injection."""

    def __init__(self, c: int, h: int, w: int, local: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.local = nn.Linear(c * h * w, c * h * w), local or conv_norm(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).reshape(x.shape) + self.local(x)


def repmlp_block(h: int, w: int, kernels: tuple[int, ...] = (1, 3)) -> nn.Module:
    """The block of the RepMLPNet example: a grouped fully connected layer over partitions beside convolutions."""
    name = "repmlpnet_model"
    if name not in sys.modules:
        path = Path(__file__).resolve().parents[2] / "examples" / "repmlpnet" / "model.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].RepMLPBlock(8, h, w, share_sets=2, kernels=kernels)


GATE = "mean conv relu conv sigmoid mul"


GATED = f"conv {GATE}"


DENSE = (
    Structure(
        "repmlp 1, 3",
        lambda: repmlp_block(4, 4),
        ((2, 8, 8, 8), (1, 8, 4, 12)),
        GATED,
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k), T(K): the matrix of a convolution",
        source="RepMLPNet, Ding et al. 2022",
        near="reflected padding",
    ),
    Structure(
        "repmlp 1, 3, 5, 7",
        lambda: repmlp_block(5, 4, (1, 3, 5, 7)),
        ((2, 8, 5, 8), (1, 8, 10, 4)),
        GATED,
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k), k in 1, 3, 5, 7",
        source="RepMLPNet, Ding et al. 2022",
        near="reflected padding",
    ),
    Structure(
        "repmlp, one partition",
        lambda: repmlp_block(3, 7),
        ((2, 8, 3, 7), (1, 8, 3, 7)),
        GATED,
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k), of a map that is its own partition",
        source="RepMLPNet, Ding et al. 2022",
        near="reflected padding",
    ),
    Structure(
        "repmlp, as first published",
        lambda: PartitionMixer(8, 4, 4),
        ((2, 8, 8, 8), (3, 8, 8, 8)),
        "pool linear relu linear add conv",
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k)",
        source="RepMLP, Ding et al. 2021",
        near="reflected padding",
    ),
    Structure(
        "repmlp, its channels counted",
        lambda: CountingMixer(4, 3, 4),
        ((2, 4, 6, 8), (3, 4, 6, 8)),
        "pool linear relu linear add conv",
        needs_inputs=True,
        equation="F' = s F + T(sum_k s_k K_k), of as many channels as the fully connected layer takes",
        source="RepMLP, Ding et al. 2021",
        near="reflected padding",
    ),
    Structure(
        "repmlpnet, its maps measured",
        lambda: ShareSets(2, 4, 3),
        ((2, 6, 4, 3), (1, 6, 4, 3)),
        "conv",
        needs_inputs=True,
        equation="F' = s F + T(s' K), per share-set, of as many pixels as the fully connected layer takes",
        source="RepMLPNet, Ding et al. 2022",
    ),
    Structure(
        "repmlpnet, its branches in their partitions",
        lambda: PublishedMixer(6, 2, 4, 3),
        ((2, 6, 4, 3), (1, 6, 8, 9), (3, 6, 4, 6)),
        "conv",
        needs_inputs=True,
        equation="view(F x) + view(K x) = view(F' x), F' = s F + T(s' K), per share-set",
        source="RepMLPNet, Ding et al. 2022",
    ),
    Structure(
        "share-sets that get the shape they had",
        lambda: Model(shaped_as_before, fc=nn.Conv1d(24, 24, 1, groups=2), local=conv(2, 2, g=2)),
        ((2, 6, 4, 3), (1, 6, 4, 3), (3, 2, 4, 3)),
        "conv",
        equation="F' = F + T(K), per share-set",
        source="RepMLPNet, Ding et al. 2022",
    ),
    Structure(
        "resmlp, behind an affine layer",
        lambda: seq(Affine(5), TokenMixer(3, 4)),
        ((2, 12, 5), (3, 12, 5)),
        "scale linear add",
        equation="A' = A + T(k), over alpha x + beta",
        source="ResMLP, Touvron et al. 2021",
    ),
    Structure(
        "resmlp token linear + shared conv",
        lambda: TokenMixer(3, 4),
        TOKENS,
        "linear add",
        equation="A' = A + T(k)",
        source="ResMLP with locality injection, Ding et al. 2022",
    ),
    Structure(
        "linear over a map + conv",
        lambda: FlatMap(4, 4, 6),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W + T(K)",
        source="RepMLP, Ding et al. 2021",
    ),
    Structure(
        "linear over a map + conv by reflection",
        lambda: FlatMap(4, 4, 6, seq(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), norm(4))),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W + T(K) R, R the matrix of the reflection",
    ),
    Structure(
        "linear over a map + padded convs in a row",
        lambda: FlatMap(4, 4, 6, seq(conv(4, 6), norm(6), nn.AvgPool2d(3, 1, 1), conv_norm(6, 4))),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W + T(K2) T(A) T(K1), b' of each pixel",
        source="RepMLP, Ding et al. 2021",
        near="padded 3x3, padded 3x3",
    ),
    Structure(
        "padded convs in a row, then a linear layer over the map",
        lambda: seq(conv(4, 4), conv(4, 6, s=2), nn.Flatten(), nn.Linear(36, 5)),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W T(K2) T(K1)",
        near="padded 3x3, padded 3x3",
    ),
    Structure(
        "a window over the whole map, then a linear layer",
        lambda: seq(conv(4, 8, (4, 6), p=0), nn.Flatten(), nn.Linear(8, 5)),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W K, K a matrix of all pixels",
        near="padded 3x3, padded 3x3",
    ),
    Structure(
        "a window over the whole map, squeezed, then a linear layer",
        lambda: Model(
            lambda m, x: m.linear(m.conv(x).squeeze(-1).squeeze(-1)),
            conv=conv(4, 8, (4, 6), p=0),
            linear=nn.Linear(8, 5),
        ),
        FIXED,
        "linear",
        needs_inputs=True,
        equation="W' = W K, K a matrix of all pixels",
        near="padded 3x3, padded 3x3",
    ),
)
