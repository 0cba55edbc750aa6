"""The law of branches side by side: ``add(f, g)`` is one operator for ``f(x) + g(x)``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import FreeSize, NotFusable
from ..reasons import Kind, Reason
from .align import Face, align
from .laws import LOCALITY_INJECTION, PARALLEL_SUM, Which, lower, lowered
from .operator import Dims, Edges, Link, Operator, Resampling, Role, closed, pin, with_rank
from .relink import as_diagonal, behind_padding, densify, paired, split, widened, with_border, with_taps
from .size import fixed, joined_pins
from .weight import Sum

ZEROS_BROADCAST = Reason("a sum with zeros that may differ in shape: broadcasting is not merged", Kind.SHAPES)

F, D, S = Role.FREE, Role.DIAGONAL, Role.STENCIL
IN, OUT, MEAN, BORDER = Role.IN, Role.OUT, Role.MEAN, Role.BORDER
ROUNDS = 16
"""How often two operators are refined for their atoms to agree. A round splits some, which ends; but atoms of size 1 on
one side can call for others on the other side for ever.
"""


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
        via |= {_dense_law(f, g, which)} if lower(f, g, which) is densify else set()
        f, g = _direct_sum(*_same_atoms(*lowered(f, g, which)))
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
        raise NotFusable(ZEROS_BROADCAST)
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


def _dense_law(f: Operator, g: Operator, which: Which) -> str:
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
    for _ in range(ROUNDS):
        source_f, source_g = align(Face(f, "source"), Face(g, "source"), trusted=True)
        value_f, value_g = align(Face(source_f.op, "value"), Face(source_g.op, "value"), trusted=False)
        f, g = value_f.op, value_g.op
        if Face(f, "source").atoms == Face(g, "source").atoms:
            return f, g
    raise NotFusable("parts of dimensions that do not agree, however they are split", Kind.SHAPES)


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


def _first_apart(f: Operator, g: Operator) -> Which | None:
    """A link that must become a full matrix before the two can be added."""
    through = _through_pairs(f, g)
    _check_resampled_alike(f, g)
    for i, j in zip(_flat(f.source), _flat(g.source), strict=True):
        a, b = f.links[i], g.links[j]
        if (i, j) in through and _joinable(a, b):
            continue
        if a.through or (a.role is MEAN and b.role is not MEAN):
            return "f", _fixed(a, i, b)
        if b.through or (b.role is MEAN and a.role is not MEAN):
            return "g", _fixed(b, j, a)
    return None


def _check_resampled_alike(f: Operator, g: Operator) -> None:
    """Raises `NotFusable` if an axis is resampled by one only: before, or, also where a matrix makes it, after."""
    sources = zip(_flat(f.source), _flat(g.source), strict=True)
    values = zip(_flat(f.value), _flat(g.value), strict=True)
    before = all(f.links[i].maps == g.links[j].maps and f.links[i].after == g.links[j].after for i, j in sources)
    if not before or any(f.links[i].after != g.links[j].after for i, j in values):
        raise NotFusable("a sum of branches that resample an axis differently", Kind.RESAMPLED)


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
