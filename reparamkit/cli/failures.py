"""Why a command ends early: one line with the next step, and an exit code."""

from __future__ import annotations

import re
from enum import IntEnum

from ..errors import EquivalenceError, ReparamkitError
from ..show.text import visible


class Code(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    CHECK = 1
    USAGE = 2
    MODEL = 3
    MISSING = 4
    BUG = 5


class Failure(Exception):
    """Ends a command. code: its exit code. next_step: what the user can do."""

    def __init__(self, code: Code, what: str, next_step: str) -> None:
        super().__init__(what)
        self.code, self.what, self.next_step = code, what, next_step

    def __str__(self) -> str:
        return f"{one_line(self.what)} ({self.next_step})" if self.next_step else one_line(self.what)


def as_failure(error: Exception) -> Failure:
    """The failure that any error is for the user."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, EquivalenceError):
        return Failure(Code.CHECK, str(error), "nothing was written")
    if isinstance(error, ReparamkitError):
        about_inputs = re.search(r"example.inputs?\b", str(error))
        return Failure(Code.MODEL, str(error), "here: --input 1,3,224,224" if about_inputs else "")
    if isinstance(error, OSError):
        return Failure(Code.USAGE, str(error), "check the path, the rights, and the space on the disk")
    what = f"{type(error).__name__}: {error}"
    return Failure(Code.BUG, what, "this should not happen: run again with --debug and report the trace")


def missing(package: str, extra: str) -> Failure:
    """A package is not installed that this command needs."""
    return Failure(Code.MISSING, f"this needs the package '{package}'", f"pip install 'reparamkit[{extra}]'")


def one_line(text: str) -> str:
    """The text without line breaks and colours, shortened to what a terminal can show."""
    joined = visible(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split()))
    return joined if len(joined) <= 400 else joined[:397] + "..."
