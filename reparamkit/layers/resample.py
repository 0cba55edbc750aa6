"""Resampling: along its axes by a call that stays, as a full matrix, or, to the nearest position by a whole factor, as
a transposed window of ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

from ..algebra.build import repeated, resampled
from ..algebra.form import Form
from ..algebra.operator import Resampling
from ..algebra.probe import probe
from ..algebra.regroup import NO_RANK, known_rank
from ..algebra.size import Size, fixed, stencil_size
from ..errors import NotFusable
from ..reasons import Kind
from .registry import READERS, either

Extent = int | Size
Extents = Extent | Sequence[Extent]
Factors = float | Sequence[float]
NEAREST = ("nearest", "nearest-exact")
FINEST = 2**10
"""The greatest denominator of a factor whose products with sizes are exact: floats are multiples of powers of 2."""
TAPS = {"nearest": 0, "nearest-exact": 0, "bicubic": 4}
"""Multiply-adds per position and axis; 2 for other modes."""


@READERS.reader(nn.Upsample)
def read_upsample_layer(layer: nn.Upsample, input: Form) -> tuple[Form, ...]:
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
) -> tuple[Form, ...]:
    """A resampling of the axes, or a full matrix on fixed sizes; to the nearest by whole factors so many repeats."""
    x = _closed(input, size if scale_factor is None else scale_factor)
    how = _Call(size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    return either(lambda: how.resampled(x), lambda: how.repeated(x), lambda: how.probed(x))


@dataclass(frozen=True)
class _Call:
    """The arguments of `F.interpolate`."""

    size: Extents | None
    scale_factor: Factors | None
    mode: str
    align_corners: bool | None
    recompute_scale_factor: bool | None
    antialias: bool

    def repeated(self, x: Form) -> Form:
        """Each position so many times."""
        axes = len(x.sizes) - 2
        if self.mode not in NEAREST or self.align_corners is not None or self.antialias:
            raise NotFusable("more than one position is read", Kind.RESAMPLED)
        wanted = self.size if self.scale_factor is None else self.scale_factor
        counts = _counts(x, _each(wanted, axes)) if self.scale_factor is None else _whole(_each(wanted, axes))
        if counts is None or not (self.mode == "nearest-exact" or all(map(_rounds_down, counts))):
            raise NotFusable("nearest positions by a factor that is not whole, or is rounded", Kind.RESAMPLED)
        return repeated(x, counts)

    def resampled(self, x: Form) -> Form:
        """Weighted means of positions, the same for every sample and channel; their weights sum to 1."""
        axes = len(x.sizes) - 2
        sizes, factors = _each(self.size, axes), _each(self.scale_factor, axes)
        maps: dict[int, Resampling] = {}
        for dim, size, factor in zip(range(-axes, 0), sizes, factors, strict=True):
            name = ("interpolate", factor, self.mode, self.align_corners, self.recompute_scale_factor, self.antialias)
            before = x.sizes[dim]
            maps[dim] = Resampling(name, before, _grown(before, size, factor), TAPS.get(self.mode, 2))
        return resampled(x, maps)

    def probed(self, x: Form) -> Form:
        """A full matrix."""
        axes = len(x.sizes) - 2
        if any(isinstance(n, Size) and not n.known for n in (*_each(self.size, axes), *_each(self.scale_factor, axes))):
            raise NotFusable(
                "interpolate to a size that is computed at run time, and is no multiple of the one before", Kind.SIZES
            )
        numbers = [n.factor if isinstance(n, Size) else n for n in _each(self.size, axes)]
        rest = (self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor, self.antialias)
        return probe(x, lambda tensor: F.interpolate(tensor, None if self.size is None else numbers, *rest))


def _grown(before: Size, size: Extent | None, factor: float | None) -> Size:
    """The size after resampling by a factor, or to a size."""
    if size is not None:
        return size if isinstance(size, Size) else fixed(size)
    if factor is None:
        raise NotFusable("resampled by a factor that is computed at run time", Kind.RESAMPLED)
    if before.known:
        return fixed(math.floor(before.factor * factor))
    ratio = Fraction(factor)
    if ratio.denominator > FINEST:
        raise NotFusable(
            "resampled by a factor whose products with sizes are rounded, of a size that is free", Kind.RESAMPLED
        )
    return stencil_size(before * fixed(ratio.numerator), ratio.denominator, -ratio.denominator)


def _closed(x: Form, per_axis: object) -> Form:
    """With its rank known: one number per axis tells it; else a batch of images that a window reads is assumed."""
    rank = len(per_axis) + 2 if isinstance(per_axis, Sequence) else len(x.sizes)
    if rank < 3:
        raise NotFusable(NO_RANK)
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
