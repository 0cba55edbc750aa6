"""Where in the source running code is, and where the arguments of the call that it makes come from."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType

Place = tuple[int | None, int | None, int | None, int | None]
"""First and last line, first and last column."""
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
NOT_USERS = frozenset({__name__.partition(".")[0], "torch"})
"""Packages whose code is not the user's."""
DEEPEST = 8
"""How many variables and parameters are followed."""


def place(frame: FrameType) -> Place:
    """The place of the expression that a frame is at."""
    return _places(frame.f_code)[frame.f_lasti // 2]


def place_of_node(node: ast.expr) -> Place:
    """The place of an expression."""
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def users(frame: FrameType) -> FrameType:
    """The innermost frame of the user's code."""
    while frame.f_back is not None and not is_users(frame):
        frame = frame.f_back
    return frame


def is_users(frame: FrameType) -> bool:
    """Whether a frame is of code that is neither ours nor torch's; what was written for a model is its own."""
    return package(frame.f_globals) not in NOT_USERS or frame.f_code.co_filename.startswith("<")


def package(names: Mapping[str, object]) -> str:
    """The package of code, by the global names that it sees."""
    return str(names.get("__name__")).partition(".")[0]


def first_argument(frame: FrameType) -> object:
    """What the code of a frame got first: of a method, the object that has it."""
    return frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None


def _is_method(frame: FrameType) -> bool:
    """Whether a frame runs a method of what it got first, so that the call did not give it that."""
    name, classes = frame.f_code.co_name, type(first_argument(frame)).__mro__
    found = (each.__dict__.get(name) for each in classes)
    return any(inspect.unwrap(each).__code__ is frame.f_code for each in found if inspect.isfunction(each))


def origins(frame: FrameType) -> Iterator[tuple[FrameType, ast.expr]]:
    """The arguments of the call that a frame is at, each with the frame in which it is said: a variable that is
    assigned once is what is assigned to it, and a parameter what the caller gives.
    """
    call = _call(frame)
    given = [] if call is None else [*call.node.args, *(keyword.value for keyword in call.node.keywords)]
    yield from (_followed(frame, node, DEEPEST) for node in given)


@dataclass(frozen=True)
class _Call:
    """A call in the code of a function. known: the variables of the function that get a value at one place only."""

    node: ast.Call
    known: Mapping[str, ast.expr]


def _followed(frame: FrameType, node: ast.expr, steps: int) -> tuple[FrameType, ast.expr]:
    call = _call(frame)
    if not isinstance(node, ast.Name) or call is None or not steps:
        return frame, node
    if node.id in call.known:
        return _followed(frame, call.known[node.id], steps - 1)
    outer = frame if frame.f_back is None else users(frame.f_back)
    given = None if outer is frame else _given(frame, outer, node.id)
    return (frame, node) if given is None else _followed(outer, given, steps - 1)


def _given(frame: FrameType, outer: FrameType, name: str) -> ast.expr | None:
    """What the frame around a call gives for a parameter."""
    call, code = _call(outer), frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if call is None or name not in names:
        return None
    position = names.index(name) - _is_method(frame)
    by_name = [keyword.value for keyword in call.node.keywords if keyword.arg == name]
    return next(iter([*by_name, *call.node.args[max(position, 0) :][:1]]), None)


def _call(frame: FrameType) -> _Call | None:
    return _calls(frame.f_code.co_filename).get(place(frame))


@lru_cache(maxsize=256)
def _places(code: CodeType) -> tuple[Place, ...]:
    return tuple(code.co_positions())


@lru_cache(maxsize=64)
def _calls(filename: str) -> dict[Place, _Call]:
    """The calls in the functions of a file."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return {}
    # Inner functions come after those around them.
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return {call: found for function in functions for call, found in _calls_in(function)}


def _calls_in(function: Function) -> Iterator[tuple[Place, _Call]]:
    nodes = list(ast.walk(function))
    known = _assigned_once(nodes)
    yield from ((place_of_node(node), _Call(node, known)) for node in nodes if isinstance(node, ast.Call))


def _assigned_once(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """The variables that get a value at one place only (None aside), with the expression that they get."""
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)]
    times = Counter((*stored, *(node.arg for node in nodes if isinstance(node, ast.arg))))
    assigned = [(target, node.value) for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    pairs = [pair for target, value in assigned for pair in _pairs(target, value)]
    named = [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
    times.subtract(name for name, value in named if _is_none(value))
    return {name: value for name, value in named if times[name] == 1 and not _is_none(value)}


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What gets what, of ``a, b = c, d`` too."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
