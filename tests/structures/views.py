"""Views between layers, and transposed convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import bias_free, conv, conv_norm, norm, seq
from .table import MAPS, MAPS_1D, Structure


class Upsampling(nn.Module):
    """Two transposed convolutions side by side, as in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a = seq(nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2, bias=False), norm(6))
        self.b = seq(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), norm(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class Counted(nn.Module):
    """A map as tokens of a number that is written, as that of patches is."""

    def __init__(self, c: int, tokens: int) -> None:
        super().__init__()
        self.patches, self.norm, self.tokens = nn.Conv2d(c, c, 2, 2), nn.BatchNorm1d(c), tokens

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        return self.norm(x.view(x.shape[0], x.shape[1], self.tokens))


class Turned(nn.Module):
    """Maps turned around, and shifted windows, between layers that read one pixel at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv_norm(4, 4), conv(4, 4, 1), conv(4, 4, 1), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x).flip(3) + self.b(x).flip(3))
        return self.d(self.c(x).roll((1, -2), (2, 3)))


class Turn(nn.Module):
    """BGR to RGB."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = conv(c, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flip(1))


class Halves(nn.Module):
    """Convolutions of parts of the channels, the number of which only they tell; the last is of all, turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(2, 4), conv(3, 4), conv(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x[:, :2]) + self.b(x[:, 2:]) + self.c(x.flip(1))


class Windows(nn.Module):
    """A linear layer on the windows of a map, which are put together again, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 6), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        y = self.linear(y).view(b, h // 2, w // 2, 2, 2, -1)
        return y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1) * self.scale


RESAMPLING = (
    Structure(
        "windows of a map and back, around a linear layer and a scale",
        Windows,
        ((2, 6, 8, 4), (1, 4, 4, 4), (3, 2, 6, 4)),
        "linear",
        equation="W' = diag(s) W; rows and columns are even, which the views ask for",
        source="Swin, Liu et al. 2021",
    ),
    Structure(
        "conv, map as counted tokens, bn",
        lambda: Counted(4, 15),
        ((2, 4, 6, 10), (1, 4, 6, 10)),
        "conv",
        needs_inputs=True,
        equation="K' = s K, of as many pixels as there are tokens",
        source="ViT, Dosovitskiy et al. 2020",
    ),
    Structure(
        "maps that are flipped and rolled",
        Turned,
        MAPS,
        "conv flip relu conv roll",
        equation="R(f) + R(g) = R(f + g), W R(x) = R(W x)",
        source="Swin, Liu et al. 2021",
    ),
    Structure(
        "channels turned around, conv",
        lambda: Turn(5),
        ((2, 5, 6, 4), (1, 5, 7, 9)),
        "conv",
        equation="K' = K P, P a permutation",
    ),
    Structure(
        "convs of parts of the channels",
        Halves,
        ((2, 5, 6, 4), (1, 5, 7, 9)),
        "conv",
        equation="K' = [K1, K2] + embed(K3 P), P a permutation",
    ),
    Structure(
        "transposed conv-bn",
        lambda: seq(nn.ConvTranspose2d(4, 6, 4, 2, 1), norm(6)),
        MAPS,
        "conv",
        equation="the scale is on axis 1 of the weight",
        source="DCGAN, Radford et al. 2015",
        near="norm before a transposed conv",
    ),
    Structure(
        "transposed conv-bn, cropped",
        lambda: seq(nn.ConvTranspose2d(4, 6, 3, 2, 1), norm(6)),
        MAPS,
        "conv",
        equation="the scale is on axis 1 of the weight",
    ),
    Structure(
        "grouped transposed conv-bn",
        lambda: seq(nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), norm(6)),
        MAPS,
        "conv",
        equation="the scale is on axis 1 of the weight, group by group",
        near="norm before a transposed conv",
    ),
    Structure(
        "transposed conv1d-bn",
        lambda: seq(nn.ConvTranspose1d(4, 6, 5, 3, dilation=2), nn.BatchNorm1d(6)),
        MAPS_1D,
        "conv",
        equation="the scale is on axis 1 of the weight",
        near="norm before a transposed conv",
    ),
    Structure(
        "transposed branches",
        Upsampling,
        MAPS,
        "conv",
        equation="K' = s K + embed(K2), the union of the taps at one stride",
    ),
    Structure(
        "1x1, transposed, 1x1",
        lambda: seq(bias_free(4, 4), nn.ConvTranspose2d(4, 4, 2, 2), conv(4, 4, 1)),
        MAPS,
        "conv",
        equation="K' = K3 K2 K1",
        near="1x1, then nearest",
    ),
    Structure(
        "conv, pixel shuffle, bn",
        lambda: seq(conv(4, 16), nn.PixelShuffle(2), norm(4)),
        MAPS,
        "conv pixel_shuffle",
        equation="a permutation of channels and pixels",
        source="ESPCN, Shi et al. 2016",
    ),
    Structure(
        "conv-bn, channel shuffle, 1x1",
        lambda: seq(conv_norm(4, 4), nn.ChannelShuffle(2), conv(4, 4, 1)),
        MAPS,
        "conv",
        equation="a permutation of channels",
        source="ShuffleNet, Zhang et al. 2018",
    ),
)
