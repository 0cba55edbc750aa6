"""Which attributes code goes by, that others may change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import CodeType

from .parse import once, source


@once
def consulted(code: CodeType) -> frozenset[str] | None:
    """The attributes, of anything, that code reads and does not change itself; None if it is not known. What it only
    puts something into, as by ``self.seen.append(x)``, it does not read.
    """
    tree = source(code)
    if tree is None:
        return None
    nodes = list(ast.walk(tree))
    stored = [n for n in nodes if isinstance(n, (ast.Attribute, ast.Subscript)) and isinstance(n.ctx, ast.Store)]
    called = [n.value.func for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    filled = {id(part) for node in (*stored, *called) for part in _below(node)}
    read = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and id(n) not in filled)
    return frozenset(node.attr for node in read if node not in called) - set(map(_changed, stored))


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
