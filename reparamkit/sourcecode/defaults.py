"""What code takes for keyword arguments that it is not given."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from types import CodeType

from .parse import defaults_in, once, source

OTHER = "..."
"""Any default but None, True and False."""
Default = tuple[str, "bool | str | None"]
ASKED = frozenset({"get", "pop", "setdefault"})


def defaults_of(codes: Iterable[CodeType]) -> list[Default] | None:
    """The names of keyword arguments that some code reads, each with what it takes if there is none; None if not all of
    the code is known.
    """
    found = [_defaults(code) for code in codes]
    known = [each for each in found if each is not None]
    return sorted(set().union(*known), key=repr) if len(known) == len(found) else None


@once
def _defaults(code: CodeType) -> frozenset[Default] | None:
    tree = source(code)
    return None if tree is None else frozenset(_found(tree))


def _found(tree: ast.AST) -> Iterator[Default]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            yield from _parameters(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ASKED:
            if node.args and isinstance(first := node.args[0], ast.Constant) and isinstance(first.value, str):
                yield first.value, _value(node.args[1]) if len(node.args) > 1 else None
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
            yield node.left.value, OTHER


def _parameters(node: ast.arguments) -> Iterator[Default]:
    yield from ((each.arg, _value(default)) for each, default in defaults_in(node) if default is not None)


def _value(node: ast.expr) -> bool | str | None:
    value = node.value if isinstance(node, ast.Constant) else OTHER
    return value if value is None or isinstance(value, bool) else OTHER
