"""The two laws: ``compose(g, f)`` for layers in a row, ``add(f, g)`` for branches side by side.

Both are decided on roles and sizes; the weight of the result is a recipe. Where a structure has no exact
form they raise `NotFusable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import FreeSize, NotFusable
from .align import Face, align
from .border import hits, windowed
from .operator import WHOLE, Dims, Edges, Link, Operator, Resampling, Role, closed, pin, with_rank
from .relink import (
    as_diagonal,
    as_part,
    behind_padding,
    densify,
    is_shift,
    narrowed,
    paired,
    split,
    widened,
    with_border,
    with_taps,
)
from .size import fixed, joined_pins
from .weight import Computed, One, Ones, Sum, Weight

F, D, S = Role.FREE, Role.DIAGONAL, Role.STENCIL
IN, OUT, MEAN, BORDER = Role.IN, Role.OUT, Role.MEAN, Role.BORDER


CHAIN, DENSE_CHAIN = "chain", "dense_chain"
PARALLEL_SUM, LOCALITY_INJECTION = "parallel_sum", "locality_injection"
DIRECT_SUM = "direct_sum"


# --- compose ---------------------------------------------------------------------------------------


def compose(g: Operator, f: Operator, trusted: bool = True) -> Operator:
    """One operator for ``g(f(x))``.

    g: reads a tensor with the dimensions of `f`'s value. f: reads x.
    trusted: see `align`.
    Raises `NotFusable`: g's window crosses a zero border that f's window also crosses, on a free size.
    """
    # By its value, which may have more or fewer dimensions than what it reads.
    f, g = with_rank(f, len(g.source) - 1), with_rank(g, len(f.value) - 1 + len(g.value) - len(g.source))
    f, g = _middle(f, g, trusted)
    if f.is_identity:
        return _of_view(f, g)
    via = f.via | g.via | ({CHAIN} if not (f.is_identity or g.is_identity) else set())
    while (which := _first_to_lower(f, g)) is not None:
        via |= {DENSE_CHAIN} if _lower(f, g, which) is densify else set()
        f, g = _middle(*_lowered(f, g, which), trusted)
    return replace(_joined(*_overlap(f, g)), via=frozenset(via))


def _of_view(f: Operator, g: Operator) -> Operator:
    """g∘f for a view f: g itself, with the dimensions that f reads."""
    source = _mapped(f.source, dict(_pairs(f, g)))
    pins, guards, via = f.pins | g.pins, f.guards | g.guards, f.via | g.via
    return _as_view(Operator(g.links, source, g.value, g.weight, f.open_rank, pins, guards, via))


_Which = tuple[str, int]
"""One of the two operators ("f" or "g"), and the number of a link."""


def _lowered(f: Operator, g: Operator, which: _Which) -> tuple[Operator, Operator]:
    side, number = which
    lower = _lower(f, g, which)
    return (lower(f, number), g) if side == "f" else (f, lower(g, number))


def _lower(f: Operator, g: Operator, which: _Which) -> Callable[[Operator, int], Operator]:
    """A crop or zero padding as a diagonal between parts, a border as a diagonal, any other link as a full matrix."""
    side, number = which
    link = (f if side == "f" else g).links[number]
    if link.role is BORDER:
        return as_diagonal
    return as_part if is_shift(link) else densify


def _overlap(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    """Narrow both to the part of the tensor between them that f fills and g reads."""
    for i, j in _pairs(f, g):
        filled, read = f.links[i].pad, g.links[j].cut
        if filled != read:
            low = max(filled[0], read[0])
            high = min(max(filled[1], read[1]), f.links[i].size_out.factor - low)
            if f.links[i].has_leg:
                f = narrowed(f, i, low - filled[0], high - filled[1])
            if g.links[j].has_leg:
                g = narrowed(g, j, low - read[0], high - read[1])
    return f, g


def _middle(f: Operator, g: Operator, trusted: bool) -> tuple[Operator, Operator]:
    value, source = align(Face(f, "value"), Face(g, "source"), trusted)
    return value.op, source.op


def _pairs(f: Operator, g: Operator) -> list[tuple[int, int]]:
    """Links of f and g that share an atom of the tensor between them."""
    return [(i, j) for a, b in zip(f.value, g.source, strict=True) for i, j in zip(a, b, strict=True)]


def _first_to_lower(f: Operator, g: Operator) -> _Which | None:
    for i, j in _pairs(f, g):
        a, b = f.links[i], g.links[j]
        if (b.maps and F not in (a.role, b.role)) or (a.after and b.role is not F):
            raise NotFusable("an axis is resampled between two layers that run or vary along it")
        if a.role is BORDER and (b.role in (D, IN, MEAN) or (b.role is S and windowed(a, b) is None)):
            return "f", _densifiable(a, i)
        if a.role is S and (b.role in (D, IN, MEAN) or (b.role is S and not _borders_agree(a, b))):
            return "f", _densifiable(a, i)
        if a.role in (D, OUT) and b.role in (S, MEAN):
            return "g", _densifiable(b, j)
    return None


def _densifiable(link: Link, number: int) -> int:
    if link.size.known:
        return number
    if link.role is MEAN:
        raise FreeSize("a mean over an axis of free size after a layer that varies along it")
    raise FreeSize(
        "zero padding: the second window reads past a border at which the first is not zero"
        " (exact only on a fixed size)"
    )


def _borders_agree(f: Link, g: Link) -> bool:
    """Whether g∘f is one stencil: what f's formula gives outside its range is what g's padding has, 0."""
    if f.stride > 1 and g.up > 1:
        return False
    before = g.taps[0] > -g.up or f.taps[-1] + 1 <= f.stride
    end = f.c if f.reach is None else f.reach
    after = g.c + g.taps[-1] + 1 <= 0 or f.taps[0] + end + f.up >= 0
    return before and after and _accepts_no_more(f, g)


def _accepts_no_more(f: Link, g: Link) -> bool:
    """An input too small for f must not become acceptable because g pads."""
    return g.c <= -1 or f.c >= -1


def composed_stencil(g: Link, f: Link) -> Link:
    """The stencil of g∘f: taps ``u2*o1 + s1*o2``, stride ``s1*s2``, up ``u1*u2``; c ``c1 + s1*(1 + c2)``, and for a
    transposed g (then s1 = 1) ``u2*(1 + c1) + c2``. What divides both up and stride is taken out of all four.
    """
    common = _common(f, g)
    taps = sorted({tap // common for tap in _tap_sums(f, g) if tap % common == 0})
    c = f.c + f.stride * (1 + g.c) if g.up == 1 else g.up * (1 + f.c) + g.c
    return Link(S, f.size, tuple(taps), f.stride * g.stride // common, c // common, f.up * g.up // common)


def _tap_sums(f: Link, g: Link) -> list[int]:
    """The offset that each pair of taps, one of f and one of g, reads together."""
    return [g.up * a + f.stride * b for a in f.taps for b in g.taps]


def _common(f: Link, g: Link) -> int:
    """By how much g∘f reads more finely than it can meet a sample; other offsets only meet the zeros in between."""
    common = math.gcd(f.up * g.up, f.stride * g.stride)
    return common if any(tap % common == 0 for tap in _tap_sums(f, g)) else 1


def _tap_hits(f: Link, g: Link) -> Tensor:
    """Per pair of taps (rows) the tap of g∘f to which their product belongs; (pairs, taps of g∘f)."""
    common, taps = _common(f, g), torch.tensor(composed_stencil(g, f).taps)
    return (torch.tensor(_tap_sums(f, g))[:, None] == common * taps).double()


@dataclass
class _Join:
    """Where the links of f and g go in g∘f, and which legs of the two weights are one index.

    label_f, label_g: an index letter (a number) per leg; legs that are one index have one letter.
    folds: links of g∘f made of a pair of legs, one of f and one of g: where each pair of entries goes, (pairs, leg).
    """

    f: Operator
    g: Operator
    label_f: dict[int, int]
    label_g: dict[int, int]
    links: list[Link] = field(default_factory=list)
    of_f: dict[int, int] = field(default_factory=dict)
    of_g: dict[int, int] = field(default_factory=dict)
    folds: dict[int, Tensor] = field(default_factory=dict)

    indices: list[tuple[int, ...]] = field(default_factory=list)

    def put(self, link: Link, *index: int) -> int:
        """A link of g∘f; `index` is that of its leg, or the two whose taps are still to be convolved."""
        self.links.append(link)
        self.indices.append(index)
        return len(self.links) - 1

    def labels(self) -> list[tuple[int, ...]]:
        """Per leg of g∘f its index or indices."""
        return [index for link, index in zip(self.links, self.indices, strict=True) if link.has_leg]

    def fold_places(self) -> list[tuple[int, Tensor]]:
        """Per folded leg of g∘f: its place, and where each pair of entries goes."""
        legs = [n for n, link in enumerate(self.links) if link.has_leg]
        return [(legs.index(n), self.folds[n]) for n in sorted(self.folds)]


def _joined(f: Operator, g: Operator) -> Operator:
    join = _Join(f, g, {i: i for i in f.legs}, {j: len(f.links) + j for j in g.legs})
    paired = _pairs(f, g)
    for i, j in paired:
        _meet(join, i, j)
    of_f, of_g = {i for i, _ in paired}, {j for _, j in paired}
    join.of_f |= {i: _put_rest(join, link, join.label_f.get(i)) for i, link in enumerate(f.links) if i not in of_f}
    join.of_g |= {j: _put_rest(join, link, join.label_g.get(j)) for j, link in enumerate(g.links) if j not in of_g}
    joined = Operator(
        tuple(join.links),
        _mapped(f.source, join.of_f),
        _mapped(g.value, join.of_g),
        _contracted(join),
        f.open_rank,
        f.pins | g.pins,
        f.guards | g.guards,
    )
    return _as_view(joined)


def _as_view(op: Operator) -> Operator:
    """Parts of a tensor that came together again are the tensor."""
    if not isinstance(op.weight, Ones) or any(link.role not in (F, D) or link.segmented for link in op.links):
        return op
    return replace(
        op, links=tuple(Link(F, link.size_out, maps=link.maps + link.after) for link in op.links), weight=One()
    )


def without_pad(op: Operator, number: int) -> Operator:
    """What an operator makes of the positions that it fills of an atom of its value."""
    link = op.links[number]
    size = fixed(link.leg_size) if link.role is OUT else link.size
    return _as_view(
        replace(op, links=(*op.links[:number], replace(link, size=size, pad=WHOLE), *op.links[number + 1 :]))
    )


def _put_rest(join: _Join, link: Link, index: int | None) -> int:
    return join.put(link) if index is None else join.put(link, index)


def _mapped(dims: Dims, numbers: dict[int, int]) -> Dims:
    return tuple(tuple(numbers[i] for i in dim) for dim in dims)


def _meet(join: _Join, i: int, j: int) -> None:
    """The composition table, for one atom between f and g."""
    a, b = join.f.links[i], join.g.links[j]
    folded = b.role is S and a.role in (S, BORDER)
    if a.has_leg and b.has_leg and not folded:
        join.label_g[j] = join.label_f[i]
    if a.role is OUT and b.role is IN:
        return
    legs = [labels[n] for labels, n in ((join.label_f, i), (join.label_g, j)) if n in labels]
    number = join.put(_met(a, b), *dict.fromkeys(legs))
    if folded:
        join.folds[number] = _tap_hits(a, b) if a.role is S else hits(a, b, join.links[number])
    if a.through:
        join.of_f[i] = number
    if b.through:
        join.of_g[j] = number


def _met(a: Link, b: Link) -> Link:
    if b.resamples and a.role is F:
        return replace(b, maps=a.maps + b.maps)
    if b.resamples:
        # Then b is FREE, see `_first_to_lower`.
        return replace(a, after=a.after + b.maps)
    made = _met_roles(a, b)
    return made if (made.maps, made.after) == (a.maps, a.after) else replace(made, maps=a.maps, after=a.after)


def _met_roles(a: Link, b: Link) -> Link:
    if b.role is F:
        return a
    if a.role is OUT:
        return replace(a, size=b.size_out, pad=b.pad)
    if b.role is S and a.role is S:
        return composed_stencil(b, a)
    if a.role is BORDER:
        made = windowed(a, b)
        assert made is not None
        return made
    return replace(b, size=a.size, cut=a.cut) if a.role is D else b.resized(a.size)


def _contracted(join: _Join) -> Weight:
    """The weight of g∘f: legs that are one index multiply, OUT meets IN is summed, taps convolve."""
    f, g, labels, folds = join.f.weight, join.g.weight, join.labels(), join.fold_places()
    if isinstance(f, One) and isinstance(g, One):
        return f
    if isinstance(f, One | Ones) and isinstance(g, One | Ones) and not (folds or join.f.has(OUT) or join.g.has(IN)):
        return Ones(tuple(link.leg_size for link in join.links if link.has_leg))
    label_f, label_g = list(join.label_f.values()), list(join.label_g.values())
    wanted = [n for pair in labels for n in pair]

    def compute() -> Tensor:
        tensor = _multiply(f.tensor(), label_f, g.tensor(), label_g, wanted)
        for place, read in reversed(folds):
            tensor = _folded(tensor, sum(map(len, labels[:place])), read)
        return tensor

    return Computed(compute)


def _multiply(a: Tensor, of_a: list[int], b: Tensor, of_b: list[int], wanted: list[int]) -> Tensor:
    if set(of_b) <= set(of_a) == set(wanted):
        return _scaled(a, of_a, b, of_b, wanted)
    if set(of_a) <= set(of_b) == set(wanted):
        return _scaled(b, of_b, a, of_a, wanted)
    letters = {label: n for n, label in enumerate(dict.fromkeys(of_a + of_b))}
    return torch.einsum(a, [letters[n] for n in of_a], b, [letters[n] for n in of_b], [letters[n] for n in wanted])


def _scaled(big: Tensor, labels: list[int], small: Tensor, of_small: list[int], wanted: list[int]) -> Tensor:
    """Nothing is summed and nothing grows: multiply in place, with no second large tensor."""
    order = sorted(range(len(of_small)), key=lambda k: labels.index(of_small[k]))
    shape = [big.shape[d] if label in of_small else 1 for d, label in enumerate(labels)]
    big.mul_(small.permute(order).reshape(shape))
    return big.permute([labels.index(n) for n in wanted])


def _folded(tensor: Tensor, dim: int, read: Tensor) -> Tensor:
    """Sum the pairs of entries of the legs (dim, dim + 1) that go to one place; read: (pairs, places)."""
    return (tensor.flatten(dim, dim + 1).movedim(dim, -1) @ read).movedim(-1, dim)


# --- add -------------------------------------------------------------------------------------------


def add(f: Operator, g: Operator) -> Operator:
    """One operator for ``f(x) + g(x)``; both read the same tensor x and make tensors of one shape.

    Raises `NotFusable`: the shapes differ (broadcasting), or a join needs a fixed size where it is free.
    """
    f, g = _same_rank(f, g)
    if f.vanishes or g.vanishes:
        return _beside_zeros(f, g)
    f, g = _direct_sum(*_same_atoms(f, g))
    f, g = _resampled_like(f, g), _resampled_like(g, f)
    f, g = _padded_like(f, g), _padded_like(g, f)
    via = f.via | g.via
    while (which := _first_apart(f, g)) is not None:
        via |= {_dense_law(f, g, which)} if _lower(f, g, which) is densify else set()
        f, g = _direct_sum(*_same_atoms(*_lowered(f, g, which)))
    for number_f, number_g in _through_pairs(f, g):
        f, g = _same_role(f, number_f, g, number_g)
    f, g = _same_parts(f, g)
    return replace(
        _summed_operator(f, g), via=via | ({PARALLEL_SUM} - {*via} if LOCALITY_INJECTION not in via else set())
    )


def _beside_zeros(f: Operator, g: Operator) -> Operator:
    """One of two operators, where the other makes zeros of the same shape."""
    left, gone = (g, f) if f.vanishes else (f, g)
    pins = joined_pins([*f.pins, *g.pins])
    if pin(left, pins).value_sizes != pin(gone, pins).value_sizes:
        raise NotFusable("a sum with zeros that may differ in shape: broadcasting is not merged")
    # What a layer before the zeros insists on, no layer does any more.
    told = gone.pins - left.pins
    return replace(pin(left, dict(told), guard=True), guards=f.guards | g.guards | told)


def _resampled_like(op: Operator, like: Operator) -> Operator:
    """A FREE link is resampled as well after it as before it, so as the link of `like` that it meets."""
    links = list(op.links)
    for i, j in zip(_flat(op.source), _flat(like.source), strict=True):
        a, b = op.links[i], like.links[j]
        if a.role is F and b.after and a.maps == b.maps + b.after:
            links[i] = replace(a, size=b.after[0].before, maps=b.maps, after=b.after)
    return replace(op, links=tuple(links))


def _padded_like(op: Operator, like: Operator) -> Operator:
    """What reads no border of an axis reads as well from the axis with positions around it, as `like` does; so does
    what reads it with fewer of these positions around it.
    """
    for i, j in zip(_flat(op.source), _flat(like.source), strict=True):
        a, maps = op.links[i], like.links[j].maps
        inside = a.role is F or (a.role is S and a.up == 1 and a.taps[0] >= 0 and a.c + a.taps[-1] + 1 <= 0)
        if inside and not a.after and len(maps) == 1 and (more := _further_around(a, maps[0])) is not None:
            op = behind_padding(op, i, maps[0], more)
    return op


def _further_around(link: Link, wide: Resampling) -> Edges | None:
    """How many positions more `wide` puts before and behind an axis than the padding of a link does, in one mode."""
    (narrow,) = link.maps if len(link.maps) == 1 else (None,)
    if wide.around is None or len(link.maps) > 1 or link.size_in != wide.before:
        return None
    if narrow is None:
        return wide.around
    if narrow.around is None or not narrow.mode or narrow.mode != wide.mode:
        return None
    more = wide.around[0] - narrow.around[0], wide.around[1] - narrow.around[1]
    return more if min(more) >= 0 < max(more) else None


def _dense_law(f: Operator, g: Operator, which: _Which) -> str:
    """A stencil that joins a full matrix is the paper's Locality Injection."""
    side, number = which
    link = (f if side == "f" else g).links[number]
    return LOCALITY_INJECTION if link.role is S else PARALLEL_SUM


def _same_rank(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    if f.open_rank and g.open_rank:
        return with_rank(f, _trailing(g) - _trailing(f) + len(f.value) - 1), with_rank(
            g, _trailing(f) - _trailing(g) + len(g.value) - 1
        )
    if f.open_rank:
        return closed(f, len(g.source) - _trailing(f)), g
    if g.open_rank:
        return f, closed(g, len(f.source) - _trailing(g))
    return f, g


def _trailing(op: Operator) -> int:
    return len(op.source) - 1


def _same_atoms(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    """Refining the source can split atoms of the value and the other way round: until both agree."""
    while True:
        source_f, source_g = align(Face(f, "source"), Face(g, "source"), trusted=True)
        value_f, value_g = align(Face(source_f.op, "value"), Face(source_g.op, "value"), trusted=False)
        f, g = value_f.op, value_g.op
        if Face(f, "source").atoms == Face(g, "source").atoms:
            return f, g


def _flat(dims: Dims) -> list[int]:
    return [i for dim in dims for i in dim]


def _through_pairs(f: Operator, g: Operator) -> list[tuple[int, int]]:
    """Atoms that pass through both operators, between the same places."""
    places_f, places_g = _flat(f.value), _flat(g.value)
    through = []
    for i, j in zip(_flat(f.source), _flat(g.source), strict=True):
        both = f.links[i].through and g.links[j].through
        if both and places_f.index(i) == places_g.index(j):
            through.append((i, j))
    return through


def _first_apart(f: Operator, g: Operator) -> _Which | None:
    """A link that must become a full matrix before the two can be added."""
    through = _through_pairs(f, g)
    for i, j in zip(_flat(f.source), _flat(g.source), strict=True):
        a, b = f.links[i], g.links[j]
        if (a.maps, a.after) != (b.maps, b.after):
            raise NotFusable("a sum of branches that resample an axis differently")
        if (i, j) in through and _joinable(a, b):
            continue
        if a.through or (a.role is MEAN and b.role is not MEAN):
            return "f", _fixed(a, i, b)
        if b.through or (b.role is MEAN and a.role is not MEAN):
            return "g", _fixed(b, j, a)
    return None


def _joinable(a: Link, b: Link) -> bool:
    """The join table for an atom that passes through both."""
    roles = {a.role, b.role}
    if roles == {S}:
        # Their values have one size, so they end alike.
        return (a.stride, a.up) == (b.stride, b.up)
    if roles == {S, F}:
        return (a if a.role is S else b).shape_preserving
    return roles <= {F, D, BORDER} and _shift(a) == _shift(b)


def _shift(link: Link) -> int:
    """By how much a diagonal moves its axis."""
    return link.pad[0] - link.cut[0]


def _fixed(link: Link, number: int, other: Link) -> int:
    if link.size.known:
        return number
    raise FreeSize(
        f"a {link.role.value} axis meets a {other.role.value} axis: exact only on a fixed size, and this size is free"
    )


def _same_role(f: Operator, i: int, g: Operator, j: int) -> tuple[Operator, Operator]:
    a, b = f.links[i], g.links[j]
    if D in (a.role, b.role):
        return (f if a.role is D else as_diagonal(f, i)), (g if b.role is D else as_diagonal(g, j))
    if S in (a.role, b.role):
        like = a if a.role is S else b
        taps = tuple(sorted({*a.taps, *b.taps}))
        union = replace(like, role=S, taps=taps)
        return with_taps(f, i, union), with_taps(g, j, union)
    if BORDER in (a.role, b.role):
        low, high = max(a.low, b.low), max(a.high, b.high)
        return with_border(f, i, low, high), with_border(g, j, low, high)
    return f, g


def _same_parts(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    """Zeros in both weights, so that they cover the same part of each axis."""
    places = [*zip(_flat(f.source), _flat(g.source), strict=True), *zip(_flat(f.value), _flat(g.value), strict=True)]
    for i, j in dict.fromkeys(places):
        (a_low, a_high), (b_low, b_high) = _edges(f.links[i]), _edges(g.links[j])
        f = widened(f, i, max(0, a_low - b_low), max(0, a_high - b_high))
        g = widened(g, j, max(0, b_low - a_low), max(0, b_high - a_high))
    return f, g


def _edges(link: Link) -> tuple[int, int]:
    return link.pad if link.role is OUT else link.cut


# --- direct sums: blocks of a matrix that share neither rows nor columns ---------------------------------


def _direct_sum(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    """Where f and g are different blocks on the diagonal of one matrix, and all blocks have one size, an outer
    DIAGONAL atom numbers the blocks: what becomes a convolution with groups.
    """
    while (tile := _common_tile(f, g)) is not None:
        f, g = _same_atoms(_tiled(f, tile), _tiled(g, tile))
    return _as_blocks(f, g), _as_blocks(g, f)


@dataclass(frozen=True)
class _Tile:
    """Blocks of rows x columns between the source's atom `source` and the value's atom `value`, counted flat."""

    source: int
    value: int
    rows: int
    columns: int


def _common_tile(f: Operator, g: Operator) -> _Tile | None:
    """A tiling in which f and g are different blocks."""
    for tile in _tiles(f):
        position = _position(f, tile)
        if position is not None and _position(g, tile) not in (None, position):
            return tile
    return None


def _tiles(op: Operator) -> Iterator[_Tile]:
    for s, i in enumerate(_flat(op.source)):
        for v, o in enumerate(_flat(op.value)):
            if (op.links[i].role, op.links[o].role) == (IN, OUT) and op.links[i].leg_size and op.links[o].leg_size:
                yield _Tile(s, v, op.links[o].leg_size, op.links[i].leg_size)


def _position(op: Operator, tile: _Tile) -> int | None:
    """The number of the only block of a tiling that an operator fills."""
    read, filled = op.links[_flat(op.source)[tile.source]], op.links[_flat(op.value)[tile.value]]
    if (read.role, filled.role, read.leg_size, filled.leg_size) != (IN, OUT, tile.columns, tile.rows):
        return None
    across, down = read.size.divide(fixed(tile.columns)), filled.size.divide(fixed(tile.rows))
    column, row = divmod(read.cut[0], tile.columns), divmod(filled.pad[0], tile.rows)
    return column[0] if across is not None and across == down and column == row and not row[1] else None


def _tiled(op: Operator, tile: _Tile) -> Operator:
    """The position of the block as an atom of its own."""
    op = _split_off(op, _flat(op.source)[tile.source], tile.columns)
    op = _split_off(op, _flat(op.value)[tile.value], tile.rows)
    return paired(op, _flat(op.source)[tile.source], _flat(op.value)[tile.value])


def _split_off(op: Operator, number: int, inner: int) -> Operator:
    return split(op, number, fixed(op.links[number].size.factor // inner), fixed(inner))


def _as_blocks(op: Operator, like: Operator) -> Operator:
    """`op` with a DIAGONAL where it fills one block only, and `like` passes an axis through in the same way."""
    for s, i in enumerate(_flat(like.source)):
        if like.links[i].role in (F, D):
            v = _flat(like.value).index(i)
            a, b = _flat(op.source)[s], _flat(op.value)[v]
            ends = op.links[a], op.links[b]
            single = [(link.role, link.leg_size) for link in ends] == [(IN, 1), (OUT, 1)]
            if single and ends[1].pad[0] - ends[0].cut[0] == _shift(like.links[i]):
                op = paired(op, a, b)
    return op


def _summed_operator(f: Operator, g: Operator) -> Operator:
    """Both have the same atoms and roles; g's links are found by their places."""
    number = dict(zip(_flat(g.source), _flat(f.source), strict=True))
    number |= dict(zip(_flat(g.value), _flat(f.value), strict=True))
    legs_of_f = [number[j] for j in g.legs]
    order = tuple(legs_of_f.index(i) for i in f.legs)
    return replace(f, weight=Sum(f.weight, g.weight, order), pins=f.pins | g.pins, guards=f.guards | g.guards)
