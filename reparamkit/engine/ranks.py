"""How many dimensions values have where no example tells: what the layers that make and read them take, and the code.

Each call relates the ranks of what it reads to that of what it makes; ranks that no call refuses are left.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor, fx, nn

from ..algebra.size import Size, fixed
from ..capture.aliases import target_of
from ..capture.captured import Captured
from ..layers.parts import chunk
from ..layers.views import flat
from ..tracing.proxies import UNPACKED
from .checks import checked, passes
from .counting import MAY_BROADCAST, SAME_SHAPE, called_name, plain_name, reads_shape

RANK = "rank"
"""What the meta of a node has of which the rank was found out: the rank, and whether calls fail with any other."""
ROWS = "rows"
"""What the meta of a view has that was read with a -1 in the place of a size: that size."""
ANY = frozenset(range(8))
WINDOW = re.compile(
    r"(?:conv|conv_?transpose|(?:adaptive_?)?(?:avg|max)_?pool|instance_?norm|(?:reflection|replication)_?pad)([123])d"
)
TAKEN = {
    "batchnorm1d": (2, 3),
    "batchnorm2d": (4,),
    "batchnorm3d": (5,),
    "upsample": (3, 4, 5),
    "interpolate": (3, 4, 5),
    "upsamplingnearest2d": (4,),
    "upsamplingbilinear2d": (4,),
}
"""How many dimensions calls take, of those that make as many."""
LEAST = {"groupnorm": 2, "group_norm": 2, "pixelshuffle": 3, "pixel_shuffle": 3, "channelshuffle": 3, "linear": 1}
"""How many dimensions calls take at least, of those that make as many."""
ALIKE = SAME_SHAPE - MAY_BROADCAST | {
    "contiguous",
    "evenpart",
    "float",
    "overwrite",
    "pad",
    "part",
    "section",
    "to",
}
"""Further calls that do."""
SPREADING = MAY_BROADCAST | {"lerp", "where"}
"""Calls that make as many dimensions as that of their arguments which has the most."""
NAMED: dict[str, dict[str, Any]] = {
    "flatten": {"start_dim": 0, "end_dim": -1},
    "permute": {"dims": ()},
    "repeat_interleave": {"repeats": 1, "dim": None},
    "unsqueeze": {"dim": 0},
    **{name: {"dim": (), "keepdim": False} for name in ("mean", "sum", "amax", "amin")},
}
"""Names and defaults of arguments on which the rank of a result depends."""
SWAPPING = frozenset({"transpose", "swapaxes", "swapdims"})
"""Calls that exchange two dimensions."""
SPLITTING = frozenset({"chunk", "dsplit", "hsplit", "split", "split_with_sizes", "tensor_split"})
"""Calls that make several values of as many dimensions."""

Relation = Callable[..., int | None]
"""From the ranks of what a call reads to that of its result, None for any; an `IndexError` for ranks it refuses."""
Related = tuple[list[fx.Node], Relation]


def tell_ranks(captured: Captured) -> None:
    """Note how many dimensions values have, where no example tells it and the calls do."""
    inputs = [node for node in captured.graph.nodes if node.op == "placeholder"]
    if all(isinstance(node.meta.get("val"), Tensor) for node in inputs):
        return
    ranks = _Ranks(captured)
    ranks.settle(captured.graph.nodes)
    ranks.note(certain=True)
    for node in captured.graph.nodes:
        ranks.guess(node)
    ranks.note(certain=False)


def certain_rank(node: fx.Node) -> int | None:
    """The rank of a value, if the example tells it, or calls fail with any other."""
    value = node.meta.get("val")
    rank, certain = node.meta.get(RANK, (None, False))
    return value.dim() if isinstance(value, Tensor) else rank if certain else None


def counts_rows(node: fx.Node, view: fx.Node, last: Size) -> bool:
    """Whether a node is the first size of what a view reads, rows of features (by their told rank) of which the view
    makes several dimensions: it is what a -1 would be. last: how many features there are.
    """
    read, *shape = view.args
    sizes = flat(tuple(shape))
    if target_of(view) not in ("view", "reshape") or sizes[:1] != [node] or _first_size_of(node) is not read:
        return False
    split = all(isinstance(size, int) for size in sizes[1:]) and last == fixed(math.prod(sizes[1:]))
    return split and read.meta.get(RANK, (None,))[0] == 2


def _first_size_of(node: fx.Node) -> Any:
    """What a node asks for its first size: ``x.size(0)`` or ``x.shape[0]``; None if it does not."""
    whole, dim = node.args if len(node.args) == 2 else (None, None)
    if dim != 0 or not isinstance(whole, fx.Node):
        return None
    if node.target is operator.getitem and reads_shape(whole):
        return whole.args[0]
    return whole if node.target == "size" else None


@dataclass
class _Ranks:
    """The ranks that values may have. related: per call the values that it relates, and how; all of it holds."""

    captured: Captured
    of: dict[fx.Node, frozenset[int]] = field(default_factory=dict)
    related: dict[fx.Node, list[Related]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.captured.graph.nodes:
            self.of[node] = self._own(node)
            if found := self._relations(node):
                self.related[node] = found

    def note(self, certain: bool) -> None:
        """Write down what is settled; nothing, if calls contradict each other."""
        if all(self.of.values()):
            # What splits gives several values, and has no rank itself.
            settled = (node for node, ranks in self.of.items() if len(ranks) == 1)
            for node in (node for node in settled if not self._splits(node)):
                node.meta.setdefault(RANK, (next(iter(self.of[node])), certain))

    def _splits(self, node: fx.Node) -> bool:
        """Whether a call makes several values. (One part of a chunk has the name of all of them.)"""
        return self.name(node) in SPLITTING and node.target is not chunk

    def guess(self, node: fx.Node) -> None:
        """Leave only ranks that are meant, of those that the calls allow."""
        self._mean(node, self._meant(node))
        if (rows := self._rows(node)) is not None:
            self._mean(rows, self.of[rows] & {2})

    def _mean(self, node: fx.Node, ranks: frozenset[int]) -> None:
        if ranks and ranks != self.of[node]:
            self.of[node] = ranks
            self.settle([node, *node.users])

    def _rows(self, node: fx.Node) -> fx.Node | None:
        """What a call reads, if it makes a map of the features that a linear layer gives, and one dimension of all
        others: who does so has rows of features in mind. (A -1 and two numbers may be the heads of all tokens.)
        """
        if self.name(node) not in ("view", "reshape") or not isinstance(node.args[0], fx.Node):
            return None
        first, *sizes = flat(node.args[1:]) or [None]
        enough = len(sizes) > (1 if isinstance(first, fx.Node) else 2)
        known = enough and all(isinstance(size, int) for size in sizes)
        return node.args[0] if known and math.prod(sizes) == self._features(node.args[0]) else None

    def _features(self, node: fx.Node) -> int | None:
        """How many features the linear layer gives that made a value, if what is behind it keeps them; else None."""
        while (name := self.name(node)) != "linear":
            if not (plain_name(name) in ALIKE or name in TAKEN) or node.args[:1] != (*node.all_input_nodes[:1],):
                return None
            node = node.all_input_nodes[0]
        if node.op == "call_module":
            weight = self.captured.module(node).weight
            return len(weight) if isinstance(weight, Tensor) else None
        weights = [n for n in node.all_input_nodes[1:2] if n.op == "get_attr"]
        return len(self.captured.attribute(weights[0])) if weights else None

    def _meant(self, node: fx.Node) -> frozenset[int]:
        name, ranks = self.name(node), self.of[node]
        if WINDOW.fullmatch(name) and ranks:
            # A window takes a sample without its batch too, which few mean.
            return frozenset({max(ranks)})
        if name in SWAPPING:
            # Who swaps two dimensions has two of them in mind.
            dims = [dim for dim in node.args[1:3] if isinstance(dim, int)]
            return frozenset(rank for rank in ranks if len({dim % rank for dim in dims if rank}) == len(dims))
        return ranks

    def settle(self, nodes: Iterable[fx.Node]) -> None:
        """Leave only ranks that these calls allow, and then all others they are related to."""
        work = dict.fromkeys(nodes)
        while work:
            node = next(iter(work))
            del work[node]
            for changed in self._narrowed(node):
                work.update(dict.fromkeys([changed, *changed.users]))

    def _narrowed(self, node: fx.Node) -> list[fx.Node]:
        """The values of which some ranks do not go with a call."""
        changed = []
        for read, relation in self.related.get(node, ()):
            found = [*_fitting(relation, [self.of[n] for n in read], self.of[node])]
            left = {n: frozenset(ranks[k] for ranks in found) for k, n in enumerate((*read, node))}
            changed += [n for n, ranks in left.items() if ranks != self.of[n]]
            self.of.update(left)
        return changed

    def _own(self, node: fx.Node) -> frozenset[int]:
        value = self.captured.attribute(node) if node.op == "get_attr" else node.meta.get("val")
        return frozenset({value.dim()}) if isinstance(value, Tensor) else ANY

    def name(self, node: fx.Node) -> str:
        """What a node calls."""
        return called_name(node, self.captured.module)

    def _relations(self, node: fx.Node) -> list[Related]:
        name = self.name(node)
        if (asked := checked(node)) is not None and not self.captured.frame(node).goes_on_after_errors:
            return [([asked], lambda rank: _any(_checked(rank, passes(node, rank))))]
        if (args := _given(node, name, self.captured)) is None:
            return []
        listed = args[0] if isinstance(args[0], (list, tuple)) else None
        values = [each for each in (args if listed is None else listed) if isinstance(each, fx.Node)]
        if not values:
            return []
        if name in ("cat", "stack"):
            # What is no list here is one that a call makes. Each part by itself: many have too many combinations.
            whole = listed is not None and len(values) == len(listed)
            return [([part], lambda rank: rank + (name == "stack")) for part in dict.fromkeys(values) if whole]
        if plain_name(name) in SPREADING:
            return [(list(dict.fromkeys(values)), lambda *ranks: max(ranks))]
        if name == "matmul":
            return [(list(dict.fromkeys(values)), lambda *ranks: max(ranks) if min(ranks) > 1 else None)]
        if values[0] is not args[0]:
            return []
        relation = self._of_item(values[0], args[1]) if name == "getitem" else _of_one(name, args, node)
        return [] if relation is None else [(values[:1], relation)]

    def _of_item(self, whole: fx.Node, key: Any) -> Relation | None:
        """Of a tensor that is indexed, or of one of the parts that it is split into; None of a list of tensors."""
        if self._splits(whole):
            return lambda rank: rank
        indexed = self.name(whole) not in ("getattr", "size") if whole in self.related else whole.op == "placeholder"
        if not indexed or (whole.op == "placeholder" and isinstance(key, int)):
            return None
        return lambda rank: _indexed(rank, key)


def _given(node: fx.Node, name: str, captured: Captured) -> list[Any] | None:
    """The arguments of a call, those by name and defaults in order where they matter; None if not all are understood.
    Of a flattening layer, those that it was made with.
    """
    module = captured.module(node) if node.op == "call_module" else None
    if isinstance(module, nn.Flatten):
        return [*node.args, module.start_dim, module.end_dim]
    if getattr(module, "return_indices", False) or not node.args:
        return None
    if name not in NAMED or not node.kwargs:
        return [*node.args]
    names = [*NAMED[name]][len(node.args) - 1 :]
    return [*node.args, *(node.kwargs.get(n, NAMED[name][n]) for n in names)] if {*node.kwargs} <= {*names} else None


def _fitting(relation: Relation, read: list[frozenset[int]], made: frozenset[int]) -> Iterator[tuple[int, ...]]:
    """The ranks that go with each other."""
    for ranks in product(*read):
        try:
            result = relation(*ranks)
        except IndexError:
            continue
        yield from ((*ranks, rank) for rank in made if result in (None, rank))


def _checked(rank: int, holds: bool) -> int:
    if not holds:
        raise IndexError
    return rank


def _of_one(name: str, args: list[Any], node: fx.Node) -> Relation | None:
    """How the rank of the first argument is related to that of the result."""
    rest = args[1:]
    flat = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    if (window := WINDOW.fullmatch(name)) is not None:
        return lambda rank: _checked(rank, rank - int(window[1]) in (1, 2))
    if name in TAKEN:
        return lambda rank: _checked(rank, rank in TAKEN[name])
    if name in LEAST or plain_name(name) in ALIKE or name in SPLITTING:
        return lambda rank: _checked(rank, rank >= LEAST.get(name, 0))
    if name == "permute":
        return lambda rank: _checked(rank, rank == len(flat))
    if name in SWAPPING:
        return lambda rank: _checked(rank, all(_is_of(dim, rank) for dim in flat))
    if name in ("view", "reshape") and (len(rest) > 1 or flat is not rest):
        return lambda rank: len(flat)
    if name == "flatten":
        return lambda rank: _flattened(rank, *rest)
    if name == "repeat_interleave":
        return lambda rank: _checked(rank, _is_of(rest[1], rank)) if rest[1:] and rest[1] is not None else 1
    if name == "unsqueeze":
        return lambda rank: rank + 1
    if name in ("mean", "sum", "amax", "amin") and None not in rest:
        return lambda rank: _reduced(rank, *rest)
    if name in ("size", "getattr", "setitem"):
        return _asked(name, rest, node)
    return None


def _is_of(dim: Any, rank: int) -> bool:
    return not isinstance(dim, int) or -rank <= dim < rank


def _flattened(rank: int, start: int = 0, end: int = -1) -> int:
    _checked(rank, rank == 0 or (_is_of(start, rank) and _is_of(end, rank)))
    return rank - (end % rank - start % rank) if rank else 1


def _reduced(rank: int, dims: Any = (), keep: bool = False, *rest: Any) -> int:
    gone = dims if isinstance(dims, (tuple, list)) else [dims]
    _checked(rank, all(_is_of(dim, rank) for dim in gone))
    return rank if keep else rank - len(gone) if gone else 0


def _indexed(rank: int, key: Any) -> int | None:
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is Ellipsis or isinstance(k, (int, slice)) for k in keys):
        return None
    new = sum(k is None for k in keys)
    _checked(rank, len(keys) - new - (Ellipsis in keys) <= rank)
    return rank + new - sum(isinstance(k, int) for k in keys)


def _asked(name: str, rest: list[Any], node: fx.Node) -> Relation | None:
    """Code that takes sizes by their number, all of them, or writes into a part."""
    if name == "setitem":
        return lambda rank: _any(_indexed(rank, rest[0]))
    if name == "getattr" and rest != ["shape"]:
        return None
    count = node.meta.get(UNPACKED)
    dims = [*rest] if name == "size" else [user.args[1] for user in node.users if user.target is operator.getitem]
    return lambda rank: _any(_checked(rank, all(_is_of(d, rank) for d in dims) and count in (None, rank)))


def _any(rank: int | None) -> None:
    """Of a result that is no tensor."""
