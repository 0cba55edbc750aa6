"""Who imports whom, and what is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

import reparamkit

ROOT = Path(reparamkit.__file__).parent
MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in ROOT.rglob("*.py")}
EVERYTHING = {
    *("errors", "reasons", "algebra", "layers", "rulebook", "sourcecode", "running", "tracing", "capture", "reporting"),
    *("engine", "write", "compare", "proof", "recipes"),
}
GRAPH = {"running", "tracing", "capture"}
REFUSING = {"errors", "reasons"}
MAY_IMPORT: dict[str, set[str]] = {
    "reasons": set(),
    "errors": {"reasons"},
    "garbage": set(),
    "algebra": REFUSING,
    "layers": {"algebra", *REFUSING},
    "rulebook": {"algebra", *REFUSING},
    "sourcecode": set(),
    "running": {*REFUSING, "sourcecode"},
    "tracing": {*REFUSING, "sourcecode", "running"},
    "capture": {*REFUSING, "sourcecode", "running", "tracing"},
    "show": REFUSING,
    "recipes": REFUSING,
    "reporting": {*REFUSING, "show"},
    "record": {*EVERYTHING},
    "engine": {"sourcecode", *GRAPH, "algebra", "layers", "reporting", *REFUSING},
    "compare": {*GRAPH, "layers"},
    "proof": {*GRAPH, "algebra", "layers", "compare", *REFUSING},
    "write": {"sourcecode", *GRAPH, "algebra", "layers", "reporting", *REFUSING, "engine", "recipes", "garbage"},
    "localize": {*GRAPH, "compare"},
    "timing": {*GRAPH, "compare", *REFUSING},
    "trial": {*GRAPH, "proof", "write", "timing", *REFUSING},
    "inputs": EVERYTHING,
    "request": {*EVERYTHING, "inputs"},
    "work": {*EVERYTHING, "trial"},
    "totals": {*EVERYTHING, "record"},
    "refusals": {*EVERYTHING, "work"},
    "summary": {*EVERYTHING, "record", "request", "totals", "trial", "work"},
    "registry": EVERYTHING,
    "tokens": {"inputs"},
    "inject": {*EVERYTHING, "inputs", "copies", "tokens"},
    "exported": {*REFUSING, "layers"},
    "testing": {*EVERYTHING, "pipeline", "carried", "registry", "inputs"},
    "copies": EVERYTHING,
    "whole": {*EVERYTHING, "inputs", "localize", "request"},
    "pieces": EVERYTHING,
    "as_graph": {*EVERYTHING, "inputs", "request"},
    "carried": EVERYTHING,
    "merging": {*EVERYTHING, "pieces", "record", "request", "trial", "work"},
    "pipeline": {
        *EVERYTHING,
        *("as_graph", "inputs", "request", "refusals", "summary", "totals", "work", "localize", "exported", "garbage"),
        *("copies", "merging", "whole", "carried"),
    },
    "cli": {*EVERYTHING, "pipeline", "request", "show", "testing", "timing", "exported", "__init__"},
    "__init__": {*EVERYTHING, "pipeline", "carried", "registry", "testing", "inject", "timing"},
}
PUBLIC = [
    "Benchmark",
    "CaptureError",
    "CoverageError",
    "EquivalenceError",
    "Form",
    "GuardError",
    "InvalidInputError",
    "Match",
    "NotFusable",
    "Recipe",
    "RecipeError",
    "ReparamkitError",
    "Report",
    "Rule",
    "RuleError",
    "Verification",
    "__version__",
    "benchmark",
    "call",
    "conv",
    "convert_state_dict",
    "explain",
    "fuse",
    "inject_locality",
    "linear",
    "matrix",
    "multiply",
    "pool",
    "probe",
    "reader",
    "recipe",
    "register_rule",
    "report",
    "rule",
    "rules",
    "scale",
    "value",
    "verify",
]


def part(module: str) -> str:
    """The package of a module, or the module itself if it lies at the top."""
    return module.split(".")[0]


@cache
def tree(module: str) -> ast.Module:
    """The code of a module."""
    return ast.parse(MODULES[module].read_text())


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of ours that a module imports."""
    return frozenset(_imported(module))


def _imported(module: str) -> Iterator[str]:
    package = [] if module == "__init__" else module.split(".")[:-1]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            yield from (_resolved(base, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reparamkit":
            yield from (_resolved((node.module or "").split(".")[1:], alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if part(alias.name) == "reparamkit")


def _resolved(base: list[str], name: str) -> str:
    """The module meant by ``from base import name``."""
    inner, outer = ".".join([*filter(None, base), name]), ".".join(filter(None, base))
    return next(
        found for found in (inner, f"{inner}.__init__", outer, f"{outer}.__init__", "__init__") if found in MODULES
    )


@pytest.mark.parametrize("module", sorted(MODULES))
def test_direction(module: str):
    """A module imports only from the packages that its own may use."""
    found = {part(name) for name in imported(module)} - {part(module)}
    assert found <= MAY_IMPORT[part(module)]


def test_no_cycles():
    """No module imports itself, by whatever detour."""
    graph = nx.DiGraph((module, name) for module in MODULES for name in imported(module) if name != module)
    assert list(nx.simple_cycles(graph)) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_are_at_the_top(module: str):
    """No function imports anything."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    functions = [node for node in ast.walk(tree(module)) if isinstance(node, kinds)]
    hidden = [n.lineno for f in functions for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert hidden == []


def test_no_module_has_a_public_name():
    """The name would hide it: of a folder ``rules``, ``import reparamkit.rules.injected as injected`` finds nothing."""
    assert {part(module) for module in MODULES}.isdisjoint(PUBLIC)


def test_public_names():
    """The public names are these, each with a docstring."""
    public = {name for name, found in vars(reparamkit).items() if name[0] != "_" and not isinstance(found, ModuleType)}
    assert sorted(public | {"__version__"}) == sorted(PUBLIC)
    undocumented = [
        name for name in PUBLIC if name not in ("__version__", "rules") and not getattr(reparamkit, name).__doc__
    ]
    assert undocumented == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_say_what_they_are_for(module: str):
    """Every module that is not empty begins with a docstring."""
    assert not tree(module).body or ast.get_docstring(tree(module))
