"""Tests in the code of a method that the attributes of its module settle."""

from __future__ import annotations

import ast
from typing import Any

from torch import nn

from .parse import path_of, tables_of

UNKNOWN = object()
"""What an expression is that is more than an attribute."""


def settled(test: ast.expr, module: nn.Module) -> bool | None:
    """Whether a test is true, as the module is now; None if its attributes alone do not tell."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = settled(operand, module)
            return None if inner is None else not inner
        case ast.BoolOp(op=op, values=values):
            return _joined([settled(each, module) for each in values], ends=isinstance(op, ast.Or))
        case ast.Compare(left=left, ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]):
            found = _attribute(left, module)
            return None if found is UNKNOWN else (found is None) == isinstance(op, ast.Is)
        case _:
            found = _attribute(test, module)
            return bool(found) if found is None or isinstance(found, bool) else None


def _joined(parts: list[bool | None], ends: bool) -> bool | None:
    """One part of an ``or`` that is true settles it, and one of an ``and`` that is false."""
    if ends in parts:
        return ends
    return None if None in parts else not ends


def _attribute(node: ast.expr, module: nn.Module) -> Any:
    """What an attribute of a module is; no code of the user runs for it."""
    name = path_of(node) if isinstance(node, ast.Attribute) else ""
    for table in (vars(module), *tables_of(module)):
        if name in table:
            return table[name]
    return UNKNOWN
