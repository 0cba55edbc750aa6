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
    changed, filled = set(_changed(nodes)), {id(node) for node in _filled(nodes)}
    read = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and id(n) not in filled)
    return frozenset(node.attr for node in read) - changed


def _changed(nodes: list[ast.AST]) -> Iterator[str]:
    """The attributes that are set, or an item of which is."""
    for node in nodes:
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            while isinstance(node, ast.Subscript):
                node = node.value
            if isinstance(node, ast.Attribute):
                yield node.attr


def _filled(nodes: list[ast.AST]) -> Iterator[ast.AST]:
    """What a statement calls a method of, and takes nothing from."""
    for node in nodes:
        called = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        if isinstance(called, ast.Attribute):
            yield called.value
