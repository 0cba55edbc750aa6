"""Views between layers, and transposed convolutions."""

from __future__ import annotations

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


RESAMPLING = (
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
