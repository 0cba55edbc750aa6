"""The source code of classes and functions, as trees."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

K = TypeVar("K")
T = TypeVar("T")
TORCHS = frozenset(dir(nn.Module()))
"""What every module has."""
ASKING = frozenset({"isinstance", "hasattr", "getattr", "id", "type", "print"})
"""Functions that can be asked of any object."""
Paths = dict[str, frozenset[str]]
"""Per method of a user's class, inherited ones too, some paths below the module."""


def once(find: Callable[[K], T]) -> Callable[[K], T]:
    """Find only once for each class or function, and keep none alive."""
    known: WeakKeyDictionary[K, T] = WeakKeyDictionary()

    @functools.wraps(find)
    def look_up(key: K) -> T:
        if key not in known:
            known[key] = find(key)
        return known[key]

    return look_up


def forward_of(module: nn.Module, cls: type[nn.Module] | None = None) -> Callable[..., Any]:
    """The function that a call of a module runs: a forward of its own, or that of its class (or of `cls` instead)."""
    found: Any = vars(module).get("forward", (cls or type(module)).forward)
    while isinstance(found, functools.partial):
        found = found.func
    return getattr(found, "__func__", found)  # type: ignore[no-any-return]


def tables_of(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """What torch keeps of a module by name: modules, parameters and buffers."""
    return module._modules, module._parameters, module._buffers


def defaults_in(spec: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """The parameters of a function that may have a default, with it."""
    named = [*spec.posonlyargs, *spec.args]
    yield from zip(named[::-1], spec.defaults[::-1], strict=False)
    yield from zip(spec.kwonlyargs, spec.kw_defaults, strict=True)


def is_torchs(function: object) -> bool:
    """Whether a function is torch's, or Python's."""
    return str(getattr(function, "__module__", None)).partition(".")[0] in ("torch", "builtins", "None")


def source(function: object) -> ast.AST | None:
    """The code of a function, if there is any."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, SyntaxError, TypeError):
        return None


def method_source(function: object) -> ast.AST | None:
    """The code of a method, in which the module is ``self``, as most call it."""
    tree = source(function)
    nodes = [] if tree is None else list(ast.walk(tree))
    functions = [node.args for node in nodes if isinstance(node, ast.FunctionDef)]
    first = [each.arg for spec in functions[:1] for each in (*spec.posonlyargs, *spec.args)][:1]
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in first:
            node.id = "self"
        if isinstance(node, ast.arg) and node.arg in first:
            node.arg = "self"
    return tree


def path_of(node: ast.AST) -> str:
    """``a.b`` for ``self.a.b`` and ``self.a.b[...]``, ``a.0`` for ``self.a[0]`` and ``self.a["0"]``, else nothing."""
    if isinstance(node, ast.Subscript):
        outer = path_of(node.value)
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return f"{outer}.{key}" if outer and isinstance(key, (int, str)) else outer
    if not isinstance(node, ast.Attribute):
        return ""
    if isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    outer = path_of(node.value)
    return f"{outer}.{node.attr}" if outer else ""


def owner_of_class(node: ast.AST) -> ast.expr | None:
    """``x`` of ``type(x)`` and of ``x.__class__``."""
    if isinstance(node, ast.Attribute) and node.attr == "__class__":
        return node.value
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"
    return node.args[0] if named and len(node.args) == 1 else None  # type: ignore[attr-defined]


def is_shown(tree: ast.AST, node: ast.expr) -> bool:
    """Whether code reads only an attribute, or the text, of what an expression gives."""
    return any(node in _shown(each) for each in ast.walk(tree))


def _shown(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.Attribute, ast.FormattedValue)):
        return [node.value]
    text = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("str", "repr")
    return node.args if text else []  # type: ignore[attr-defined]


def names_of(code: CodeType) -> Iterator[str]:
    """What code reads by name, the functions inside it included."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_of(inner)
