"""Which layers a forward calls on every way through it, and whose results it reads once only.

A trace shows one way. Where the code has others (a flag, an optional argument), what was seen of a value is not all.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .parse import method_source, once, path_of

BRANCHES = (ast.If, ast.IfExp, ast.While, ast.BoolOp, ast.Try, ast.Match)


@once
def branched_on(forward: Callable[..., Any]) -> frozenset[str]:
    """The parameters of a forward that its branches depend on."""
    tree = method_source(forward)
    if tree is None:
        return frozenset()
    tests = [node for node in ast.walk(tree) if isinstance(node, BRANCHES)]
    deciding = {name for node in tests for name in _names(getattr(node, "test", node))}
    for node in reversed([n for n in ast.walk(tree) if isinstance(n, ast.Assign)]):
        if any(isinstance(t, ast.Name) and t.id in deciding for target in node.targets for t in ast.walk(target)):
            deciding |= _names(node.value)
    return frozenset(deciding)


@once
def catches(forward: Callable[..., Any]) -> bool:
    """Whether a forward goes on after some errors."""
    tree = method_source(forward)
    return tree is not None and any(isinstance(node, ast.ExceptHandler) for node in ast.walk(tree))


@once
def remembered(forward: Callable[..., Any]) -> frozenset[str]:
    """The attributes that a forward changes, or an item of, and that its branches depend on."""
    tree = method_source(forward)
    nodes = [] if tree is None else list(ast.walk(tree))
    tested = [_attributes(getattr(node, "test", node)) for node in nodes if isinstance(node, BRANCHES)]
    stored = (n for n in nodes if isinstance(n, (ast.Attribute, ast.Subscript)) and isinstance(n.ctx, ast.Store))
    changed = {path_of(n.value if isinstance(n, ast.Subscript) else n) for n in stored}
    return frozenset(changed & set().union(*tested) - {""})


@once
def names_in(forward: Callable[..., Any]) -> frozenset[str] | None:
    """The variables that a forward does anything with; None if its code is not known."""
    tree = method_source(forward)
    return None if tree is None else frozenset(_names(tree))


def _attributes(node: ast.AST) -> set[str]:
    return {path_of(part) for part in ast.walk(node)}


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _locals(tree: ast.AST) -> frozenset[str]:
    """Arguments but for self, and variables."""
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return frozenset((arguments | stored) - {"self"})


@once
def certain_calls(forward: Callable[..., Any]) -> dict[str, frozenset[str]]:
    """Of a forward the paths of the modules it calls whatever its branches are ("always": none if it may
    return early), and of those whose results it reads once, outside of branches ("once").
    """
    tree = method_source(forward)
    if tree is None:
        return {"always": frozenset(), "once": frozenset()}
    flow = _Flow(_locals(tree), remembered(forward))
    flow.visit(tree)
    always = frozenset() if flow.returns_early else frozenset(flow.always)
    return {"always": always, "once": always - flow.exposed}


@dataclass
class _Flow(ast.NodeVisitor):
    """Follows the statements in order. A branch on attributes of the module alone is none: they were so in the trace.

    own: the local names. remembered: attributes that the forward changes. depth: in how many branches. holding: per
    variable the layers whose result it may have. read: the layers whose result was read from a variable. exposed: those
    whose result is read again, or in a branch.
    """

    own: frozenset[str]
    remembered: frozenset[str]
    depth: int = 0
    holding: dict[str, set[str]] = field(default_factory=dict)
    always: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)
    returns_early: bool = False

    def visit(self, node: ast.AST) -> None:
        """Any node."""
        test = getattr(node, "test", None)
        deciding = _names(test or node) & self.own or _attributes(test or node) & self.remembered
        if isinstance(node, BRANCHES) and deciding:
            if test is not None:
                self.visit(test)
            self.depth += 1
            for child in ast.iter_child_nodes(node):
                if child is not test:
                    self.visit(child)
            self.depth -= 1
        else:
            super().visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        """A return in a branch ends the ways through what follows."""
        self.returns_early |= self.depth > 0
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call of a layer, or of anything."""
        path = path_of(node.func)
        if path:
            (self.always if not self.depth else self.exposed).add(path)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        """A variable that is read."""
        if isinstance(node.ctx, ast.Load):
            held = self.holding.get(node.id, set())
            self.exposed |= held if self.depth else held & self.read
            self.read |= held

    def visit_Assign(self, node: ast.Assign) -> None:
        """Variables get the result of a layer, or something else."""
        self.visit(node.value)
        path = path_of(node.value.func) if isinstance(node.value, ast.Call) else ""
        for target in node.targets:
            if isinstance(target, ast.Name):
                before = self.holding.get(target.id, set()) if self.depth else set()
                self.holding[target.id] = before | ({path} if path else set())
                self.read -= {path}
            else:
                self.exposed |= {path}

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """``y += ...`` reads and writes ``y``."""
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.visit(ast.Name(node.target.id, ast.Load()))
            self.holding.pop(node.target.id, None)
