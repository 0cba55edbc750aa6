"""Resampling: to the nearest position by a whole factor it is a transposed window of ones; else a full matrix."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

from ..algebra.build import known_rank, repeated
from ..algebra.form import Form
from ..algebra.probe import probe
from ..algebra.size import Size, fixed
from ..errors import NotFusable
from .registry import READERS

Extent = int | Size
Extents = Extent | Sequence[Extent]
Factors = float | Sequence[float]


@READERS.reader(nn.Upsample)
def read_upsample_layer(layer: nn.Upsample, input: Form) -> Form:
    """As for `F.interpolate`; where the rank is open, nn.UpsamplingNearest2d reads a batch of maps, behind a guard."""
    x = known_rank(input, [4], certain=False) if isinstance(layer, nn.UpsamplingNearest2d) else input
    return read_interpolate(
        x, layer.size, layer.scale_factor, layer.mode, layer.align_corners, layer.recompute_scale_factor
    )


@READERS.reader(F.interpolate, F.upsample, sizes=True)
def read_interpolate(
    input: Form,
    size: Extents | None = None,
    scale_factor: Factors | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Form:
    """To the nearest by whole factors: a number of repeats, where that is exact; else a full matrix, on fixed sizes."""
    x = _closed(input, size if scale_factor is None else scale_factor)
    axes = len(x.sizes) - 2
    if mode in ("nearest", "nearest-exact") and align_corners is None and not antialias:
        counts = _counts(x, _each(size, axes)) if scale_factor is None else _whole(_each(scale_factor, axes))
        if counts is not None and (mode == "nearest-exact" or all(map(_rounds_down, counts))):
            return repeated(x, counts)
    if any(isinstance(n, Size) and not n.known for n in (*_each(size, axes), *_each(scale_factor, axes))):
        raise NotFusable("interpolate to a size that is computed at run time, and is no multiple of the one before")
    numbers = [n.factor if isinstance(n, Size) else n for n in _each(size, axes)]
    options = (None if size is None else numbers, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    return probe(x, lambda tensor: F.interpolate(tensor, *options))


def _closed(x: Form, per_axis: object) -> Form:
    """With its rank known: one number per axis tells it; else a batch of images that a window reads is assumed."""
    rank = len(per_axis) + 2 if isinstance(per_axis, Sequence) else len(x.sizes)
    if rank < 3:
        raise NotFusable("the rank of this tensor is unknown: pass example_inputs")
    return known_rank(x, [rank], certain=isinstance(per_axis, Sequence))


def _each(value: object, axes: int) -> list:  # type: ignore[type-arg]
    return list(value) if isinstance(value, Sequence) else [value] * axes


def _counts(x: Form, wanted: Sequence[Extent]) -> list[int] | None:
    """By what each axis grows, for every input; None if that is no whole number, or not certain."""
    sizes = [n if isinstance(n, Size) else fixed(n) for n in wanted]
    ratios = [size.divide(before) for size, before in zip(sizes, x.sizes[2:], strict=True)]
    found = [ratio.factor for ratio in ratios if ratio is not None and ratio.known]
    return found if len(found) == len(ratios) else None


def _whole(factors: Sequence[object]) -> list[int] | None:
    whole = [int(f) for f in factors if isinstance(f, (int, float)) and f >= 1 and f == int(f)]
    return whole if len(whole) == len(factors) else None


def _rounds_down(count: int) -> bool:
    """Whether position ``i * fl(1 / count)``, as torch computes it in float32, never falls below ``i / count``."""
    return Fraction(torch.tensor(1 / count, dtype=torch.float32).item()) * count >= 1
