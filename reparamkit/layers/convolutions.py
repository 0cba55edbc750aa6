"""Convolutions, transposed ones and those that pad by themselves, from operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..algebra.operator import Link, Operator, Role
from ..errors import NotFusable
from ..reasons import Kind, Reason
from .plans import (
    NOTHING_MIXED,
    Attempt,
    LayerPlan,
    check_passes,
    fill,
    mixing,
    tried,
    vector_along,
)
from .price import Cost, numel
from .windows import Spread, Window, ends_padded, is_full, is_uneven, keeps_size, spread, unpadded, window

OWN_CALL_ONLY = Reason("a resampling, that only its own call computes, would be merged", Kind.RESAMPLED)

FREE, D, S, IN, OUT = Role.FREE, Role.DIAGONAL, Role.STENCIL, Role.IN, Role.OUT

CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


PADS: dict[int, type[nn.ZeroPad1d] | type[nn.ZeroPad2d] | type[nn.ZeroPad3d]] = {
    1: nn.ZeroPad1d,
    2: nn.ZeroPad2d,
    3: nn.ZeroPad3d,
}


TRANSPOSED: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}

TRANSPOSED_FUNCTIONS = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d, *TRANSPOSED_FUNCTIONS)


def conv_of(rank: int, uneven: bool = False, transposed: bool = False) -> Attempt:
    """How to write a convolution over so many dimensions. uneven: whether zeros may be added to one end of its input
    by a pass of its own. transposed: whether a transposed one may do what a plain one can.
    """
    return lambda op, bias: _conv(op, bias, rank, uneven, transposed)


def _conv(op: Operator, bias: Operator | None, rank: int, uneven: bool, transposed: bool) -> LayerPlan:
    dims = len(op.value)
    if not op.has(IN, OUT, S):
        raise NotFusable(NOTHING_MIXED)
    if dims - rank != 2 and not (op.open_rank and dims - rank > 2):
        raise NotFusable(f"a {rank}-d convolution needs {rank + 2} dimensions", Kind.SHAPES)
    channel = dims - rank - 1
    check_passes(op, range(channel), (FREE,))
    check_passes(op, range(channel + 1, dims), (FREE, S))
    mixed, vector = mixing(op, channel, grouped=True), vector_along(bias, channel)
    spatial = list(_spatial(mixed, channel))
    if _spreads(mixed, transposed):
        return _transposed_plan(mixed, vector, channel, [spread(link) for link in spatial])
    made = _conv_plan(mixed, vector, channel, [window(link) for link in spatial])
    if not (any(map(is_uneven, spatial)) and (uneven or all(map(keeps_size, spatial)))):
        return made
    return min(made, _padded_first(mixed, vector, channel, spatial), key=lambda each: each.cost.flops)


def multiply_adds(op: Operator, transposed: bool) -> int:
    """Of a layer that mixes: each number of the value gathers a window, or each of the source is spread over one.

    transposed: whether the layer is a transposed convolution, where a plain one could do it.
    """
    spreads = _spreads(op, transposed)
    work = math.prod(op.links[i].leg_size for i in op.legs if op.links[i].role in (S, OUT if spreads else IN))
    return numel(op.source_sizes if spreads else op.value_sizes) * work


def is_transposed(kind: object) -> bool:
    """Whether a class of layers, or a function, is a transposed convolution."""
    return (isinstance(kind, type) and issubclass(kind, _ConvTransposeNd)) or kind in TRANSPOSED_FUNCTIONS


def is_convolution(kind: object) -> bool:
    """Whether a class of layers, or a function, is a convolution, transposed or not."""
    return (isinstance(kind, type) and issubclass(kind, _ConvNd)) or kind in FUNCTIONS


def _spreads(op: Operator, transposed: bool) -> bool:
    """Whether a transposed convolution is written: for what upsamples; for what adds to the size only in the place of
    one, as it multiplies less often, but takes longer than a plain one.
    """
    stencils = [link for link in op.links if link.role is S]
    if any(link.up > 1 for link in stencils):
        return True
    if not transposed:
        return False
    added = [link.size_out.hint - link.size_in.hint for link in stencils]
    return max(added, default=0) > 0 and min(added) >= 0 and all(map(is_full, stencils))


def _padded_first(op: Operator, vector: Operator | None, channel: int, spatial: list[Link | None]) -> LayerPlan:
    """Zeros first, then an unpadded convolution: where one end is padded by more, a symmetric window has more taps."""
    made = _conv_plan(op, vector, channel, [unpadded(link) for link in spatial])
    pads = [n for link in reversed(spatial) for n in (ends_padded(link) if link is not None else (0, 0))]

    def build() -> nn.Module:
        return nn.Sequential(PADS[len(spatial)](tuple(pads)), made.build())  # type: ignore[arg-type]

    return replace(made, cost=made.cost + Cost(0, _with_zeros(op, sum), 0, 1), build=build, checks=None)


def uneven_cost(op: Operator) -> Cost:
    """Of a convolution that pads one end by more: torch pads its input by a pass of its own."""
    # What is the same for all channels is no convolution: a padding, an average.
    uneven = op.has(IN, OUT, D) and any(map(is_uneven, op.links))
    return Cost(0, _with_zeros(op, lambda ends: abs(ends[1] - ends[0])), 0, 1) if uneven else Cost()


def _with_zeros(op: Operator, added: Callable[[tuple[int, int]], int]) -> int:
    """How many elements the input has behind a pass that pads it. added: how many zeros, of what the layer pads before
    and after.
    """
    links = [op.links[i] for dim in op.source for i in dim]
    return math.prod(link.size.hint + (max(0, added(ends_padded(link))) if link.role is S else 0) for link in links)


def _spatial(op: Operator, channel: int) -> Iterator[Link | None]:
    for dim in op.value[channel + 1 :]:
        stencils = [op.links[i] for i in dim if op.links[i].role is S]
        if stencils and len(dim) > 1:
            raise NotFusable("a window along part of a dimension", Kind.BORDER)
        yield stencils[0] if stencils else None


def _settings(windows: Sequence[Window | Spread]) -> dict[str, Any]:
    """What a layer is told of its windows."""
    return {
        "kernel_size": tuple(w.k for w in windows),
        "stride": tuple(w.stride for w in windows),
        "padding": tuple(w.padding for w in windows),
        "dilation": tuple(w.dilation for w in windows),
    }


def _conv_plan(op: Operator, vector: Operator | None, channel: int, windows: list[Window]) -> LayerPlan:
    groups, ins, outs = _channels(op, channel)
    taps = math.prod(w.k for w in windows)

    def build() -> nn.Module:
        layer = CONVS[len(windows)](
            ins, outs, groups=groups, bias=vector is not None, device="meta", **_settings(windows)
        )
        fill(layer, _kernel(op, channel, windows, groups), vector, outs)
        return layer

    stored = outs * (ins // groups) * taps + (outs if vector is not None else 0)
    work = numel(op.value_sizes) * (ins // groups) * taps
    return LayerPlan("conv", Cost(work, 0, stored, 1), build, outs * (vector is not None), checks=-1 - len(windows))


def _transposed_plan(op: Operator, vector: Operator | None, channel: int, windows: list[Spread]) -> LayerPlan:
    groups, ins, outs = _channels(op, channel)
    taps = math.prod(w.k for w in windows)

    def build() -> nn.Module:
        layer = TRANSPOSED[len(windows)](
            ins,
            outs,
            output_padding=tuple(w.extra for w in windows),  # type: ignore[arg-type]
            groups=groups,
            bias=vector is not None,
            device="meta",
            **_settings(windows),
        )
        kernel = _kernel(op, channel, windows, groups)
        turned = kernel.reshape(groups, outs // groups, *kernel.shape[1:]).transpose(1, 2).flatten(0, 1)
        fill(layer, turned.contiguous(), vector, outs)
        return layer

    stored = ins * (outs // groups) * taps + (outs if vector is not None else 0)
    work = numel(op.source_sizes) * (outs // groups) * taps
    return LayerPlan("conv", Cost(work, 0, stored, 1), build, outs * (vector is not None), checks=-1 - len(windows))


def padded(op: Operator, bias: Operator | None) -> LayerPlan:
    """An unpadded convolution whose axes are all padded first, in one mode."""
    pads = [_pad(op, dim) for dim in op.value]
    modes = {mode for mode, _ in filter(None, pads)}
    bare = replace(op, links=tuple(replace(link, maps=()) for link in op.links))
    made = next((m for rank in CONVS if (m := tried(conv_of(rank), bare, bias)) is not None), None)
    if made is None or len(modes) != 1:
        raise NotFusable(OWN_CALL_ONLY)
    (mode,) = modes

    def build() -> nn.Module:
        conv = made.build()
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        amounts = [pad[1] if pad else 0 for pad in pads[-len(conv.kernel_size) :]]
        return _with_padding(conv, mode, amounts)

    return replace(made, cost=made.cost + padding_cost(op), build=build)


def padding_cost(op: Operator) -> Cost:
    """Of a convolution that pads its input by a pass of its own."""
    padded = tuple(link.size for link in op.links if link.role is not OUT)
    return Cost(0, numel(padded), 0, 1) if op.resamples else Cost()


def _pad(op: Operator, dim: tuple[int, ...]) -> tuple[str, int] | None:
    """How a dimension is padded: the mode, and by how much on both sides."""
    links = [op.links[i] for i in dim]
    maps = [each for link in links for each in link.maps]
    unpadded = all(not link.after and (link.role is not S or window(link).padding == 0) for link in links)
    if not unpadded or len(maps) > 1 or any(each.name[0] != "pad" or each.name[2] != each.name[3] for each in maps):
        raise NotFusable(OWN_CALL_ONLY)
    return (str(maps[0].name[1]), int(str(maps[0].name[2]))) if maps else None


def _with_padding(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, mode: str, pads: list[int]) -> nn.Module:
    made = type(conv)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        tuple(pads),  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        mode,  # type: ignore[arg-type]
        device="meta",
    )
    made.weight, made.bias = conv.weight, conv.bias
    return made


def _channels(op: Operator, channel: int) -> tuple[int, int, int]:
    """Groups, channels in, channels out."""
    groups = math.prod(op.links[i].leg_size for i in op.source[channel] if op.links[i].role is D)
    size_in, size_out = op.source_sizes[channel], op.value_sizes[channel]
    if not (size_in.known and size_out.known):
        raise NotFusable("a convolution over a free number of channels", Kind.SIZES)
    return groups, size_in.factor, size_out.factor


def _kernel(op: Operator, channel: int, windows: Sequence[Window | Spread], groups: int) -> Tensor:
    """The weight as (out, in / groups, k1, ..., kr)."""
    legs = list(op.legs)
    stencils = [next((i for i in dim if op.links[i].role is S), None) for dim in op.value[channel + 1 :]]
    lead = [i for i in op.source[channel] if op.links[i].role is D]
    outs = [i for i in op.value[channel] if op.links[i].role is OUT]
    ins = [i for i in op.source[channel] if op.links[i].role is IN]
    order = [legs.index(i) for i in (*lead, *outs, *ins, *(i for i in stencils if i is not None))]
    out, inner = _count(op, lead + outs), _count(op, ins)
    kernel = op.weight.tensor().permute(order)
    kernel = kernel.reshape(out, inner, *(1 if i is None else op.links[i].leg_size for i in stencils))
    for axis, place in enumerate(windows, start=2):
        kernel = _placed(kernel, axis, place)
    return kernel


def _count(op: Operator, links: list[int]) -> int:
    return math.prod(op.links[i].leg_size for i in links)


def _placed(kernel: Tensor, axis: int, place: Window | Spread) -> Tensor:
    if place.places == tuple(range(place.k)):
        return kernel
    shape = list(kernel.shape)
    shape[axis] = place.k
    wide = kernel.new_zeros(shape)
    wide.movedim(axis, 0)[list(place.places)] = kernel.movedim(axis, 0)
    return wide
