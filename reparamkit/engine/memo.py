"""What readers made of a value before: a graph that was changed is read again, and most of it is as it was."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..algebra.size import Share, Size
from ..errors import NotFusable

Key = tuple[Hashable, ...]
"""What tells one question from others."""
T = TypeVar("T")


@dataclass(eq=False)
class Memo:
    """What was found out in the readings of one graph.

    found: answers, or the refusals in their place, each with the objects of which its key has only the identity.
    """

    found: dict[Key, tuple[Any, object]] = field(default_factory=dict)

    def ask(self, key: Key, answer: Callable[[], T], told_by: object = None) -> T:
        """The answer to a question, worked out if it is new. told_by: what the key has only the identity of.

        Raises `NotFusable` if that is the answer.
        """
        if key not in self.found:
            try:
                self.found[key] = answer(), told_by
            except NotFusable as no:
                self.found[key] = no, told_by
        known: Any = self.found[key][0]
        if isinstance(known, NotFusable):
            raise known.with_traceback(None)
        return known  # type: ignore[no-any-return]


def identity(value: object) -> Hashable:
    """What tells a value from others: of a size also what it is taken to be, of all but numbers which object it is."""
    if isinstance(value, tuple):
        return tuple(map(identity, value))
    if isinstance(value, Share):
        return value.number, identity(value.of)
    if isinstance(value, Size):
        return value.factor, *((s, s.hint, s.traced, s.inside, s.dims) for s in value.symbols)
    return (type(value), value) if isinstance(value, (bool, int, float)) else id(value)
