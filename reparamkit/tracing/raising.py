"""Whether some code comes to an error, whichever way it takes: from its instructions."""

from __future__ import annotations

import dis
from collections.abc import Sequence

LEAVING = ("RETURN", "YIELD", "SEND")
"""Beginnings of instructions that go on outside of the code."""
RAISING = frozenset({"RAISE_VARARGS", "RERAISE"})


def only_raises(steps: Sequence[dis.Instruction], begin: int) -> bool:
    """Whether all ways end in an error that lead on from an instruction, which is given by its place."""
    places = {step.offset: k for k, step in enumerate(steps)}
    queue, seen = [begin], {begin}
    while queue:
        at = queue.pop()
        if steps[at].opname.startswith(LEAVING):
            return False
        ways = {places[to] if to is not None else at + 1 for to in _ways(steps[at])} - seen
        queue += ways
        seen |= ways
    return True


def _ways(step: dis.Instruction) -> list[int | None]:
    """Where code may go on after an instruction: to which other one, or (None) to that behind it."""
    jumps = step.opcode in dis.hasjrel or step.opcode in dis.hasjabs
    stays = step.opname in RAISING or (step.opname.startswith("JUMP") and "IF_" not in step.opname)
    return ([step.argval] if jumps else []) + ([] if stays else [None])
