"""What the running code is asking: the instruction that called into a proxy tells."""

from __future__ import annotations

import ast
import dis
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx

from ..sourcecode.origins import NOT_USERS, package
from ..sourcecode.parse import source
from .anyway import asking, jumps_if, target
from .raising import only_raises

READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD")
"""Instructions that read a function by its name."""
FOR_OTHERS = frozenset(
    function.__code__
    for function in (
        torch.is_tensor,
        torch.typename,
        torch._jit_internal._isinstance,
        torch._jit_internal.container_checker,
    )
)
"""Functions of torch that ask on behalf of who calls them: of the last two torch.jit.isinstance is made."""
MATCHING = frozenset({"MATCH_SEQUENCE", "MATCH_MAPPING"})
"""Instructions that tell whether a value is made of several."""
OF_DTYPE = frozenset(cls.__name__ for cls in torch._tensor_classes)
"""Names of types such as torch.FloatTensor."""
TENSOR_TYPE = type(torch.FloatTensor)
"""The class of these types."""
HOLDING = (tuple, list, TENSOR_TYPE)
TYPE = "for type() of a value"
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
    return not _is_own(frame) and any(_calls(frame.f_code, frame.f_lasti, name) for name in names)


def asks_class(frame: FrameType) -> bool:
    """Whether code that is not torch's own asks what a value is: by isinstance, a pattern of a class, ``__class__``."""
    return asks(frame, "isinstance") or (not _is_own(frame) and _reads_class(frame.f_code, frame.f_lasti))


def asks_for_dtype(frame: FrameType) -> bool:
    """Whether the code of a frame has a type of tensors of one dtype, such as torch.FloatTensor, to ask for."""
    code = frame.f_code
    if not OF_DTYPE.isdisjoint(code.co_names):
        return True
    found = [frame.f_locals.get(name, frame.f_globals.get(name)) for name in (*frame.f_locals, *code.co_names)]
    groups = (each if isinstance(each, (tuple, list)) else (each,) for each in found if type(each) in HOLDING)
    return any(type(each) is TENSOR_TYPE for group in groups for each in group)


@lru_cache(maxsize=1024)
def _reads_class(code: CodeType, at: int) -> bool:
    name = dis.opname[code.co_code[at]]
    if name == "MATCH_CLASS":
        return True
    step = next((i for i in dis.get_instructions(code) if i.offset == at), None) if name == "LOAD_ATTR" else None
    return step is not None and step.argval == "__class__"


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


def goes_on_if(frame: FrameType) -> bool | None:
    """The answer for which code goes on that asks a value whether it is true, if for the other one it only raises an
    error: ``assert x.shape[1] == 3``, ``if x.dim() != 4: raise``. None if it goes on either way.
    """
    return _survivor(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=1024)
def _survivor(code: CodeType, at: int) -> bool | None:
    if (found := asking(code, at)) is None:
        return None
    steps, jump = found
    raising = only_raises(steps, target(steps, jump)), only_raises(steps, jump + 1)
    return None if raising[0] == raising[1] else jumps_if(steps[jump]) != raising[0]


def sought(frame: FrameType) -> tuple[Any, ...] | None:
    """The constants among which code looks for a value, if it only raises an error where it is none of them:
    ``assert x.dim() in (3, 4)``. None if it goes on with others, or does something else.
    """
    return _sought(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=1024)
def _sought(code: CodeType, at: int) -> tuple[Any, ...] | None:
    steps = list(dis.get_instructions(code))
    looking = next(k for k, step in enumerate(steps) if step.offset == at)
    if steps[looking].opname != "CONTAINS_OP" or steps[looking - 1].opname != "LOAD_CONST":
        return None
    is_in = not steps[looking].arg
    return tuple(steps[looking - 1].argval) if _survivor(code, steps[looking + 1].offset) is is_in else None


def unanswered(frame: FrameType) -> Asked | None:
    """What the code of a frame asks of a traced value that no value is told of, or None: it would be answered as if it
    was no tensor, and no size, or another one.
    """
    for asked in _silent(frame.f_code):
        if asked.what is TYPE and "type" in frame.f_globals:
            # One that knows traced values, or the code's own.
            continue
        held: list[Any] = [frame.f_locals.get(name) for name in asked.names]
        values = [value for value in held if issubclass(type(value), fx.Proxy)]
        if values and not asked.is_answered(values):
            return asked
    return None


@dataclass(frozen=True)
class Asked:
    """What some code asks, in words. names: of the variables that it asks about. is_answered: whether the answer is
    right for these traced values. instead: what can be answered.
    """

    what: str
    names: frozenset[str]
    is_answered: Callable[[list[Any]], bool] = lambda values: False
    instead: str = ": use isinstance()"


def _are_tensors(values: list[Any]) -> bool:
    """A tensor is rightly taken for nothing that has parts."""
    return all(value.is_tensor for value in values)


def _are_different(values: list[Any]) -> bool:
    """Whoever calls the model may give one tensor for several arguments."""
    return len({value.node for value in values}) < 2 or any(value.node.op != "placeholder" for value in values)


@lru_cache(maxsize=1024)
def _silent(code: CodeType) -> tuple[Asked, ...]:
    """What some code asks that way."""
    steps = list(dis.get_instructions(code))
    known = any(s.opname in MATCHING or (s.opname in READS[:2] and s.argval == "type") for s in steps)
    tree = source(code) if known or any(s.opname == "IS_OP" for s in steps) else None
    if known and tree is None:
        return (Asked("for more than a trace can tell", frozenset(code.co_varnames)),)
    return tuple(_asked_silently(tree)) if tree is not None else ()


def _asked_silently(tree: ast.AST) -> Iterator[Asked]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Match) and any(map(_goes_into, node.cases)):
            answered = _are_tensors if isinstance(node.subject, ast.Name) else Asked.is_answered
            yield Asked("whether a value matches a pattern", _names(node.subject), answered)
        elif isinstance(node, (ast.Compare, ast.Subscript)):
            calls = (n for n in ast.walk(node) if isinstance(n, ast.Call) and _names(n.func) == {"type"})
            yield from (Asked(TYPE, _names(*call.args)) for call in calls)
        if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            sides = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Name)]
            if len(sides) > 1:
                yield Asked("whether two values are one", _names(*sides), _are_different, instead="")


def _goes_into(case: ast.match_case) -> bool:
    """Whether a pattern is one of several values."""
    return any(isinstance(each, (ast.MatchSequence, ast.MatchMapping)) for each in ast.walk(case.pattern))


def _names(*nodes: ast.AST) -> frozenset[str]:
    return frozenset(part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name))


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


def _is_own(frame: FrameType) -> bool:
    return frame.f_code not in FOR_OTHERS and package(frame.f_globals) in NOT_USERS


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
