"""Averages: pooling windows whose weights are the same everywhere, and whole axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..algebra.align import traced_pins
from ..algebra.build import mean, multiply, pool, resampled
from ..algebra.form import Form
from ..algebra.operator import Resampling, pin
from ..algebra.regroup import NO_RANK, in_sight, known_rank, reshape
from ..algebra.size import ONE, Size, fixed, product, stencil_size
from ..errors import NotFusable
from ..reasons import Kind, Reason
from .probed import probe_module
from .registry import READERS, either

PerAxis = int | Sequence[int]
Kernel = int | Size | Sequence[int | Size]
AXES = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
ADAPTIVE = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}


@READERS.reader(*AXES)
def read_avg_pool_layer(layer: nn.AvgPool2d, input: Form) -> tuple[Form, ...]:
    """A window of equal weights, or means of positions; a full matrix where windows differ at the border."""
    axes = next(n for cls, n in AXES.items() if isinstance(layer, cls))
    divisor = getattr(layer, "divisor_override", None)
    window = _Window(input, axes, layer.kernel_size, layer.stride, layer.padding)
    how = layer.ceil_mode, layer.count_include_pad, divisor
    readings = [lambda: window.even(*how), lambda: window.means(*how)]
    return either(*readings, *[lambda: probe_module(layer, input)] * bool(window.uneven(*how)))


def _reader_of(axes: int) -> Callable[..., tuple[Form, ...]]:
    def read_avg_pool(
        input: Form,
        kernel_size: Kernel,
        stride: Kernel | None = None,
        padding: PerAxis = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> tuple[Form, ...]:
        if _is_computed(kernel_size):
            once = stride in (None, (), kernel_size) and divisor_override is None and not any(_each(padding, axes))
            return either(lambda: _over_whole(input, axes, kernel_size, once))
        window = _Window(input, axes, kernel_size, stride, padding)  # type: ignore[arg-type]
        how = ceil_mode, count_include_pad, divisor_override
        return either(lambda: window.even(*how), lambda: window.means(*how))

    return read_avg_pool


for _axes, _function in ((1, F.avg_pool1d), (2, F.avg_pool2d), (3, F.avg_pool3d)):
    READERS.reader(_function, sizes=True)(_reader_of(_axes))


def _is_computed(kernel: Kernel) -> bool:
    return any(isinstance(k, Size) for k in (kernel if isinstance(kernel, (tuple, list)) else (kernel,)))


def _over_whole(x: Form, axes: int, kernel: Kernel, once: bool) -> Form:
    """A window whose size is computed: the mean over whole axes, if it is theirs. once: it is applied at one place."""
    x = in_sight(x, axes)
    given = kernel if isinstance(kernel, (tuple, list)) else (kernel,) * axes
    window = [k if isinstance(k, Size) else fixed(k) for k in given]  # type: ignore[arg-type]
    apart = [pair for pair in zip(window, x.sizes[-axes:], strict=True) if pair[0] != pair[1]]
    if not once or any(k.hint != size.hint or not (k.traced and size.traced) for k, size in apart):
        raise NotFusable("a window of a size that is computed at run time, and is not that of the axis", Kind.SIZES)
    # The height of a square map is its width too.
    pins = traced_pins([size for pair in apart for size in pair])
    return mean(x.mapped(lambda op: pin(op, pins, guard=True)), range(-axes, 0), keepdim=True)


class _Window:
    """The windows of an average pool over the last `axes` dimensions of x."""

    def __init__(self, x: Form, axes: int, kernel: PerAxis, stride: PerAxis | None, padding: PerAxis) -> None:
        self.x, self.kernel, self.padding = x, _each(kernel, axes), _each(padding, axes)
        self.stride = self.kernel if stride in (None, ()) else _each(stride or kernel, axes)

    def uneven(self, ceil_mode: bool, count_include_pad: bool, divisor: int | None) -> Reason | None:
        """Why windows differ in what they divide by, if they do."""
        if divisor is None and not count_include_pad and any(self.padding):
            weighs = "average pooling with count_include_pad=False weighs border windows differently"
            return Reason(weighs, Kind.BORDER)
        if ceil_mode and not self._fit():
            cut = "average pooling with ceil_mode may have windows that are cut off at the end"
            return Reason(cut, Kind.RESAMPLED)
        return None

    def _fit(self) -> bool:
        """Whether the last window ends where the padded axis does."""
        axes = len(self.kernel)
        sizes = self.x.sizes[-axes:] if len(self.x.sizes) > axes else (None,) * axes
        return all(
            s == 1 or (n is not None and n.known and (n.factor + 2 * p - k) % s == 0)
            for n, k, s, p in zip(sizes, self.kernel, self.stride, self.padding, strict=True)
        )

    def average(self, divisor: int | None) -> Form:
        return pool(self.x, self.kernel, self.stride, self.padding, divisor)

    def even(self, ceil_mode: bool, count_include_pad: bool, divisor: int | None) -> Form:
        if reason := self.uneven(ceil_mode, count_include_pad, divisor):
            raise NotFusable(reason)
        return self.average(divisor)

    def means(self, ceil_mode: bool, count_include_pad: bool, divisor: int | None) -> Form:
        """The windows as means of positions, which constants pass; not if zeros of the padding count."""
        if divisor is not None or (count_include_pad and any(self.padding)) or (ceil_mode and not self._fit()):
            raise NotFusable("averages of windows with zeros in them, or with a divisor of their own", Kind.RESAMPLED)
        axes = len(self.kernel)
        x, maps = in_sight(self.x, axes), {}
        for dim, k, s, p in zip(range(-axes, 0), self.kernel, self.stride, self.padding, strict=True):
            size = x.sizes[dim]
            maps[dim] = Resampling(("average", k, s, p), size, stencil_size(size, s, 2 * p - k), k)
        return resampled(x, maps)


def _each(value: PerAxis, axes: int) -> list[int]:
    values = [value] * axes if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


@READERS.reader(*ADAPTIVE)
def read_adaptive_pool_layer(layer: nn.AdaptiveAvgPool2d, input: Form) -> tuple[Form, ...]:
    """An average over whole axes or equal windows; unequal ones are read by probing, on fixed sizes."""
    axes = next(n for cls, n in ADAPTIVE.items() if isinstance(layer, cls))
    size = layer.output_size
    windows = _adaptive_windows(input, size, axes)
    if windows is not None:
        return either(lambda: _adapted(input, windows), lambda: _adaptive_means(input, size, axes))
    return either(lambda: _adaptive_means(input, size, axes), lambda: probe_module(layer, input))


def _adaptive_reader_of(axes: int) -> Callable[..., tuple[Form, ...]]:
    def read_adaptive_pool(input: Form, output_size: Any) -> tuple[Form, ...]:
        windows = _adaptive_windows(input, output_size, axes)
        means = partial(_adaptive_means, input, output_size, axes)
        return either(means) if windows is None else either(lambda: _adapted(input, windows), means)

    return read_adaptive_pool


def _adaptive_means(x: Form, output_size: Any, axes: int) -> Form:
    """Windows of any sizes, as means of positions."""
    wanted = [output_size] * axes if isinstance(output_size, int) else list(output_size)
    if all(n in (None, 1) for n in wanted):
        raise NotFusable("averages over whole axes, which are read as such", Kind.RESAMPLED)
    x, maps = in_sight(x, axes), {}
    for dim, n in zip(range(-axes, 0), wanted, strict=True):
        if n is not None:
            size = x.sizes[dim]
            maps[dim] = Resampling(("adaptive", n), size, fixed(n), size.hint // max(n, 1) + 1)
    return resampled(x, maps)


for _axes, _adaptive in enumerate((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), 1):
    READERS.reader(_adaptive)(_adaptive_reader_of(_axes))


def _adaptive_windows(x: Form, output_size: Any, axes: int) -> list[int] | None:
    """Per axis the window whose average each output is, 0 for the whole axis; None if windows differ in size."""
    wanted = [output_size] * axes if isinstance(output_size, int) else list(output_size)
    sizes = x.sizes[-axes:] if len(x.sizes) > axes else (None,) * axes
    found = [_adaptive_window(n, size) for n, size in zip(wanted, sizes, strict=True)]
    return [k for k in found if k is not None] if None not in found else None


def _adaptive_window(wanted: int | None, size: Size | None) -> int | None:
    """None keeps an axis as it is."""
    if wanted in (None, 1):
        return 0 if wanted else 1
    ratio = None if size is None else size.divide(fixed(1 if wanted is None else wanted))
    return ratio.factor if ratio is not None and ratio.known else None


def _adapted(x: Form, windows: list[int]) -> Form:
    whole = [axis - len(windows) for axis, k in enumerate(windows) if k == 0]
    kernel = [k or 1 for k in windows]
    pooled = pool(x, kernel, kernel) if any(k > 1 for k in kernel) else x
    return mean(pooled, whole, keepdim=True)


@READERS.reader(torch.mean, "mean", divides=True)
def read_mean(input: Form, dim: PerAxis | None = None, keepdim: bool = False) -> Form:
    """An average over dimensions of any size; refuses one over all of them, the batch too (no `dim`)."""
    x, dims = _reduced(input, dim)
    return mean(x, dims, keepdim)


@READERS.reader(torch.sum, "sum", divides=True)
def read_sum(input: Form, dim: PerAxis | None = None, keepdim: bool = False) -> Form:
    """So many times an average as there are positions; if that is free, code must divide by it."""
    x, dims = _reduced(input, dim)
    x = in_sight(x, max(-d for d in dims))
    count = product(x.sizes[d] for d in dims)
    averaged = mean(x, dims, keepdim)
    if count.known:
        return multiply(averaged, torch.tensor(float(count.factor)))
    return replace(averaged, times=averaged.times * count)


def _reduced(x: Form, dim: PerAxis | None) -> tuple[Form, list[int]]:
    """A value and the dimensions, from the right, that a call averages over."""
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if not dims:
        raise NotFusable("a mean over the batch", Kind.SHAPES)
    if x.open_rank and any(d >= 0 for d in dims):
        x = _spatial_rank(x, dims)
    return x, [d if d < 0 else d - len(x.sizes) for d in dims]


def _spatial_rank(x: Form, dims: Sequence[int]) -> Form:
    """Dimension numbers from the left say nothing about an open rank: assume a batch of one, guarded; not of tokens, of
    which only the channels are in sight, and which are as likely to have a dimension more.
    """
    if len(x.sizes) - 1 != max(dims) or len(dims) == len(x.sizes) - 1:
        raise NotFusable(NO_RANK)
    return known_rank(x, [max(dims) + 1], certain=False)


def without_units(x: Form, dims: Sequence[int]) -> Form:
    """Remove dimensions of size 1; of a size that is free, as it is in the example, behind a guard."""
    rank = len(x.sizes)
    gone = {d % rank for d in dims}
    pins = traced_pins([x.sizes[d] for d in gone if x.sizes[d].hint == 1])
    x = x.mapped(lambda op: pin(op, pins, guard=True))
    sizes: list[Size] = list(x.sizes)
    if any(sizes[d] != ONE for d in gone):
        raise NotFusable("squeezes a dimension that is not known to be 1", Kind.SIZES)
    return reshape(x, [size for d, size in enumerate(sizes) if d not in gone], counts=True)
