"""Make a failing program small: remove steps, modules and options as long as it fails in the same way."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from .check import Failure, Skip, Trial, check
from .program import Program, without_step

Fails = Callable[[Program], bool]
PLAINER = (
    (r", (stride|padding|dilation|groups|bias|eps|affine|momentum|padding_mode)=(\([^()]*\)|[^,()]+)", ""),
    (r"\((\d)(, \d)+\)", r"\1"),
    (r"nn\.Sequential\(((?:[^(),]+\([^()]*(?:\([^()]*\)[^()]*)*\)))(?:, .*)\)$", r"\1"),
)


def shrink(program: Program, failure: Failure, trial: Trial, seconds: float = 60) -> tuple[Program, Failure, Trial]:
    """The smallest program found that fails with the same key; the same failure, if it does not happen again."""
    end = time.monotonic() + seconds

    def fails(candidate: Program) -> bool:
        with suppress(Skip):
            found = check(candidate)
            return found is not None and found[0].key == failure.key
        return False

    smaller = True
    while smaller and time.monotonic() < end:
        smaller = False
        for candidate in _candidates(program):
            if time.monotonic() > end:
                break
            if fails(candidate):
                program, smaller = candidate, True
                break
    found = check(program)
    return (program, failure, trial) if found is None else (program, *found)


def _candidates(program: Program) -> Iterator[Program]:
    yield from _fewer_steps(program)
    for k in range(len(program.groups)):
        yield replace(program, groups=program.groups[:k] + program.groups[k + 1 :])
    if len(program.outputs) > 1:
        for n in program.outputs:
            yield replace(program, outputs=tuple(m for m in program.outputs if m != n))
    if program.form != "tensor" and len(program.outputs) == 1:
        yield replace(program, form="tensor")
    if program.dtype != "float64":
        yield replace(program, dtype="float64")
    yield from _plainer_steps(program)


def _fewer_steps(program: Program) -> Iterator[Program]:
    last = max((s.number for s in program.steps), default=0)
    if program.form == "tensor" and len(program.steps) > 1:
        for s in program.steps:
            if s.number != last:
                rest = tuple(t for t in program.steps if t.number <= s.number)
                yield replace(program, steps=rest, outputs=(s.number,))
    for s in reversed(program.steps):
        for instead in s.inputs or (None,):
            with suppress(ValueError):
                yield _valid(without_step(program, s.number, instead))


def _valid(program: Program) -> Program:
    if not program.steps:
        raise ValueError("nothing left")
    return program


def _plainer_steps(program: Program) -> Iterator[Program]:
    for k, s in enumerate(program.steps):
        for layer in dict.fromkeys(_plainer(s.layer)):
            yield replace(program, steps=(*program.steps[:k], replace(s, layer=layer), *program.steps[k + 1 :]))


def _plainer(layer: str) -> Iterator[str]:
    for pattern, plain in PLAINER:
        for match in re.finditer(pattern, layer):
            yield layer[: match.start()] + match.expand(plain) + layer[match.end() :]
    # One layer of a row, one branch of a sum.
    for inner in re.findall(r"nn\.\w+\((?:[^()]|\([^()]*\))*\)", layer):
        if inner != layer:
            yield layer.replace(f", {inner}", "", 1)
            yield layer.replace(f"{inner}, ", "", 1)
            yield inner
