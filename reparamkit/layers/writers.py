"""From an operator to the plainest layer that computes it: scale, linear, convolution, grouped convolution.

Structure first: `plan` says what layer it would be and what it costs; `LayerPlan.module` computes the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.form import as_bias
from ..algebra.operator import Link, Operator, Role, as_diagonal, densify, identity, strided, whole
from ..errors import NotFusable
from .price import Cost, numel
from .shift import Shift

F, D, S, IN, OUT, BORDER = Role.FREE, Role.DIAGONAL, Role.STENCIL, Role.IN, Role.OUT, Role.BORDER
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


class Scale(nn.Module):
    """``weight * x + bias`` with broadcasting: what is left of a batch norm that nothing can absorb.

    weight, bias: any shape that broadcasts to x, or None.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape that weight and bias broadcast to; so is the result."""
        if self.weight is None:
            return x if self.bias is None else x + self.bias
        scaled = x * self.weight if self.bias is None else torch.addcmul(self.bias, x, self.weight)
        # The layers this replaces take no other size, so neither may broadcasting.
        return scaled.view_as(x)

    def extra_repr(self) -> str:
        """Shapes, for print(model)."""
        shapes = {n: tuple(p.shape) for n, p in self.named_parameters()}
        return ", ".join(f"{name}={shape}" for name, shape in shapes.items())


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """A layer to be.

    kind: "scale", "linear" or "conv". cost: for the sizes of the example inputs.
    build: makes the module; its weights are float64 on the CPU. bias: numbers in the bias of a weight.
    beside: why the bias is added by a layer of its own; "" if it is not.
    checks: the dimension (from the right) whose size the module itself insists on.
    calls: methods of its result that give the value, with their arguments: views, and a copy where they permute.
    """

    kind: str
    cost: Cost
    build: Callable[[], nn.Module]
    bias: int = 0
    beside: str = ""
    checks: int | None = None
    calls: tuple[Call, ...] = ()


Call = tuple[str, tuple[Any, ...]]


def plan(op: Operator, bias: Operator | None) -> LayerPlan:
    """The cheapest layer that computes ``op(x) + bias``, or one that computes ``op(x)`` and one that adds the bias.

    Raises `NotFusable` if no such layers do on tensors of these dimensions.
    """
    if len(op.source) != len(op.value):
        raise NotFusable("a layer that changes the number of dimensions")
    if op.resamples:
        return _padded(op, bias)
    op = strided(whole(op))
    plans = [made for attempt in ATTEMPTS if (made := _tried(attempt, op, bias)) is not None]
    if not plans and bias is not None and (beside := _tried(_beside, op, bias)) is not None:
        return beside
    if not plans:
        raise NotFusable(_why_not(op, bias))
    # Of equals, a convolution: its result is contiguous, which code behind it may count on.
    return min(plans, key=lambda p: (p.cost.flops, p.cost.stored, p.cost.launches, p.kind == "scale"))


def turned(op: Operator, bias: Operator | None) -> LayerPlan:
    """A layer whose value has the dimensions of its source, in their order; views make of them what is wanted.

    Raises `NotFusable` as `plan` does, and where the dimensions are in order.
    """
    homes = _homes(op) if op.has(S, IN, OUT) else []
    if not homes or homes == [[d] for d in range(len(op.source))]:
        raise NotFusable("mixes several dimensions")
    made = plan(_regrouped(op, homes), None if bias is None else as_bias(_regrouped(bias, homes)))
    calls, elements = [*_split_up(op, homes)], 0
    order = [d for home in homes for d in home]
    if order != sorted(order):
        if op.open_rank:
            raise NotFusable("the rank of this tensor is unknown: pass example_inputs")
        # Code behind it may count on numbers in their order.
        calls += [("permute", tuple(order.index(d) for d in range(len(order)))), ("contiguous", ())]
        elements = numel(op.value_sizes)
    return replace(made, cost=made.cost + Cost(0, elements, 0, bool(elements)), calls=tuple(calls))


def _homes(op: Operator) -> list[list[int]]:
    """For each dimension of the source those of the value that its atoms are in; what is made anew is where something
    is summed.
    """
    place = {i: d for d, dim in enumerate(op.source) for i in dim}
    mixed = {d for i, d in place.items() if op.links[i].role is IN}
    homes: list[list[int]] = [[] for _ in op.source]
    for number, dim in enumerate(op.value):
        found = [*({place[i] for i in dim if i in place} or mixed)]
        if len(found) != 1:
            raise NotFusable("mixes several dimensions")
        homes[found[0]].append(number)
    if any(len(home) != 1 and {d} != mixed for d, home in enumerate(homes)):
        raise NotFusable("mixes several dimensions")
    return homes


def _regrouped(op: Operator, homes: list[list[int]]) -> Operator:
    return replace(op, value=tuple(tuple(i for d in home for i in op.value[d]) for home in homes))


def _split_up(op: Operator, homes: list[list[int]]) -> Iterator[Call]:
    """The calls that give each dimension of the value its own."""
    for dim, home in enumerate(homes, start=-len(homes)):
        if not home:
            yield "squeeze", (dim,)
        elif len(home) > 1:
            sizes = [op.value_sizes[d] for d in home]
            if not all(size.known for size in sizes):
                raise NotFusable("a matrix of free size")
            yield "unflatten", (dim, tuple(size.factor for size in sizes))


Attempt = Callable[[Operator, Operator | None], LayerPlan]


def _tried(attempt: Attempt, op: Operator, bias: Operator | None) -> LayerPlan | None:
    try:
        return attempt(op, bias)
    except NotFusable:
        return None


def _why_not(op: Operator, bias: Operator | None) -> str:
    """What stands in the way of a single layer."""
    mixed = [d for d, (a, b) in enumerate(zip(op.source, op.value, strict=True)) if a != b]
    if len(mixed) > 1:
        return "no single layer computes this: it mixes several dimensions at once"
    return "no single layer computes this: it is no scale, matrix or convolution of one dimension"


AT_BORDERS = (
    "zero padding: a bias or shift before a padded window makes border values differ, which needs a pass of its own"
)
IN_PLACES = "the bias would differ from place to place, which needs a pass of its own"


def _beside(op: Operator, bias: Operator | None) -> LayerPlan:
    """A layer without its bias, and one that adds it."""
    assert bias is not None
    made = plan(op, None)
    shift = _tried(_scale, identity(op.value_sizes), bias) or _shift(bias)
    return LayerPlan(
        made.kind,
        made.cost + shift.cost,
        lambda: nn.Sequential(made.build(), shift.build()),
        beside=AT_BORDERS if bias.has(BORDER) else IN_PLACES,
    )


def _shift(bias: Operator) -> LayerPlan:
    """The layer that adds a bias with borders, along whole dimensions."""
    bias = _uniform(bias)
    edges = [[bias.links[i] for i in dim if bias.links[i].role is BORDER] for dim in bias.value]
    if any(edge and len(dim) > 1 for edge, dim in zip(edges, bias.value, strict=True)):
        raise NotFusable("a border along part of a dimension")
    if any(link.size.hint < link.low + link.high for edge in edges for link in edge):
        raise NotFusable("zero padding: the map is smaller than its borders")
    first = next(d for d, edge in enumerate(edges) if edge)
    borders = [(edge[0].low, edge[0].high) if edge else (0, 0) for edge in edges[first:]]
    elements = numel(bias.value_sizes)
    launches = 1 + sum(map(any, borders))
    cost = Cost(elements, elements, bias.stored, launches)
    return LayerPlan("shift", cost, lambda: Shift(_broadcast(bias), borders))


# --- scale ------------------------------------------------------------------------------------------


def _scale(op: Operator, bias: Operator | None) -> LayerPlan:
    if op.source != op.value or op.has(S, IN, OUT, Role.MEAN) or (bias is not None and bias.has(BORDER)):
        raise NotFusable("not a scale")
    op = _uniform(op)
    shift = None if bias is None else _uniform(bias)
    stored = (0 if op.is_identity else op.stored) + (0 if shift is None else shift.stored)
    elements = numel(op.value_sizes)

    def build() -> nn.Module:
        weight = None if op.is_identity else _broadcast(op)
        return Scale(weight, None if shift is None else _broadcast(shift))

    return LayerPlan("scale", Cost(elements, elements, stored, 1), build)


def _uniform(op: Operator) -> Operator:
    """Make each dimension wholly FREE or wholly DIAGONAL (or one BORDER)."""
    for dim in op.value:
        if any(op.links[i].role is D for i in dim):
            op = _all_diagonal(op, dim)
    return op


def _all_diagonal(op: Operator, dim: tuple[int, ...]) -> Operator:
    for i in dim:
        if op.links[i].role in (F, BORDER):
            if not op.links[i].size.known:
                raise NotFusable("one vector along a dimension that is partly free")
            op = as_diagonal(op, i)
    return op


def _broadcast(op: Operator) -> Tensor:
    """The weight of a uniform FREE and DIAGONAL operator, shaped to broadcast against its value."""
    legs = list(op.legs)
    order = [legs.index(i) for dim in op.value for i in dim if i in legs]
    shape = [math.prod(op.links[i].leg_size if i in legs else 1 for i in dim) for dim in op.value]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return op.weight.tensor().permute(order).reshape(shape)


# --- mixing along one dimension -----------------------------------------------------------------------


def _mixing(op: Operator, dim: int, grouped: bool) -> Operator:
    """Dimension `dim` as groups x (IN -> OUT): leading DIAGONAL atoms in both, then IN and OUT atoms."""
    keep = _leading(op, dim) if grouped else 0
    while sparse := [i for i in op.source[dim][keep:] if op.links[i].role is not IN]:
        op = densify(op, sparse[0])
    if any(op.links[i].through for i in op.value[dim][keep:]) or op.source[dim][:keep] != op.value[dim][:keep]:
        raise NotFusable("atoms of this dimension come from another dimension")
    return _all_diagonal(op, op.source[dim][:keep])


def _leading(op: Operator, dim: int) -> int:
    """How many atoms both sides begin with that pass through."""
    count = 0
    for i, j in zip(op.source[dim], op.value[dim], strict=False):
        if i != j or op.links[i].role not in (F, D) or not op.links[i].size.known:
            break
        count += 1
    return count


def _passes(op: Operator, dims: range, roles: tuple[Role, ...]) -> None:
    """All atoms of these dimensions pass through in place, with one of these roles."""
    for d in dims:
        if op.source[d] != op.value[d] or any(op.links[i].role not in roles for i in op.source[d]):
            raise NotFusable("mixes several dimensions")


def _vector(op: Operator | None, dim: int) -> Operator | None:
    """A bias that varies along `dim` only."""
    if op is None:
        return None
    if any(op.links[i].has_leg for d, atoms in enumerate(op.value) for i in atoms if d != dim % len(op.value)):
        raise NotFusable("a bias that differs from place to place")
    return _all_diagonal(op, op.value[dim])


def _linear(op: Operator, bias: Operator | None) -> LayerPlan:
    rank = len(op.value)
    if not op.has(IN, OUT):
        raise NotFusable("nothing is mixed")
    _passes(op, range(rank - 1), (F,))
    mixed, vector = _mixing(op, -1, grouped=False), _vector(bias, -1)
    rows, columns = mixed.value_sizes[-1].factor, mixed.source_sizes[-1].factor
    if not (mixed.value_sizes[-1].known and mixed.source_sizes[-1].known):
        raise NotFusable("a matrix of free size")

    def build() -> nn.Module:
        layer = nn.Linear(columns, rows, bias=vector is not None, device="meta")
        legs = list(mixed.legs)
        order = [legs.index(i) for i in (*mixed.value[-1], *mixed.source[-1])]
        _fill(layer, mixed.weight.tensor().permute(order).reshape(rows, columns), vector, rows)
        return layer

    stored = rows * columns + (rows if vector is not None else 0)
    return LayerPlan(
        "linear", Cost(numel(mixed.value_sizes) * columns, 0, stored, 1), build, rows * (vector is not None), checks=-1
    )


def _fill(layer: nn.Module, weight: Tensor, vector: Operator | None, rows: int) -> None:
    layer.weight = nn.Parameter(weight)
    if vector is not None:
        layer.bias = nn.Parameter(_broadcast(vector).reshape(-1).expand(rows).contiguous())


# --- convolution ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A convolution window: taps ``dilation * j - padding``, j < k, `padding` on both sides."""

    k: int
    stride: int
    padding: int
    dilation: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Spread:
    """The window of a transposed convolution: tap index t is offset ``padding - dilation * t``."""

    k: int
    stride: int
    padding: int
    extra: int
    dilation: int
    places: tuple[int, ...]


def spread(link: Link | None) -> Spread:
    """The smallest transposed window that holds the taps of a stencil (None: of a free axis)."""
    if link is None or link.role is F:
        return Spread(1, 1, 0, 0, 1, (0,))
    if link.stride > 1:
        raise NotFusable("an upsampling that is sampled again")
    steps = {b - a for a, b in zip(link.taps, link.taps[1:], strict=False)}
    for dilation in dict.fromkeys((math.gcd(*steps) if steps else 1, 1)):
        for more in range(2 * link.up + 2):
            for above in range(more + 1):
                found = _spread(link, dilation, above, more - above)
                if found is not None:
                    return found
    raise NotFusable("an upsampling that no symmetric padding gives")


def _spread(link: Link, dilation: int, above: int, below: int) -> Spread | None:
    """With `above` and `below` zero taps more."""
    padding = link.taps[-1] + dilation * above
    first = link.taps[0] - dilation * below
    k = (padding - first) // dilation + 1
    extra = link.c + link.up + 2 * padding - dilation * (k - 1)
    if padding < 0 or not 0 <= extra < max(link.up, dilation):
        return None
    return Spread(k, link.up, padding, extra, dilation, tuple((padding - tap) // dilation for tap in link.taps))


def window(link: Link | None) -> Window:
    """The smallest symmetric window that holds the taps of a stencil (None: of a free axis)."""
    if link is None or link.role is F:
        return Window(1, 1, 0, 1, (0,))
    steps = {b - a for a, b in zip(link.taps, link.taps[1:], strict=False)}
    for dilation in (math.gcd(*steps) if steps else 1, 1):
        found = [made for c in _ends(link) if (made := _window(link, c, dilation)) is not None]
        if found:
            return min(found, key=lambda window: window.k)
    raise NotFusable("a window that no symmetric padding gives")


def _ends(link: Link) -> Sequence[int]:
    """The values of c that give the same outputs, its own first; of a size that is known since a later layer insists
    on it only its own, as a method may run this layer without that one.
    """
    reach = None if link.size.known else link.reach
    return [link.c] if reach is None else [link.c, *range(reach - link.stride + 1, reach + 1)]


def _window(link: Link, c: int, dilation: int) -> Window | None:
    first, last = link.taps[0], link.taps[-1]
    low, high = -first, c + last + 1
    # Widen with zero taps: to padding that is not negative, then to the same padding on both sides.
    target = max(low, high, 0)
    if (target - low) % dilation or (target - high) % dilation:
        target = next(
            (t for t in range(target, target + dilation) if not ((t - low) % dilation or (t - high) % dilation)), -1
        )
    if target < 0:
        return None
    first, last = first - (target - low), last + (target - high)
    places = tuple((tap - first) // dilation for tap in link.taps)
    return Window((last - first) // dilation + 1, link.stride, target, dilation, places)


def _conv_of(rank: int) -> Attempt:
    return lambda op, bias: _conv(op, bias, rank)


ATTEMPTS: tuple[Attempt, ...] = (_scale, _linear, *(_conv_of(rank) for rank in CONVS))
"""Ways to write an operator as one layer."""


def _conv(op: Operator, bias: Operator | None, rank: int) -> LayerPlan:
    dims = len(op.value)
    if not op.has(IN, OUT, S):
        raise NotFusable("nothing is mixed")
    if dims - rank != 2 and not (op.open_rank and dims - rank > 2):
        raise NotFusable(f"a {rank}-d convolution needs {rank + 2} dimensions")
    channel = dims - rank - 1
    _passes(op, range(channel), (F,))
    _passes(op, range(channel + 1, dims), (F, S))
    mixed, vector = _mixing(op, channel, grouped=True), _vector(bias, channel)
    spatial = list(_spatial(mixed, channel))
    if _spreads(mixed):
        return _transposed_plan(mixed, vector, channel, [spread(link) for link in spatial])
    made = _conv_plan(mixed, vector, channel, [window(link) for link in spatial])
    if not (all(map(_keeps_size, spatial)) and any(map(_is_uneven, spatial))):
        return made
    return min(made, _padded_first(mixed, vector, channel, spatial), key=lambda each: each.cost.flops)


def multiply_adds(op: Operator) -> int:
    """Of a layer that mixes: each number of the value gathers a window, or each of the source is spread over one."""
    work = math.prod(op.links[i].leg_size for i in op.legs if op.links[i].role in (S, OUT if _spreads(op) else IN))
    return numel(op.source_sizes if _spreads(op) else op.value_sizes) * work


def _spreads(op: Operator) -> bool:
    """Whether a transposed convolution is the cheaper one: it upsamples, or adds to the size."""
    stencils = [link for link in op.links if link.role is S]
    if any(link.up > 1 for link in stencils):
        return True
    added = [link.size_out.hint - link.size_in.hint for link in stencils]
    return max(added, default=0) > 0 and min(added) >= 0 and all(map(_is_full, stencils))


def _is_full(link: Link) -> bool:
    """Whether a transposed window that is no larger than the plain one holds the taps."""
    try:
        return spread(link).k <= window(link).k
    except NotFusable:
        return False


def _keeps_size(link: Link | None) -> bool:
    """Whether a window is padded as padding="same" does it: by one more at the end, if not by as much."""
    return link is None or link.role is F or (link.shape_preserving and link.taps[0] + link.taps[-1] in (0, 1))


def _is_uneven(link: Link | None) -> bool:
    """Whether a window is padded by more at one end than at the other."""
    if link is None or link.role is not S or link.up > 1:
        return False
    low, high = _ends_padded(link)
    return low != high


def _padded_first(op: Operator, vector: Operator | None, channel: int, spatial: list[Link | None]) -> LayerPlan:
    """Zeros first, then an unpadded convolution: where one end is padded by more, a symmetric window has more taps."""
    made = _conv_plan(op, vector, channel, [_unpadded(link) for link in spatial])
    pads = [n for link in reversed(spatial) for n in (_ends_padded(link) if link is not None else (0, 0))]

    def build() -> nn.Module:
        return nn.Sequential(PADS[len(spatial)](tuple(pads)), made.build())  # type: ignore[arg-type]

    return replace(made, cost=made.cost + Cost(0, numel(op.source_sizes), 0, 1), build=build, checks=None)


def _ends_padded(link: Link) -> tuple[int, int]:
    """By how much a window is padded before and after."""
    return (0, 0) if link.role is F else (-link.taps[0], link.c + link.taps[-1] + 1)


def _unpadded(link: Link | None) -> Window:
    """The window without zero taps at its ends."""
    if link is None or link.role is F:
        return window(link)
    steps = {b - a for a, b in itertools.pairwise(link.taps)}
    dilation = math.gcd(*steps) if steps else 1
    places = tuple((tap - link.taps[0]) // dilation for tap in link.taps)
    return Window(places[-1] + 1, link.stride, 0, dilation, places)


def uneven_cost(op: Operator) -> Cost:
    """Of a convolution that pads one end by more: torch pads its input by a pass of its own."""
    uneven = op.has(IN, OUT) and any(map(_is_uneven, op.links))
    return Cost(0, numel(op.source_sizes), 0, 1) if uneven else Cost()


def _spatial(op: Operator, channel: int) -> Iterator[Link | None]:
    for dim in op.value[channel + 1 :]:
        stencils = [op.links[i] for i in dim if op.links[i].role is S]
        if stencils and len(dim) > 1:
            raise NotFusable("a window along part of a dimension")
        yield stencils[0] if stencils else None


def _conv_plan(op: Operator, vector: Operator | None, channel: int, windows: list[Window]) -> LayerPlan:
    groups, ins, outs = _channels(op, channel)
    taps = math.prod(w.k for w in windows)

    def build() -> nn.Module:
        layer = CONVS[len(windows)](
            ins,
            outs,
            tuple(w.k for w in windows),  # type: ignore[arg-type]
            tuple(w.stride for w in windows),  # type: ignore[arg-type]
            tuple(w.padding for w in windows),  # type: ignore[arg-type]
            tuple(w.dilation for w in windows),  # type: ignore[arg-type]
            groups,
            bias=vector is not None,
            device="meta",
        )
        _fill(layer, _kernel(op, channel, windows, groups), vector, outs)
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
            tuple(w.k for w in windows),  # type: ignore[arg-type]
            tuple(w.stride for w in windows),  # type: ignore[arg-type]
            tuple(w.padding for w in windows),  # type: ignore[arg-type]
            tuple(w.extra for w in windows),  # type: ignore[arg-type]
            groups,
            vector is not None,
            tuple(w.dilation for w in windows),  # type: ignore[arg-type]
            device="meta",
        )
        kernel = _kernel(op, channel, windows, groups)
        turned = kernel.reshape(groups, outs // groups, *kernel.shape[1:]).transpose(1, 2).flatten(0, 1)
        _fill(layer, turned.contiguous(), vector, outs)
        return layer

    stored = ins * (outs // groups) * taps + (outs if vector is not None else 0)
    work = numel(op.source_sizes) * (outs // groups) * taps
    return LayerPlan("conv", Cost(work, 0, stored, 1), build, outs * (vector is not None), checks=-1 - len(windows))


def _padded(op: Operator, bias: Operator | None) -> LayerPlan:
    """An unpadded convolution whose axes are all padded first, in one mode."""
    pads = [_pad(op, dim) for dim in op.value]
    modes = {mode for mode, _ in filter(None, pads)}
    bare = replace(op, links=tuple(replace(link, maps=()) for link in op.links))
    made = next((m for rank in CONVS if (m := _tried(_conv_of(rank), bare, bias)) is not None), None)
    if made is None or len(modes) != 1:
        raise NotFusable("a resampling, that only its own call computes, would be merged")
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
        raise NotFusable("a resampling, that only its own call computes, would be merged")
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
        raise NotFusable("a convolution over a free number of channels")
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
