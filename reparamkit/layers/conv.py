"""Convolutions of one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.build import conv, conv_transposed
from ..algebra.form import Form
from ..algebra.regroup import in_sight
from ..algebra.segments import fixed_dim
from ..algebra.size import Size, fixed
from ..errors import NotFusable
from ..reasons import Kind
from .padding import read_pad
from .registry import READERS

PerAxis = int | Sequence[int]


@READERS.reader(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def read_conv_layer(layer: nn.Conv2d, input: Form) -> tuple[Form, ...]:
    """A convolution, zero padded; in other modes its input is padded first, in one layer, as `F.pad` is read."""
    if layer.padding_mode == "zeros":
        return (read_conv(input, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups),)
    padded = read_pad(input, layer._reversed_padding_repeated_twice, layer.padding_mode)
    inside = [replace(x, recent=(*input.recent, None)) for x in padded]
    return tuple(conv(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups) for x in inside)


@READERS.reader(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def read_conv(
    input: Form,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: PerAxis = 1,
    padding: PerAxis | str = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Form:
    """Zero padding: numbers, 'same' or 'valid'. weight: (out, in / groups, k1, ..., kr). bias: (out,)."""
    pads = _named_padding(padding, weight, dilation) if isinstance(padding, str) else padding
    return conv(input, weight, bias, stride, pads, dilation, groups)


@READERS.reader(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, sizes=True)
def read_conv_transpose_layer(
    layer: nn.ConvTranspose2d, input: Form, output_size: Sequence[int | Size] | None = None
) -> Form:
    """A stencil over samples with zeros between them; refuses an output_size that varies with others than its own."""
    extra = layer.output_padding
    if output_size is not None:
        input, extra = _output_padding(layer, input, output_size)
    return conv_transposed(
        input,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,  # type: ignore[arg-type]
        extra,
        layer.groups,
        layer.dilation,
    )


def _output_padding(
    layer: nn.ConvTranspose2d, x: Form, output_size: Sequence[int | Size]
) -> tuple[Form, tuple[int, ...]]:
    """What is to be added at the end of each axis for these sizes, and the input, of the sizes that they need."""
    axes = len(layer.kernel_size)
    x, extra = in_sight(x, axes + 1), []
    pads: tuple[int, ...] = layer.padding  # type: ignore[assignment]
    settings = zip(layer.stride, pads, layer.dilation, layer.kernel_size, strict=True)
    for dim, wanted, (s, p, d, k) in zip(range(-axes, 0), output_size[-axes:], settings, strict=True):
        least = d * (k - 1) + 1 - s - 2 * p
        x = fixed_dim(x, dim) if isinstance(wanted, int) else x
        rest = (wanted if isinstance(wanted, Size) else fixed(wanted)).less(x.sizes[dim] * fixed(s))
        if rest is None or not 0 <= rest - least < s:
            raise NotFusable("an output_size that is no fixed multiple of the size of its input", Kind.SIZES)
        extra.append(rest - least)
    return x, tuple(extra)


@READERS.reader(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def read_conv_transpose(
    input: Form,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: PerAxis = 1,
    padding: PerAxis = 0,
    output_padding: PerAxis = 0,
    groups: int = 1,
    dilation: PerAxis = 1,
) -> Form:
    """A stencil over samples with zeros between them. weight: (in, out / groups, k1, ..., kr). bias: (out,)."""
    return conv_transposed(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _named_padding(padding: str, weight: Tensor, dilation: PerAxis) -> Sequence[int | tuple[int, int]]:
    """'valid' pads nothing; 'same' pads d*(k-1) in all, the odd one at the end."""
    rank = weight.dim() - 2
    dilations = [dilation] * rank if isinstance(dilation, int) else list(dilation)
    totals = [d * (k - 1) * (padding == "same") for d, k in zip(dilations, weight.shape[2:], strict=True)]
    return [(total // 2, total - total // 2) for total in totals]
