"""What writes into tensors in place, as its code tells."""

from __future__ import annotations

import ast
import inspect

from torch import nn

from .parse import once, source

AUGMENTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
"""What ``x += y`` and the like do to a tensor in place. (There is no ``x @= y``.)"""
IN_PLACE = frozenset({*(f"i{name}" for name in AUGMENTED), "setitem"})
"""Operators that write into their first operand."""
KEYWORDS = frozenset({"out", "inplace"})


def in_place(name: str) -> bool:
    """Whether a function or method of this name writes into its first operand."""
    return name.strip("_") in IN_PLACE if name.startswith("__") else name in IN_PLACE or name.endswith("_")


def may_write(module: nn.Module) -> bool:
    """Whether code that was not traced may write into the tensors it gets."""
    return any(
        getattr(m, "inplace", False) or "forward" in vars(m) or _class_may_write(type(m)) for m in module.modules()
    )


@once
def _class_may_write(cls: type) -> bool:
    """Whether a forward, or a method that it calls, has code that writes, or cannot be read."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins")]
    methods = {n: f for base in reversed(own) for n, f in vars(base).items() if inspect.isfunction(f)}
    waiting, seen = ["forward"] if "forward" in methods else [], {"forward"}
    while waiting:
        nodes = _nodes(methods[waiting.pop()])
        if not nodes or any(map(_writes, nodes)):
            return True
        named = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & methods.keys() - seen
        waiting += named
        seen |= named
    return False


def _nodes(function: object) -> list[ast.AST]:
    """All of the code of a function, if there is any."""
    tree = source(function)
    return [] if tree is None else list(ast.walk(tree))


def _writes(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        in_place = name.endswith("_") and not name.endswith("__")
        return in_place or any(each.arg in KEYWORDS for each in node.keywords)
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Subscript) and not _is_own(target.value) for target in node.targets)
    return isinstance(node, ast.AugAssign) and not _is_own(node.target)


def _is_own(node: ast.AST) -> bool:
    """Whether an expression is what a module has in an attribute: a count, or a cache."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
