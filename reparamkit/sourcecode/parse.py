"""The source code of classes and functions, as trees."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
ASKING = frozenset({"isinstance", "hasattr", "getattr", "id", "type", "print"})
"""Functions that can be asked of any object."""
Paths = dict[str, frozenset[str]]
"""Per method of a user's class, inherited ones too, some paths below the module."""


def per_class(find: Callable[[type], T]) -> Callable[[type], T]:
    """Find only once for each class, and keep no class alive."""
    known: WeakKeyDictionary[type, T] = WeakKeyDictionary()

    @functools.wraps(find)
    def look_up(cls: type) -> T:
        if cls not in known:
            known[cls] = find(cls)
        return known[cls]

    return look_up


def source(function: object) -> ast.AST | None:
    """The code of a function, if there is any."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, SyntaxError, TypeError):
        return None


def method_source(function: object) -> ast.AST | None:
    """The code of a method, in which the module is ``self``, as most call it."""
    tree = source(function)
    nodes = [] if tree is None else list(ast.walk(tree))
    functions = [node.args for node in nodes if isinstance(node, ast.FunctionDef)]
    first = [each.arg for spec in functions[:1] for each in (*spec.posonlyargs, *spec.args)][:1]
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in first:
            node.id = "self"
    return tree


def path_of(node: ast.AST) -> str:
    """``a.b`` for ``self.a.b`` and ``self.a.b[...]``, ``a.0`` for ``self.a[0]``, else nothing."""
    if isinstance(node, ast.Subscript):
        outer = path_of(node.value)
        number = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return f"{outer}.{number}" if outer and isinstance(number, int) else outer
    if not isinstance(node, ast.Attribute):
        return ""
    if isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    outer = path_of(node.value)
    return f"{outer}.{node.attr}" if outer else ""
