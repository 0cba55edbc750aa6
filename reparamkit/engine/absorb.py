"""Scales that leave where they stand: everything that reads them absorbs them, all of it or nothing.

``q(s x), k(s x), v(s x)`` are three merges with one scale. No code moves for them: in the place of the scaled value is
the value before, through views as well, and each layer keeps its place.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from torch import fx

from ..algebra.operator import Role
from .placing import Placed
from .reading import Reading
from .scope import watched


def leading(reading: Reading, placed: Placed, named: Mapping[str, fx.Node]) -> list[fx.Node]:
    """What every way from a source begins with, in order, up to the layer that is written: scales, and views."""
    found: list[fx.Node] = []
    for term in placed.terms:
        for steps in zip(*placed.form.terms[term.source].trails, strict=False):
            node = named[steps[0].node]
            # Views that layers between them undo are not on the way that is written.
            last = len(set(steps)) > 1 or steps[0] not in term.trail or node.name in (term.anchor, term.trail[-1].node)
            if last or steps[0].spelled or not (steps[0].views or is_scale(reading, node)):
                break
            found.append(node)
    return found if any(is_scale(reading, node) for node in found) else []


def is_scale(reading: Reading, node: fx.Node) -> bool:
    """As `scales`, in a tensor of its own."""
    return node not in reading.captured.aliases.writers and scales(reading, node)


def scales(reading: Reading, node: fx.Node) -> bool:
    """Whether a node gives a tensor of the shape of the only value it reads, number by number, and has no hooks. What
    gives the same numbers, as a padding by nothing, is none: it goes with a merge like any member.
    """
    form, captured = reading.read.get(node), reading.captured
    if form is None or len(form.terms) != 1 or watched(captured, node):
        return False
    (term,) = form.terms.values()
    if term.op.is_identity and form.bias is None:
        return False
    through = all(link.role in (Role.FREE, Role.DIAGONAL) and not link.segmented for link in term.op.links)
    return through and term.op.source == term.op.value and not any(step.views for t in term.trails for step in t)


def absorbed(merges: Sequence[tuple[frozenset[fx.Node], list[fx.Node]]], needed: Container[fx.Node]) -> set[fx.Node]:
    """The scales that nothing reads any more, and their views. merges: members of each, and what it begins with."""
    found = {node for _, scales in merges for node in scales if node not in needed}
    while True:
        held = {n for members, scales in merges for n in members & found if n not in _begin(scales, found)}
        if not held:
            return found
        found -= held


def _begin(scales: list[fx.Node], found: set[fx.Node]) -> list[fx.Node]:
    """The part before the first that stays."""
    stop = next((k for k, node in enumerate(scales) if node not in found), len(scales))
    return scales[:stop]
