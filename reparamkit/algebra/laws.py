"""What the two laws have in common: their names, and how a link becomes one that they can go on with.

``compose(g, f)`` is the law of layers in a row, ``add(f, g)`` that of branches side by side. Both are decided on roles
and sizes; the weight of the result is a recipe. Where a structure has no exact form they raise `NotFusable`.
"""

from __future__ import annotations

from collections.abc import Callable

from .operator import Operator, Role
from .relink import as_diagonal, as_part, densify, is_shift

CHAIN, DENSE_CHAIN = "chain", "dense_chain"
PARALLEL_SUM, LOCALITY_INJECTION = "parallel_sum", "locality_injection"
DIRECT_SUM = "direct_sum"

Which = tuple[str, int]
"""One of the two operators ("f" or "g"), and the number of a link."""


def lowered(f: Operator, g: Operator, which: Which) -> tuple[Operator, Operator]:
    """Both, with one link less special than it was."""
    side, number = which
    change = lower(f, g, which)
    return (change(f, number), g) if side == "f" else (f, change(g, number))


def lower(f: Operator, g: Operator, which: Which) -> Callable[[Operator, int], Operator]:
    """A crop or zero padding as a diagonal between parts, a border as a diagonal, any other link as a full matrix."""
    side, number = which
    link = (f if side == "f" else g).links[number]
    if link.role is Role.BORDER:
        return as_diagonal
    return as_part if is_shift(link) else densify
