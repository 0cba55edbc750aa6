"""The law of layers in a row: ``compose(g, f)`` is one operator for ``g(f(x))``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import FreeSize, NotFusable
from ..reasons import Kind
from .align import Face, align
from .border import hits, windowed
from .laws import CHAIN, DENSE_CHAIN, Which, lower, lowered
from .operator import WHOLE, Dims, Link, Operator, Role, with_rank
from .relink import densify, narrowed, unflipped
from .size import fixed
from .weight import Computed, One, Ones, Weight

F, D, S = Role.FREE, Role.DIAGONAL, Role.STENCIL
IN, OUT, MEAN, BORDER = Role.IN, Role.OUT, Role.MEAN, Role.BORDER


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
        via |= {DENSE_CHAIN} if lower(f, g, which) is densify else set()
        f, g = _middle(*lowered(f, g, which), trusted)
    made = _joined(*_overlap(f, g))
    return replace(unflipped(made) if made.resamples else made, via=frozenset(via))


def _of_view(f: Operator, g: Operator) -> Operator:
    """g∘f for a view f: g itself, with the dimensions that f reads."""
    source = _mapped(f.source, dict(_pairs(f, g)))
    pins, guards, via = f.pins | g.pins, f.guards | g.guards, f.via | g.via
    return _as_view(Operator(g.links, source, g.value, g.weight, f.open_rank, pins, guards, via))


def _overlap(f: Operator, g: Operator) -> tuple[Operator, Operator]:
    """Narrow both to the part of the tensor between them that f fills and g reads."""
    for i, j in _pairs(f, g):
        a, b = f.links[i], g.links[j]
        low, high = max(a.pad[0], b.cut[0]), max(a.pad[1], b.cut[1])
        nothing = a.pad != b.cut and low + high >= a.size_out.factor
        if a.has_leg:
            f = narrowed(f, i, *((0, a.leg_size) if nothing else (low - a.pad[0], high - a.pad[1])))
        if b.has_leg:
            g = narrowed(g, j, *((0, b.leg_size) if nothing else (low - b.cut[0], high - b.cut[1])))
    return f, g


def _middle(f: Operator, g: Operator, trusted: bool) -> tuple[Operator, Operator]:
    value, source = align(Face(f, "value"), Face(g, "source"), trusted)
    return value.op, source.op


def _pairs(f: Operator, g: Operator) -> list[tuple[int, int]]:
    """Links of f and g that share an atom of the tensor between them."""
    return [(i, j) for a, b in zip(f.value, g.source, strict=True) for i, j in zip(a, b, strict=True)]


def _first_to_lower(f: Operator, g: Operator) -> Which | None:
    for i, j in _pairs(f, g):
        a, b = f.links[i], g.links[j]
        if (b.maps and F not in (a.role, b.role)) or (a.after and b.role is not F):
            raise NotFusable("an axis is resampled between two layers that run or vary along it", Kind.RESAMPLED)
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
        " (exact only on a fixed size)",
        Kind.BORDER,
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
