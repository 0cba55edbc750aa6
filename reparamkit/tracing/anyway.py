"""Conditions of several parts whose outcome is known whatever one of them is: from the instructions of the code."""

from __future__ import annotations

import dis
from collections.abc import Sequence
from functools import lru_cache
from types import CodeType, FrameType

from torch import nn

PLAIN = (bool, type(None))
"""Of which code knows whether they are true without asking them."""
BESIDE = frozenset({"TO_BOOL", "NOP", "EXTENDED_ARG", "NOT_TAKEN"})
"""Instructions that change no outcome."""


@lru_cache(maxsize=1024)
def asking(code: CodeType, at: int) -> tuple[Sequence[dis.Instruction], int] | None:
    """The instructions of code that asks a value, at one of them, whether it is true, and which of them goes on by the
    answer; None if there is no such.
    """
    steps = list(dis.get_instructions(code))
    first = next((k for k, step in enumerate(steps) if step.offset == at), len(steps))
    jump = next((k for k in range(first, min(first + 2, len(steps))) if steps[k].opname != "TO_BOOL"), first)
    return (steps, jump) if jump < len(steps) and _is_branch(steps[jump]) else None


def decided_anyway(frame: FrameType) -> bool | None:
    """The answer with which code looks at the other parts of a condition, if these decide it whatever the value is that
    it asks whether it is true: ``if x.numel() == 0 and self.training`` in eval mode. None if they do not.
    """
    if (found := asking(frame.f_code, frame.f_lasti)) is None:
        return None
    steps, jump = found
    there, at = target(steps, jump), jump + 1
    while at != there:
        value, end = _part(steps, at, frame)
        if end is None or not isinstance(value, PLAIN):
            return None
        at = target(steps, end) if bool(value) is jumps_if(steps[end]) else end + 1
        if at <= end:
            return None
    return not jumps_if(steps[jump])


def _part(steps: Sequence[dis.Instruction], at: int, frame: FrameType) -> tuple[object, int | None]:
    """What the part of a condition is that begins at an instruction, a variable or an attribute of a module, and where
    code goes on by it.
    """
    value: object = None
    for k in range(at, len(steps)):
        step = steps[k]
        if _is_branch(step) and k > at:
            return value, k
        if step.opname.startswith("LOAD_FAST") and step.argval in frame.f_locals:
            value = frame.f_locals[step.argval]
        elif step.opname == "LOAD_ATTR" and isinstance(value, nn.Module) and step.argval in vars(value):
            value = vars(value)[step.argval]
        elif step.opname == "UNARY_NOT" and isinstance(value, PLAIN):
            value = not value
        elif step.opname not in BESIDE:
            break
    return value, None


def _is_branch(step: dis.Instruction) -> bool:
    return step.opname.startswith("POP_JUMP") and step.opname.endswith(("IF_TRUE", "IF_FALSE"))


def jumps_if(step: dis.Instruction) -> bool:
    """For which answer a branch jumps."""
    return step.opname.endswith("IF_TRUE")


def target(steps: Sequence[dis.Instruction], jump: int) -> int:
    """The instruction that a branch jumps to."""
    return next(k for k, step in enumerate(steps) if step.offset == steps[jump].argval)
