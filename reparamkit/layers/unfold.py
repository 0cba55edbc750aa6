"""Windows as channels: half of a convolution that is written as a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import nn

from ..algebra.build import unfolded
from ..algebra.form import Form
from ..algebra.regroup import known_rank
from .probed import probed_function
from .registry import READERS, either
from .views import read_flatten

PerAxis = int | Sequence[int]


@READERS.reader(nn.Unfold, moves=1)
def read_unfold_layer(layer: nn.Unfold, input: Form) -> tuple[Form, ...]:
    """The window around each position, its numbers as channels, the positions as one dimension."""
    return read_unfold(input, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


@READERS.reader(F.unfold, moves=1)
def read_unfold(
    input: Form, kernel_size: PerAxis, dilation: PerAxis = 1, padding: PerAxis = 0, stride: PerAxis = 1
) -> tuple[Form, ...]:
    """The same as windows, and on fixed sizes as a full matrix."""
    kernel, dilations, pads, strides = map(_pair, (kernel_size, dilation, padding, stride))

    def windows() -> Form:
        x = known_rank(input, [4], certain=False)
        # No layer is written between the windows and the view of their positions.
        return replace(read_flatten(unfolded(x, kernel, strides, pads, dilations), 2), recent=(None,))

    return either(windows, lambda: probed_function(F.unfold)(input, kernel, dilations, pads, strides))


def _pair(value: PerAxis) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return first, second
