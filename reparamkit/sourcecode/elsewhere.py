"""What code changes that is neither its own nor a model's: classes, functions, globals, iterators."""

from __future__ import annotations

import ast
import dis
from collections.abc import Iterator
from types import CodeType

from .flow import locals_of
from .parse import once, source

STORES = {dis.opmap[name] for name in ("STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "DELETE_ATTR", "DELETE_SUBSCR")}


@once
def changed_elsewhere(code: CodeType) -> frozenset[str]:
    """The names of what code changes, or an item or attribute of, that outlives a call and that no module has."""
    if STORES.isdisjoint(code.co_code[::2]) and "next" not in code.co_names:
        return frozenset()
    tree = source(code)
    return frozenset() if tree is None else frozenset(_changed(tree, {*locals_of(tree), *code.co_varnames, "self"}))


def _changed(tree: ast.AST, own: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            yield from [_name(node)] if _is_elsewhere(node, own) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "next":
            yield from (_name(each) for each in node.args[:1] if _is_elsewhere(each, own) or _is_attribute(each))


def _is_elsewhere(node: ast.expr, own: set[str]) -> bool:
    """Whether an expression is, or begins with, a name that is no variable, or the class of something."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute) and node.attr == "__class__":
            return True
        node = node.value
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "type"
    return isinstance(node, ast.Name) and node.id not in own


def _is_attribute(node: ast.expr) -> bool:
    return isinstance(node, (ast.Attribute, ast.Subscript))


def _name(node: ast.expr) -> str:
    """The last name in an expression."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
