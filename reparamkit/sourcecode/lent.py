"""Which variables of code may be what its caller has: what it puts into them others see."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set

from torch import Tensor

from .flow import assigned_in

SAME = (ast.Attribute, ast.Subscript, ast.Starred, ast.NamedExpr)
"""Expressions that are their value, or a part of it."""
SEVERAL = (ast.BoolOp, ast.Tuple, ast.List, ast.Set, ast.Dict)
"""Expressions that are one of several others, or have them in them."""


def lent_in(tree: ast.AST, fixed: Set[str]) -> frozenset[str]:
    """The arguments of a method, but for those that are never given, and the variables that may be one of them, or have
    one or a part of one in them.
    """
    known = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} - {"self", *fixed}
    pairs, size = list(assigned_in(tree)), -1
    while size < len(known):
        size = len(known)
        for targets, value in pairs:
            known |= set() if known.isdisjoint(names_kept(value)) else targets
    return frozenset(known)


def names_kept(node: ast.AST) -> Iterator[str]:
    """The variables that an expression may be, or have in it, or a part of them; what it computes is neither."""
    if isinstance(node, ast.Name):
        yield node.id
    for part in _kept(node):
        yield from names_kept(part)


def _kept(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, SAME):
        return [node.value]
    if isinstance(node, SEVERAL):
        return list(ast.iter_child_nodes(node))
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    # As in ``out.setdefault("seen", [])``.
    is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return [node.func] if is_method and not hasattr(Tensor, node.func.attr) else []  # type: ignore[attr-defined]


def fills(node: ast.Call) -> ast.expr | None:
    """What a call may put its arguments into: the object, no tensor, whose method it is; or that of ``setattr``."""
    if isinstance(node.func, ast.Name):
        return node.args[0] if node.func.id == "setattr" and node.args else None
    is_method = isinstance(node.func, ast.Attribute) and not hasattr(Tensor, node.func.attr)
    return node.func.value if is_method else None  # type: ignore[attr-defined]
