"""Which layers the methods of a class call, for methods that were not running while the model was traced."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

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
                found[name] = frozenset(_called(function))
    found.pop("forward", None)
    return {name: called for name, called in found.items() if called}


def _called(function: object) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, SyntaxError, TypeError):
        return
    variables = _variables(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
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
