"""A generated method, as source and the names it needs."""

from __future__ import annotations

import importlib
import inspect
import itertools
import keyword
import linecache
import weakref
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.fx.immutable_collections
from torch import fx

from ..errors import NotFusable
from ..reasons import Kind
from ..sourcecode.parse import names_of

_files = itertools.count()


@dataclass(frozen=True)
class Method:
    """A generated forward. source: its text. names: what its global names refer to (module, qualified name)."""

    source: str
    names: tuple[tuple[str, str, str], ...]

    def function(self) -> FunctionType:
        """Compile it; the source stays visible to inspect, tracebacks and torch.compile."""
        # Without a __name__: before torch 2.13 dynamo looks names up in the module of that name.
        names: dict[str, Any] = {name: _imported(module, path) for name, module, path in self.names}
        filename = f"<reparamkit {next(_files)}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)
        exec(compile(self.source, filename, "exec"), names)
        forward = names["forward"]
        assert isinstance(forward, FunctionType)
        forward.__module__ = __name__
        # As long as there is the code: a process that fuses one model after the other would keep all sources.
        weakref.finalize(inspect.unwrap(forward).__code__, linecache.cache.pop, filename, None).atexit = False
        return forward


MARK = "<keyword>"
"""Makes of a word of Python a name that fx looks up by getattr."""


def method(graph: fx.Graph, gradients: bool = True) -> Method:
    """The graph, which is used up, as the source of a forward method."""
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path = str(node.target).split(".")
            node.target = ".".join(MARK + name if keyword.iskeyword(name) else name for name in path)
    spare_self(graph)
    code = graph.python_code("self")
    code.src = code.src.replace(MARK, "")
    source = code.src.lstrip() if gradients else f"@torch.no_grad()\n{code.src.lstrip()}"
    used = set(names_of(compile(source, "<written>", "exec", dont_inherit=True)))
    names = {name: value for name, value in (code.globals | {"torch": torch}).items() if name in used}
    return Method(source, tuple((name, *_importable(name, value)) for name, value in sorted(names.items())))


def spare_self(graph: fx.Graph) -> None:
    """Let no value have the name of the module in the code: that of a call of a layer is the name of the layer."""
    for node in graph.nodes:
        if node.name == "self":
            node._rename("self_value")


def _importable(name: str, value: Any) -> tuple[str, str]:
    if isinstance(value, ModuleType):
        return value.__name__, ""
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    for candidate, where in (
        (module, path),
        ("torch", name),
        ("builtins", path),
        ("typing", name),
        ("math", name),
        ("types", name),
    ):
        if candidate and where and _resolves(candidate, where, value):
            return candidate, where
    raise NotFusable(f"the generated method would need {value!r}, which cannot be imported by name", Kind.CODE)


def _resolves(module: str, path: str, value: Any) -> bool:
    try:
        return _imported(module, path) is value
    except (ImportError, AttributeError):
        return False


def _imported(module: str, path: str) -> Any:
    found = importlib.import_module(module)
    for part in path.split(".") if path else ():
        found = getattr(found, part)
    return found
