"""Which forms of the inputs of a node are read together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, product

from torch import fx

from ..algebra.form import Form, source_form
from ..algebra.segments import parts_of, selected
from ..errors import NotFusable
from .reading import Candidate, Reading

Choice = dict[fx.Node, Candidate]
"""One candidate per input value."""
MAX_COMBINATIONS = 16
MAX_SORTED = 256
"""Of more ways to choose a candidate per input only those are tried that reach equally far back."""


@dataclass(frozen=True)
class Choices:
    """The ways to choose, best first. alone: whether the values are taken as they are."""

    out: Reading
    node: fx.Node
    alone: bool

    def __iter__(self) -> Iterator[Choice]:
        """The values themselves first, then all that reach equally far back, then those that share their sources."""
        inputs = [n for n in self.node.all_input_nodes if n in self.out.forms]
        forms = [self.out.forms[n][: -2 if self.alone else None : -1] for n in inputs]
        first, *level = (tuple(f[min(k, len(f) - 1)] for f in forms) for k in range(max(map(len, forms))))
        rest: list[tuple[Candidate, ...]] = []
        if math.prod(map(len, forms)) <= MAX_SORTED:
            rest = sorted(product(*forms), key=lambda chosen: len({name for c in chosen for name in c.form.terms}))
        yield dict(zip(inputs, first, strict=True))
        others = (chosen for chosen in dict.fromkeys((*level, *rest)) if chosen != first and not self._mixed(chosen))
        for chosen in islice(others, len(level) + MAX_COMBINATIONS):
            yield dict(zip(inputs, chosen, strict=True))
        if len(inputs) == 2:
            yield from self._over_whole(*inputs)
            yield from self._over_whole(*inputs[::-1])

    def _over_whole(self, part: fx.Node, other: fx.Node) -> Iterator[Choice]:
        """A value that was concatenated, as a part of the whole that the other value is read over."""
        for whole in (user for user in part.users if user in self.out.read):
            over = [c for c in self.out.forms[other] if whole.name in c.form.terms]
            place = _place_of(part.name, self.out.read[whole]) if over else None
            if place is None or self.out.captured.aliases.writes_between(part, whole, self.node):
                continue
            with suppress(NotFusable):
                form = self.out.informed(source_form(whole.name, *self.out.shapes[whole]))
                yield {part: Candidate(replace(selected(form, *place), recent=()), frozenset()), other: over[0]}

    def _mixed(self, chosen: tuple[Candidate, ...]) -> bool:
        """Whether both a value and a view of a part of it are sources, over parts alone is as good; or a value is read,
        and computed on the way to another.
        """
        names = {name for c in chosen for name in c.form.terms}
        if any(member.name in names for c in chosen for member in c.members):
            return True
        parts = [n for n, launches in self.out.moves.items() if launches == 0 and n.name in names]
        return any(n.all_input_nodes[0].name in names for n in parts)


def _place_of(source: str, whole: Form) -> tuple[int, range] | None:
    """The dimension (from the right) of which a source fills a part of a concatenation, and its positions there."""
    dim, parts = parts_of(whole) or (0, [])
    ends = [0, *itertools.accumulate(part.sizes[dim].factor for part in parts)]
    for (start, end), part in zip(itertools.pairwise(ends), parts, strict=True):
        if part.terms.keys() == {source} and part.terms[source].op.is_identity and part.bias is None:
            return dim, range(start, end)
    return None
