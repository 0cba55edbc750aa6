"""Which attributes code goes by, that others may change."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from .parse import names_of, once, source


@once
def consulted(code: CodeType) -> frozenset[str] | None:
    """The attributes, of anything, that code reads and does not change itself; None if it is not known."""
    tree = source(code)
    return None if tree is None else _read(tree) - set(map(_changed, _stored(tree)))


@once
def consulted_by_helpers(cls: type) -> frozenset[str]:
    """The attributes that methods and properties of a class read, if its forward may run them: what they return may
    tell. A dictionary that the same code fills is a cache.
    """
    trees = [tree for each in _helpers(cls) if (tree := source(each)) is not None]
    return frozenset[str]().union(*(_read(tree) - _filled_by(tree) for tree in trees))


def _helpers(cls: type) -> set[Callable[..., Any]]:
    found, waiting = set[Callable[..., Any]](), [inspect.getattr_static(cls, "forward")]
    while waiting:
        code = getattr(waiting.pop(), "__code__", None)
        named = (inspect.getattr_static(cls, name, None) for name in names_of(code)) if code is not None else ()
        functions = {each.fget if isinstance(each, property) else each for each in named}
        new = {f for f in functions - found if isinstance(f, FunctionType) and not f.__module__.startswith("torch.")}
        found |= new
        waiting += new
    return found


def _read(tree: ast.AST) -> frozenset[str]:
    """What is read. What code only puts something into, as by ``self.seen.append(x)``, it does not read."""
    nodes = list(ast.walk(tree))
    called = [n.value.func for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    filled = {id(part) for node in (*_stored(tree), *called) for part in _below(node)} | set(map(id, called))
    read = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and id(n) not in filled)
    return frozenset(node.attr for node in read)


def _filled_by(tree: ast.AST) -> frozenset[str]:
    """The attributes of which code sets items."""
    targets = (each for node in ast.walk(tree) if isinstance(node, ast.Assign) for each in node.targets)
    return frozenset(_changed(each) for each in targets if isinstance(each, ast.Subscript))


def _stored(tree: ast.AST) -> list[ast.Attribute | ast.Subscript]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Subscript)))
    return [node for node in nodes if isinstance(node.ctx, ast.Store)]


def _below(node: ast.expr) -> Iterator[ast.expr]:
    """Of ``self.a.b[0]`` ``self.a.b``, ``self.a`` and ``self``."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
        yield node


def _changed(node: ast.expr) -> str:
    """The name of the attribute that is set, or an item of which is."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else ""
