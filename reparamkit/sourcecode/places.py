"""Where in the source running code is, and where the arguments of the call that it makes come from."""

from __future__ import annotations

import ast
import linecache
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType

Place = tuple[int | None, int | None, int | None, int | None]
"""First and last line, first and last column."""
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def place(frame: FrameType) -> Place:
    """The place of the expression that a frame is at."""
    return _places(frame.f_code)[frame.f_lasti // 2]


def origins(frame: FrameType) -> tuple[Place, ...]:
    """The places of the arguments of the call that a frame is at; of a variable that is assigned once, that of what is
    assigned to it.
    """
    return _calls(frame.f_code.co_filename).get(place(frame), ())


@lru_cache(maxsize=256)
def _places(code: CodeType) -> tuple[Place, ...]:
    return tuple(code.co_positions())


@lru_cache(maxsize=64)
def _calls(filename: str) -> dict[Place, tuple[Place, ...]]:
    """Per call in the functions of a file the places of its arguments."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return {}
    # Inner functions come after those around them.
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    return {call: arguments for function in functions for call, arguments in _calls_in(function)}


def _calls_in(function: Function) -> Iterator[tuple[Place, tuple[Place, ...]]]:
    nodes = list(ast.walk(function))
    known = _assigned_once(nodes)
    for call in nodes:
        if isinstance(call, ast.Call):
            given = (*call.args, *(keyword.value for keyword in call.keywords))
            found = (known.get(each.id, each) if isinstance(each, ast.Name) else each for each in given)
            yield _place(call), tuple(map(_place, found))


def _assigned_once(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """The variables that get a value at one place only (None aside), with the expression that they get."""
    stored = [node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)]
    times = Counter((*stored, *(node.arg for node in nodes if isinstance(node, ast.arg))))
    assigned = [(target, node.value) for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    named = [(target.id, value) for target, value in assigned if isinstance(target, ast.Name)]
    times.subtract(name for name, value in named if _is_none(value))
    return {name: value for name, value in named if times[name] == 1 and not _is_none(value)}


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _place(node: ast.expr) -> Place:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset
