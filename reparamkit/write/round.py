"""What holds for merges that were chosen together, from one reading of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from torch import fx

from ..capture.captured import Captured
from ..reasons import Reason
from .splice import Written

Prove = Callable[[Captured, Written], float | None]
"""Checks one merge in float64; returns its error, raises if it is wrong."""
Refuse = Callable[[fx.Node, Reason], None]
"""Is told of a value why no merge of it is made."""
See = Callable[[Written], None]
"""Is shown a merge while both the old layers and the new ones are there."""


def unproved(captured: Captured, written: Written) -> None:
    """No proof: `fuse` was called with verify=False."""


def unheard(node: fx.Node, reason: Reason) -> None:
    """Nobody to tell: nothing has been read yet."""


def unseen(written: Written) -> None:
    """Nobody to show a merge to."""


@dataclass(frozen=True)
class Round:
    """For the merges of one choice.

    prove, refuse, see: see these. spare, computing: numbers, and nodes that compute a value and do nothing else, erased
    when nothing reads them. writes: in-place operations on parameter arithmetic, with the value that each writes into,
    erased when nothing reads that afterwards.
    """

    prove: Prove = unproved
    refuse: Refuse = unheard
    see: See = unseen
    spare: Set[fx.Node] = frozenset()
    computing: Set[fx.Node] = frozenset()
    writes: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
