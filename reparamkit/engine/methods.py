"""Which layers the methods of a class call, for methods that were not running while the model was traced."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Container, Iterable, Iterator
from weakref import WeakKeyDictionary

BRANCHES = (ast.If, ast.IfExp, ast.While, ast.BoolOp, ast.Try, ast.Match)


def unconditional_calls(cls: type) -> frozenset[str]:
    """The paths of the modules that the forward of a class calls whatever its branches are; none if it may return
    early.
    """
    tree = _source(cls.forward)  # type: ignore[attr-defined]
    branches = [n for n in ast.walk(tree) if isinstance(n, BRANCHES)] if tree is not None else []
    if tree is None or any(isinstance(part, ast.Return) for branch in branches for part in ast.walk(branch)):
        return frozenset()
    inside = {id(part) for branch in branches for part in ast.walk(branch)}
    return frozenset(_called(tree, inside))


_known: WeakKeyDictionary[type, dict[str, frozenset[str]]] = WeakKeyDictionary()


def called_by_methods(cls: type) -> dict[str, frozenset[str]]:
    """Per method of a user's class other than forward, inherited ones too, the paths of the modules it calls."""
    if cls not in _known:
        _known[cls] = _methods(cls)
    return _known[cls]


def _methods(cls: type) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    assert isinstance(cls, type)
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, function in vars(base).items():
            if inspect.isfunction(function) and name not in found:
                tree = _source(function)
                found[name] = frozenset() if tree is None else frozenset(_called(tree))
    found.pop("forward", None)
    return {name: called for name, called in found.items() if called}


def _source(function: object) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, SyntaxError, TypeError):
        return None


def _called(tree: ast.AST, without: Container[int] = ()) -> Iterator[str]:
    """The paths of the modules that are called; `without`: not in these nodes (by identity)."""
    variables = _variables(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in without:
            callee = node.func
            names = variables.get(callee.id, ()) if isinstance(callee, ast.Name) else [_path(callee)]
            yield from (name for name in names if name)


def _variables(tree: ast.AST) -> dict[str, set[str]]:
    """Per local variable the attributes of self that it may come from: by assignment or in a loop."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)):
            _bound(found, [node.target], node.iter)
        elif isinstance(node, ast.Assign):
            _bound(found, node.targets, node.value)
    return found


def _bound(found: dict[str, set[str]], targets: Iterable[ast.AST], value: ast.AST) -> None:
    parts = list(ast.walk(value))
    paths = {path for part in parts if (path := _path(part))}
    paths |= {path for part in parts if isinstance(part, ast.Name) for path in found.get(part.id, ())}
    for target in targets:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                found.setdefault(part.id, set()).update(paths)


def _path(node: ast.AST) -> str:
    """``a.b`` for ``self.a.b`` and ``self.a.b[...]``, else nothing."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if not isinstance(node, ast.Attribute):
        return ""
    if isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    outer = _path(node.value)
    return f"{outer}.{node.attr}" if outer else ""
