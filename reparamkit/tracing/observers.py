"""Hooks that only look at a forward: they are not run on the values of a trace, which they could keep somewhere."""

from __future__ import annotations

import ast
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..sourcecode.parse import source

TABLES = ("_forward_hooks", "_forward_pre_hooks")


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs hooks."""
    return any(getattr(module, name) for name in TABLES)


@contextmanager
def without_observers(module: nn.Module) -> Iterator[None]:
    """Inside, calls of the module, and of those inside, run only such hooks as may change something."""
    found = [(m, name, table) for m in module.modules() for name in TABLES if (table := getattr(m, name))]
    try:
        for one, name, table in found:
            setattr(one, name, OrderedDict((key, hook) for key, hook in table.items() if not _observes(hook)))
        yield
    finally:
        for one, name, table in found:
            setattr(one, name, table)


def _observes(hook: object) -> bool:
    """Whether the code of a hook gives nothing back, as far as it is known."""
    function = hook if hasattr(hook, "__code__") else getattr(hook, "__func__", type(hook).__call__)
    tree = source(function)
    nodes = [] if tree is None else list(ast.walk(tree))
    returns = [node for node in nodes if isinstance(node, (ast.Return, ast.Yield, ast.Lambda)) and not _is_none(node)]
    return bool(nodes) and not returns


def _is_none(node: ast.AST) -> bool:
    value = getattr(node, "value", node)
    return value is None or (isinstance(value, ast.Constant) and value.value is None)
