"""What the running code is asking: the instruction that called into a proxy tells."""

from __future__ import annotations

import ast
import dis
from functools import lru_cache
from types import CodeType, FrameType

import torch

from ..sourcecode.parse import source

READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD")
"""Instructions that read a function by its name."""
FOR_OTHERS = frozenset(
    function.__code__
    for function in (torch.is_tensor, torch._jit_internal._isinstance, torch._jit_internal.container_checker)
)
"""Functions of torch that ask on behalf of who calls them: of the last two torch.jit.isinstance is made."""
BESIDE_TEXT = ("LOAD_", "FORMAT_", "CONVERT_", "BUILD_STRING", "KW_NAMES", "PRECALL", "PUSH_NULL", "EXTENDED_ARG")
"""Beginnings of instructions that put more beside a text or join them, and look at none."""


def unpacked(frame: FrameType) -> int | None:
    """How many values ``a, b = ...`` takes, if that is what is being run."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at + 1] if dis.opname[code[at]] == "UNPACK_SEQUENCE" else None


def asks(frame: FrameType, *names: str) -> bool:
    """Whether a call of a builtin of one of these names is being run, by code that is not torch's own: that takes
    proxies for what they are.
    """
    while frame.f_code.co_name == "__instancecheck__" and frame.f_back is not None:
        frame = frame.f_back
    own = frame.f_code not in FOR_OTHERS and _package(frame) in ("torch", __package__.partition(".")[0])
    return not own and any(_calls(frame.f_code, frame.f_lasti, name) for name in names)


def words_message(frame: FrameType) -> bool:
    """Whether what is formatted becomes a part of the message of a torch._assert, and nothing else."""
    return _goes_into_message(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=1024)
def _goes_into_message(code: CodeType, at: int) -> bool:
    if "_assert" not in code.co_names or not dis.opname[code.co_code[at]].startswith("FORMAT_"):
        return False
    after = (i for i in dis.get_instructions(code) if i.offset > at)
    call = next(i for i in after if not i.opname.startswith(BESIDE_TEXT))
    return call.opname == "CALL" and _is_inside(code, at, call.offset) and _calls(code, call.offset, "_assert")


def _is_inside(code: CodeType, at: int, call: int) -> bool:
    """Whether an instruction is of an argument of the call, in the source."""
    places = list(code.co_positions())
    (line, end, column, last), (outer, outer_end, start, stop) = places[at // 2], places[call // 2]
    if None in (line, end, column, last, outer, outer_end, start, stop):
        return False
    return (outer, start) < (line, column) and (end, last) < (outer_end, stop)


def catches(frame: FrameType, error: type[Exception]) -> bool:
    """Whether the statement that a frame is at stands in a ``try`` of the same code that names this error."""
    return _named_in_except(frame.f_code, frame.f_lineno - frame.f_code.co_firstlineno + 1, error.__name__)


@lru_cache(maxsize=1024)
def _named_in_except(code: CodeType, line: int, error: str) -> bool:
    tree = source(code)
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)] if tree is not None else []
    around = [each for each in tries if any(n.lineno <= line <= (n.end_lineno or 0) for n in each.body)]
    kinds = [handler.type for each in around for handler in each.handlers if handler.type is not None]
    return any(isinstance(node, ast.Name) and node.id == error for kind in kinds for node in ast.walk(kind))


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


@lru_cache(maxsize=1024)
def _calls(code: CodeType, at: int, name: str) -> bool:
    """Whether the call at an instruction begins, in the source, where the name is read."""
    if name not in code.co_names:
        return False
    starts = [(line, column) for line, _, column, _ in code.co_positions()]
    # Where a call is specialized, the instruction before it does the work, PRECALL.
    here = starts[at // 2] if "CALL" in dis.opname[code.co_code[at]] else (None, None)
    reads = (i for i in dis.get_instructions(code) if i.argval == name and i.opname in READS)
    return None not in here and any(starts[read.offset // 2] == here for read in reads)
