"""Each builder next to the torch function it must equal, so that one drawn layer can be read and run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reparamkit.algebra import build, regroup, segments
from reparamkit.algebra.form import Form
from reparamkit.algebra.form import plus as plus_forms
from reparamkit.algebra.operator import FLIP, Resampling
from reparamkit.algebra.size import fixed, product

from .oracle import evaluate, source

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True, repr=False)
class Layer:
    """A layer twice: `read` maps the form of its input to that of its output, `run` is torch's own."""

    name: str
    read: Callable[[Form], Form]
    run: Callable[[Tensor], Tensor]

    def __rshift__(self, then: Layer) -> Layer:
        """This layer, then another."""
        return Layer(f"{self.name} >> {then.name}", lambda f: then.read(self.read(f)), lambda x: then.run(self.run(x)))

    def __add__(self, other: Layer) -> Layer:
        """Two branches on one tensor."""
        return Layer(
            f"({self.name} + {other.name})",
            lambda f: plus_forms(self.read(f), other.read(f)),
            lambda x: self.run(x) + other.run(x),
        )

    def __repr__(self) -> str:
        return self.name


def assert_same(layer: Layer, x: Tensor, exact: bool = True) -> Form:
    """What the layer is read as gives what the layer gives, bit for bit if `exact`; returns the form."""
    form = layer.read(source(x))
    assert_equal(evaluate(form, x=x), layer.run(x), exact)
    return form


def assert_equal(found: Tensor, expected: Tensor, exact: bool = True) -> None:
    """Equal shapes and numbers, up to the last bits of float64 unless `exact`."""
    assert found.shape == expected.shape
    if exact:
        assert torch.equal(found, expected), f"differs by up to {(found - expected).abs().max()}"
    else:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def accepts(run: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether torch takes an input of this size, and makes something of it."""
    try:
        return run(x).numel() > 0
    except RuntimeError:
        return False


IDENTITY = Layer("identity", lambda f: f, lambda x: x)


def conv(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int | tuple[int, int]] | int = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Layer:
    """weight: (out, in / groups, k1, ..., kr); padding may be a (low, high) pair per axis."""
    rank = weight.dim() - 2
    paddings = [padding] * rank if isinstance(padding, int) else list(padding)
    pads = [p if isinstance(p, tuple) else (p, p) for p in paddings]

    def run(x: Tensor) -> Tensor:
        if all(low == high for low, high in pads):
            return CONV[rank](x, weight, bias, stride, [low for low, _ in pads], dilation, groups)
        return CONV[rank](F.pad(x, _flat(pads)), weight, bias, stride, 0, dilation, groups)

    name = f"conv{tuple(weight.shape)} b={bias is not None} s={stride} p={padding} d={dilation} g={groups}"
    return Layer(name, lambda f: build.conv(f, weight, bias, stride, padding, dilation, groups), run)


TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv_transposed(
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Layer:
    """weight: (in, out / groups, k1, ..., kr)."""
    rest = (bias, stride, padding, output_padding, groups, dilation)
    return Layer(
        f"transposed{tuple(weight.shape)} b={bias is not None} s={stride} p={padding} o={output_padding}"
        f" g={groups} d={dilation}",
        lambda f: build.conv_transposed(f, weight, *rest),
        lambda x: TRANSPOSED[weight.dim() - 2](x, weight, *rest),
    )


def repeated(counts: Sequence[int]) -> Layer:
    """Nearest up-sampling of all axes but the first two."""

    def run(x: Tensor) -> Tensor:
        for axis, count in enumerate(counts, start=2):
            x = x.repeat_interleave(count, axis)
        return x

    return Layer(f"repeated{tuple(counts)}", lambda f: build.repeated(f, counts), run)


def gathered(dim: int, positions: Sequence[int]) -> Layer:
    """Positions of a dimension (from the right), in any order and number: a resampling."""
    name = ("positions", tuple(positions))

    def read(f: Form) -> Form:
        return build.resampled(f, {dim: Resampling(name, f.sizes[dim], fixed(len(positions)))})

    return Layer(f"{list(positions)} of {dim}", read, lambda x: x.index_select(dim, torch.tensor(positions)))


def flipped(dim: int) -> Layer:
    """Positions of a dimension (from the right) last to first: a resampling that windows commute with."""

    def read(f: Form) -> Form:
        return build.resampled(f, {dim: Resampling(FLIP, f.sizes[dim], f.sizes[dim])})

    return Layer(f"flip of {dim}", read, lambda x: x.flip(dim))


def surrounded(n: int, before: Sequence[int], behind: Sequence[int], mode: str = "") -> Layer:
    """The last axis, of n positions, with some of them before it and behind it once more; mode: see `Resampling`."""
    positions = (*before, *range(n), *behind)
    around = (len(before), len(behind))

    def read(f: Form) -> Form:
        name = ("positions", positions)
        return build.resampled(f, {-1: Resampling(name, f.sizes[-1], fixed(len(positions)), 0, around, mode)})

    return Layer(f"{list(positions)}", read, lambda x: x.index_select(-1, torch.tensor(positions)))


def cropped(dim: int, start: int, stop: int | None, step: int) -> Layer:
    """A slice of one dimension, counted from the right."""

    def run(x: Tensor) -> Tensor:
        return x[(..., slice(start, stop, step), *[slice(None)] * (-dim - 1))]

    return Layer(f"[{start}:{stop}:{step}] of {dim}", lambda f: segments.cropped(f, dim, start, stop, step), run)


def padded(pads: Sequence[tuple[int, int]]) -> Layer:
    """Zeros around the last axes, (low, high) each; negative numbers crop."""
    return Layer(f"pad{pads}", lambda f: segments.padded(f, pads), lambda x: F.pad(x, _flat(pads)))


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    return [n for pair in reversed(pads) for n in pair]


def concatenated(parts: Sequence[Layer], dim: int) -> Layer:
    """What each layer gives, one after the other along dimension `dim` (from the right)."""
    return Layer(
        f"cat({', '.join(part.name for part in parts)}; dim={dim})",
        lambda f: segments.concatenated([part.read(f) for part in parts], dim),
        lambda x: torch.cat([part.run(x) for part in parts], dim),
    )


def pool(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Layer:
    """An average pool."""
    return Layer(
        f"pool{kernel} s={stride} p={padding}",
        lambda f: build.pool(f, kernel, stride, padding),
        lambda x: POOL[len(kernel)](x, kernel, stride, padding),
    )


def linear(weight: Tensor, bias: Tensor | None = None) -> Layer:
    """weight: (out, in)."""
    return Layer(
        f"linear{tuple(weight.shape)} b={bias is not None}",
        lambda f: build.linear(f, weight, bias),
        lambda x: F.linear(x, weight, bias),
    )


def matrix(weight: Tensor, dim: int, bias: Tensor | None = None) -> Layer:
    """weight: (out, in), along dimension `dim`."""
    return Layer(
        f"matrix{tuple(weight.shape)} dim={dim} b={bias is not None}",
        lambda f: build.matrix(f, weight, dim, bias),
        lambda x: F.linear(x.movedim(dim, -1), weight, bias).movedim(-1, dim),
    )


def scale(factor: Tensor, dim: int, bias: Tensor | None = None) -> Layer:
    """factor, bias: (size of dim,)."""

    def run(x: Tensor) -> Tensor:
        if x.shape[dim] != len(factor):
            raise RuntimeError("a batch norm checks its channels")
        moved = x.movedim(dim, -1) * factor
        return (moved if bias is None else moved + bias).movedim(-1, dim)

    name = f"scale({len(factor)}) dim={dim} b={bias is not None}"
    return Layer(name, lambda f: build.scale(f, factor, dim, bias), run)


def multiply(factor: Tensor) -> Layer:
    """factor: any shape that broadcasts to the input."""
    return Layer(f"multiply{tuple(factor.shape)}", lambda f: build.multiply(f, factor), lambda x: x * factor)


def offset(constant: Tensor) -> Layer:
    """constant: any shape that broadcasts to the input."""
    return Layer(f"offset{tuple(constant.shape)}", lambda f: build.offset(f, constant), lambda x: x + constant)


def mean(dims: Sequence[int], keepdim: bool = False) -> Layer:
    """The average over whole dimensions, numbered from the right."""
    return Layer(
        f"mean{tuple(dims)} keepdim={keepdim}",
        lambda f: build.mean(f, dims, keepdim),
        lambda x: x.mean(tuple(dims), keepdim),
    )


def reshape(*sizes: int) -> Layer:
    """The value in other dimensions, row-major."""
    return Layer(f"reshape{sizes}", lambda f: regroup.reshape(f, [fixed(n) for n in sizes]), lambda x: x.reshape(sizes))


def joined(*groups: Sequence[int]) -> Layer:
    """Join runs of dimensions to one each, whatever their sizes: ``joined([0], [1, 2])`` flattens the last two."""
    return Layer(
        f"joined{groups}",
        lambda f: regroup.reshape(f, [product(f.sizes[d] for d in group) for group in groups]),
        lambda x: x.reshape([math.prod(x.shape[d] for d in group) for group in groups]),
    )


def permute(*order: int) -> Layer:
    """Dimension ``order[d]`` becomes dimension d."""
    return Layer(f"permute{order}", lambda f: regroup.permute(f, order), lambda x: x.permute(order))
