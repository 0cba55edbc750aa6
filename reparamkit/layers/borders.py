"""Padding with a constant of each channel, as blocks do that fold a biased layer through padding (DBB, ECB)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from ..algebra.build import offset
from ..algebra.form import Form
from ..algebra.segments import padded
from ..algebra.size import Size, stencil_size
from ..errors import NotFusable
from ..reasons import Kind
from .registry import READERS

EQUAL = 1e-12
"""Relative: the two are computed in float64 from the same parameters, in a different order."""


def pad_with(input: Tensor, pad: Sequence[int], value: Tensor) -> Tensor:
    """``F.pad(input, pad)`` with `value` in the border.

    pad: (low, high) of the last dimension, of the one before it, and so on. value: broadcasts to the result and is
    of size 1 along the padded dimensions.
    """
    result = F.pad(input, list(pad))
    for dim, (low, high) in zip(range(-1, -len(pad), -1), _pairs(pad), strict=False):
        size = result.shape[dim]
        result.narrow(dim, 0, low).copy_(value.expand(result.narrow(dim, 0, low).shape))
        result.narrow(dim, size - high, high).copy_(value.expand(result.narrow(dim, size - high, high).shape))
    return result


def _pairs(pad: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(pad[0::2], pad[1::2], strict=True))


def padded_sizes(before: Sequence[Size], pad: Sequence[int], value: object) -> list[Size | None]:
    """The sizes of what `pad_with` makes of a tensor of sizes `before`."""
    pads = [(0, 0)] * (len(before) - len(pad) // 2) + _pairs(pad)[::-1]
    return [stencil_size(size, 1, low + high - 1) for size, (low, high) in zip(before, pads, strict=True)]


@READERS.reader(pad_with, shape=padded_sizes)
def read_pad_with(input: Form, pad: Sequence[int], value: Tensor) -> Form:
    """Exact where the border gets what the layers before would give for zeros there: their bias."""
    if not isinstance(value, Tensor):
        raise NotFusable("a border that is computed from the input", Kind.BORDER)
    rest = offset(input, -value.double()).bias
    # One comparison of tensors, so that a recipe asks for its outcome and not for these numbers.
    if rest is not None and not bool(rest.weight.tensor().abs().max() <= EQUAL * value.abs().max()):
        raise NotFusable("the border is filled with other values than the bias of the layers before", Kind.BORDER)
    return offset(padded(replace(input, bias=None), _pairs(pad)[::-1]), value)
