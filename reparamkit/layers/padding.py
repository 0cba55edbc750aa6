"""Padding: with zeros a window of one tap; in other modes a resampling, or a full matrix on fixed sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import resampled
from ..algebra.form import Form
from ..algebra.operator import Resampling
from ..algebra.probe import probe
from ..algebra.regroup import in_sight
from ..algebra.segments import padded
from ..algebra.size import stencil_size
from ..errors import NotFusable
from ..reasons import Kind
from .registry import READERS, either

MODES: dict[type[nn.Module], str] = {
    nn.ReflectionPad1d: "reflect",
    nn.ReflectionPad2d: "reflect",
    nn.ReflectionPad3d: "reflect",
    nn.ReplicationPad1d: "replicate",
    nn.ReplicationPad2d: "replicate",
    nn.ReplicationPad3d: "replicate",
    nn.CircularPad1d: "circular",
    nn.CircularPad2d: "circular",
    nn.CircularPad3d: "circular",
}


@READERS.reader(F.pad, moves=1)
def read_pad(input: Form, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> tuple[Form, ...]:
    """Zeros, or positions of the map once more, around the last dimensions; refuses another constant. pad: (low, high)
    of the last dimension, of the one before it, and so on; negative to crop.
    """
    if not all(isinstance(n, int) for n in pad):
        raise NotFusable("padding whose width is computed at run time", Kind.SIZES)
    pairs = list(zip(pad[0::2], pad[1::2], strict=True))[::-1]
    if mode != "constant":
        return either(lambda: around(input, pairs, mode), lambda: probe(input, lambda x: _padded(x, pairs, mode)))
    if value not in (None, 0):
        raise NotFusable(f"padding with value {value} is not zero padding", Kind.BORDER)
    return (padded(input, pairs),)


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """``F.pad``, its circles by positions: it writes those into memory that nobody wrote, which no recipe may."""
    if mode != "circular":
        return F.pad(x, [n for pair in pads[::-1] for n in pair], mode)
    for dim, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        x = x.index_select(dim, torch.arange(-low, x.shape[dim] + high) % x.shape[dim])
    return x


@READERS.reader(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, moves=1)
@READERS.reader(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, moves=1)
def read_zero_pad_layer(layer: nn.ConstantPad2d, input: Form) -> tuple[Form, ...]:
    """Zeros around the last one, two or three dimensions; a negative number crops. Refuses another constant."""
    return read_pad(input, list(layer.padding), value=layer.value)


@READERS.reader(*MODES, moves=1)
def read_pad_layer(layer: nn.ReflectionPad2d, input: Form) -> tuple[Form, ...]:
    """Positions of the map once more around the last one, two or three dimensions."""
    mode = next(mode for cls, mode in MODES.items() if isinstance(layer, cls))
    return read_pad(input, list(layer.padding), mode)


def around(x: Form, pads: Sequence[tuple[int, int]], mode: str) -> Form:
    """Positions of the map once more around the last dimensions. pads: (low, high) of each of them."""
    if any(n < 0 for pair in pads for n in pair):
        raise NotFusable(f"padding in mode '{mode}' that crops", Kind.RESAMPLED)
    x, maps = in_sight(x, len(pads)), {}
    for dim, (low, high) in zip(range(-len(pads), 0), pads, strict=True):
        if low or high:
            size = x.sizes[dim]
            after = stencil_size(size, 1, low + high - 1)
            maps[dim] = Resampling(("pad", mode, low, high), size, after, around=(low, high), mode=mode)
    return resampled(x, maps)
