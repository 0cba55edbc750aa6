"""Which layers a forward calls on every way through it, and whose results it reads once only.

A trace shows one way. Where the code has others (a flag, an optional argument), what was seen of a value is not all.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .parse import method_source, once, path_of

Way = tuple[tuple[int, ...], int]
"""The branches that a call is in, and how many ways out of the code come before it."""
BRANCHES = (ast.If, ast.IfExp, ast.While, ast.BoolOp, ast.Try, ast.Match)


@once
def catches(forward: Callable[..., Any]) -> bool:
    """Whether a forward goes on after some errors."""
    tree = method_source(forward)
    return tree is not None and any(isinstance(node, ast.ExceptHandler) for node in ast.walk(tree))


@once
def remembered(forward: Callable[..., Any]) -> frozenset[str]:
    """The attributes that a forward changes, or an item of, and that its branches depend on."""
    tree = method_source(forward)
    return frozenset() if tree is None else remembered_in(tree)


def remembered_in(tree: ast.AST) -> frozenset[str]:
    """The attributes that code changes, or an item of, and that its branches depend on."""
    nodes = list(ast.walk(tree))
    tested = [_attributes(getattr(node, "test", node)) for node in nodes if isinstance(node, BRANCHES)]
    stored = (n for n in nodes if isinstance(n, (ast.Attribute, ast.Subscript)) and isinstance(n.ctx, ast.Store))
    changed = {path_of(n.value if isinstance(n, ast.Subscript) else n) for n in stored}
    return frozenset(changed & set().union(*tested) - {""})


@once
def names_in(forward: Callable[..., Any]) -> frozenset[str] | None:
    """The variables that a forward does anything with; None if its code is not known."""
    tree = method_source(forward)
    return None if tree is None else frozenset(names_under(tree))


def _attributes(node: ast.AST) -> set[str]:
    return {path_of(part) for part in ast.walk(node)}


def names_under(node: ast.AST) -> set[str]:
    """All names in some code."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def locals_of(tree: ast.AST) -> frozenset[str]:
    """Arguments but for self, and variables."""
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return frozenset((arguments | stored) - {"self"})


def _following(tree: ast.AST) -> frozenset[str]:
    """The arguments after the first, and the variables that get something computed with them."""
    _, *found = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg) and node.arg != "self"] or [""]
    known, size = set(found), -1
    while size < len(known):
        size = len(known)
        for node in ast.walk(tree):
            value = getattr(node, "iter" if isinstance(node, ast.For) else "value", None)
            if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr, ast.For)) and value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                known |= set().union(*map(names_under, targets)) if names_under(value) & known else set()
    return frozenset(known)


@once
def certain_calls(forward: Callable[..., Any]) -> dict[str, frozenset[str]]:
    """Of a forward the paths of the modules it calls whatever its branches are ("always": none if it may
    return early), and of those whose results it reads once, outside of branches ("once").
    """
    tree = method_source(forward)
    if tree is None:
        return {"always": frozenset(), "once": frozenset()}
    flow = _Flow(locals_of(tree), remembered_in(tree))
    flow.visit(tree)
    always = frozenset() if flow.returns_early else frozenset(flow.always)
    return {"always": always, "once": always - flow.exposed}


def ways(tree: ast.AST, variables: Mapping[str, Iterable[str]]) -> dict[str, frozenset[Way]]:
    """Of the code of a method, per path that it calls, in which branches it does; "" stands for what it computes
    itself, if it has branches. Branches by what follows from the first argument alone, the data, are none. variables:
    the paths of the modules that local names may be.
    """
    found = _Ways(_following(tree), remembered_in(tree), variables)
    found.visit(tree)
    return {path: frozenset(calls) for path, calls in found.calls.items()}


@dataclass
class Branching(ast.NodeVisitor):
    """Knows the branches of a method. One on attributes of the module alone is none: they were so in the trace.

    own: the local names. remembered: attributes that the method changes.
    """

    own: frozenset[str]
    remembered: frozenset[str]

    def decides(self, node: ast.AST) -> bool:
        """Whether the code has several ways here."""
        tested = getattr(node, "test", None) or node
        return isinstance(node, BRANCHES) and bool(
            names_under(tested) & self.own or _attributes(tested) & self.remembered
        )


@dataclass
class _Ways(Branching):
    """Notes what is called where. inside: the branches around. exits: how many ways out came before."""

    variables: Mapping[str, Iterable[str]]
    inside: tuple[int, ...] = ()
    exits: int = 0
    calls: dict[str, set[Way]] = field(default_factory=dict)

    def visit(self, node: ast.AST) -> None:
        """Any node; what an ``if`` does otherwise is another branch than what it does."""
        if not self.decides(node):
            super().visit(node)
            return
        around = self.inside
        self.calls.setdefault("", set()).add((around, self.exits))
        for number, (name, part) in enumerate(ast.iter_fields(node)):
            self.inside = around if name == "test" else (*around, node.lineno, node.col_offset, number)  # type: ignore[attr-defined]
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, ast.AST):
                    self.visit(each)
        self.inside = around

    def visit_Call(self, node: ast.Call) -> None:
        """A call of a module, or of a method."""
        self.generic_visit(node)
        names = self.variables.get(node.func.id, ()) if isinstance(node.func, ast.Name) else [path_of(node.func)]
        for name in filter(None, names):
            self.calls.setdefault(name, set()).add((self.inside, self.exits))

    def _leave(self, node: ast.AST) -> None:
        self.generic_visit(node)
        self.exits += bool(self.inside)

    visit_Return = visit_Break = visit_Continue = _leave


@dataclass
class _Flow(Branching):
    """Follows the statements in order.

    depth: in how many branches. holding: per variable the layers whose result it may have. read: the layers whose
    result was read from a variable. exposed: those whose result is read again, or in a branch.
    """

    depth: int = 0
    holding: dict[str, set[str]] = field(default_factory=dict)
    always: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    exposed: set[str] = field(default_factory=set)
    returns_early: bool = False

    def visit(self, node: ast.AST) -> None:
        """Any node."""
        if self.decides(node):
            test = getattr(node, "test", None)
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
