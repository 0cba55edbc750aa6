"""Whether code may do something with a value, on a way that no trace has gone: return it, keep it, compute with it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from .flow import Branching, Given, locals_of, names_under, remembered_in
from .parse import method_source, once, path_of

ASKED = frozenset({"shape", "ndim", "dtype", "device", "size", "dim", "is_cuda", "requires_grad"})
"""What code may ask of a tensor, whatever its numbers are."""

SIZED = frozenset({"reshape", "view", "flatten", "unflatten"})
"""Methods that get sizes, which may be arguments, and always give their tensor."""


def exposes(
    code: Callable[..., Any], names: Set[str], makers: Set[str], readers: Set[str], fixed: Set[str] = frozenset()
) -> bool:
    """Whether the code of a method may use a value in a branch by its arguments, other than to call modules with it.

    names: the arguments that are the value. makers: paths of the modules that give it. readers: of those that may be
    called with it. fixed: arguments that are never others.
    """
    tree = _tree(code)
    if tree is None:
        return True
    own = Given.of(tree, fixed=fixed).names if fixed else locals_of(tree)
    given = Given.of(tree, skipped=1, fixed=fixed)
    following = _Exposure(own, remembered_in(tree), makers, readers, set(names), given)
    following.visit(tree)
    return following.found


_tree = once(method_source)


@once
def paths_called(code: Callable[..., Any]) -> frozenset[str]:
    """The paths below its module that the code of a method calls."""
    nodes = ast.walk(_tree(code) or ast.Module([], []))
    return frozenset(path_of(node.func) for node in nodes if isinstance(node, ast.Call)) - {""}


def leaves_out(code: Callable[..., Any], path: str, handed_on: bool) -> bool:
    """Whether the code of a method calls the module at a path at one place, and names all that it gives. handed_on: or
    hands on further arguments that it was given itself.
    """
    calls = [n for n in ast.walk(_tree(code) or ast.Module([], [])) if isinstance(n, ast.Call)]
    found = [call for call in calls if path_of(call.func) == path]
    spread = {isinstance(part, ast.Starred) for call in found for part in call.args}
    more = any(each.arg is None for call in found for each in call.keywords)
    return len(found) == 1 and True not in spread and (handed_on or not more)


@dataclass
class _Exposure(Branching):
    """Follows the statements in order. holding: the variables that may be the value now. chosen: those that may be it,
    or another, as a branch went. depth: in how many branches.
    """

    makers: Set[str]
    readers: Set[str]
    holding: set[str]
    given: Given
    chosen: set[str] = field(default_factory=set)
    depth: int = 0
    found: bool = False

    def visit(self, node: ast.AST) -> None:
        """Any node."""
        if isinstance(node, (ast.If, ast.Try, ast.Match)):
            self._branch(node)
        elif isinstance(node, (ast.For, ast.While)):
            self._loop(node)
        elif self.decides(node):
            self._several(ast.iter_child_nodes(node), deciding=True)
        else:
            super().visit(node)

    def _branch(self, node: ast.If | ast.Try | ast.Match) -> None:
        """Each part begins with what there was before."""
        deciding = self.decides(node) or not isinstance(node, ast.If)
        parts = [part for part in ast.iter_child_nodes(node) if not isinstance(part, (ast.stmt, ast.match_case))]
        for part in parts:
            self.visit(part)
        # One of the two ways of an ``if`` is taken; of other branches there may be none.
        before, after = set(self.holding), set() if isinstance(node, ast.If) else set(self.holding)
        for name in ("body", "orelse", "cases", "finalbody"):
            if name in node._fields:
                self.holding = set(before)
                self._several(getattr(node, name), deciding)
                after |= self.holding
        self.holding = after

    def _loop(self, node: ast.For | ast.While) -> None:
        """What there is at its end may be there when it begins again."""
        self.visit(node.iter if isinstance(node, ast.For) else node.test)
        for _ in range(2):
            before = set(self.holding)
            self._several((*node.body, *node.orelse), self.decides(node) or self.given.repeats(node))
            self.holding |= before

    def _several(self, nodes: Iterable[ast.AST], deciding: bool) -> None:
        self.depth += deciding
        for each in nodes:
            self.visit(each)
        self.depth -= deciding

    # --- who has the value ---------------------------------------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> None:
        """Variables get the value, or something else."""
        held, chosen = self._holds(node.value), self._is_chosen(node.value)
        if not isinstance(node.value, (ast.Name, ast.IfExp)) or not held:
            self.visit(node.value)
        for target in node.targets:
            names = names_under(target)
            self.holding = self.holding | names if held else self.holding - names
            self.chosen = self.chosen | names if chosen else self.chosen - names
            self.found |= held and self.depth > 0 and not isinstance(target, (ast.Name, ast.Tuple))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """``y += ...`` is another value."""
        self.found |= self.depth > 0 and self._holds(node.target)
        self.generic_visit(node)

    def _holds(self, node: ast.AST) -> bool:
        """Whether an expression may be the value, or a view of it."""
        if isinstance(node, ast.IfExp):
            return self._holds(node.body) or self._holds(node.orelse)
        if isinstance(node, ast.Name):
            return node.id in self.holding
        if isinstance(node, ast.Call):
            return path_of(node.func) in self.makers or self._holds(node.func)
        if isinstance(node, ast.Attribute):
            return node.attr not in ASKED and self._holds(node.value)
        return isinstance(node, ast.Subscript) and self._holds(node.value)

    def _is_chosen(self, node: ast.AST) -> bool:
        """Whether another way through the code makes an expression something else, or the value."""
        names = isinstance(node, ast.Name) and node.id in self.chosen
        return names or (self._holds(node) and (self.depth > 0 or (isinstance(node, ast.IfExp) and self.decides(node))))

    def _is_surely(self, node: ast.AST) -> bool:
        """Whether an expression is the value, or a view of it, on every way through the code."""
        if isinstance(node, ast.Name):
            return node.id in self.holding - self.chosen
        if isinstance(node, ast.Call):
            if path_of(node.func) in self.makers or self._is_surely(node.func):
                return True
            others = [part for part in node.args if not self._is_surely(part)]
            chosen = any(names_under(part) & self.given.names for part in (*others, *node.keywords))
            return len(others) < len(node.args) and not chosen and not path_of(node.func)
        return isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)) and self._is_surely(node.value)

    # --- what is done with it ------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        """A variable that is read."""
        held = isinstance(node.ctx, ast.Load) and node.id in self.holding
        self.found |= held and (self.depth > 0 or node.id in self.chosen)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A question does not depend on numbers."""
        if node.attr not in ASKED:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Whether it is None is a question."""
        if not all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call of a module that reads the value."""
        path = path_of(node.func)
        reads = any(f"{reader}.".startswith(f"{path}.") for reader in self.readers) if path else False
        made = path in self.makers and self.depth > 0
        arguments = [part.value if isinstance(part, ast.keyword) else part for part in (*node.args, *node.keywords)]
        self.found |= made or (reads and not any(map(self._is_surely, arguments)))
        # A function may give one or the other of its arguments.
        chosen = not path and any(names_under(part) & self.given.names for part in arguments)
        chosen &= not (isinstance(node.func, ast.Attribute) and node.func.attr in SIZED)
        self.depth += chosen
        for part in ast.iter_child_nodes(node):
            given = part.value if isinstance(part, ast.keyword) else part
            if not (reads and isinstance(given, ast.Name)):
                self.visit(given)
        self.depth -= chosen
