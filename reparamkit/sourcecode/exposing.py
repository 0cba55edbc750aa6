"""Whether code may do something with a value, on a way that no trace has gone: return it, keep it, compute with it."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .flow import FUNCTIONS, Branching, Given, called_by, is_absent, locals_of, names_under, remembered_in
from .lent import fills, lent_in, names_kept
from .parse import ASKING, method_source, once, path_of
from .passing import Held, Passing, attribute
from .settled import settled

ASKED = frozenset({"shape", "ndim", "dtype", "device", "size", "dim", "is_cuda", "requires_grad"})
"""What code may ask of a tensor, whatever its numbers are."""

EVERYTHING = frozenset({"locals", "vars", "eval", "exec"})
"""Functions that may read any variable."""
COUNTING = (ASKING - {"getattr"}) | {"len"}
"""Functions whose result has nothing of the numbers of a tensor."""
SIZED = frozenset({"reshape", "view", "flatten", "unflatten"})
"""Methods that get sizes, which may be arguments, and always give their tensor."""


def exposes(
    code: Callable[..., Any],
    module: nn.Module,
    names: Set[str],
    makers: Set[str],
    readers: Set[str],
    fixed: frozenset[str] = frozenset(),
) -> bool:
    """Whether the code of a method may use a value in a branch by its arguments, other than to call modules with it.

    module: whose method it is. names: the arguments that are the value. makers: paths of the modules that give it.
    readers: of those that may be called with it. fixed: arguments that are never others.
    """
    followed = _followed(code, Passing(module, makers, readers), names, fixed)
    return followed is None or followed.found or followed.handed


def shows(code: Callable[..., Any], module: nn.Module, names: Set[str], makers: Set[str], readers: Set[str]) -> bool:
    """Whether a method that anybody may call, with any arguments, may do so, or give the value to its caller. See
    `exposes`; that a branch has the value with all that reads it is nothing.
    """
    followed = _followed(code, Passing(module, makers, readers), names, runs=False)
    # A wrapper, which names none of the modules, is not the code that ran.
    if followed is None or not followed.seen:
        return True
    return followed.found or followed.handed or (followed.returned and bool(makers and readers))


def _followed(
    code: Callable[..., Any], parts: Passing, names: Set[str], fixed: frozenset[str] = frozenset(), runs: bool = True
) -> _Exposure | None:
    """What is found in the code of a method; None if it is not known."""
    tree = _tree(code)
    if tree is None:
        return None
    own, given, remembered, lent = _asked(code)(fixed)
    functions = frozenset(getattr(inspect.unwrap(code), "__globals__", ())) | set(dir(builtins))
    held = Held(frozenset(names))
    following = _Exposure(own, remembered, parts, given, functions, set(given.names), held, lent, runs)
    following.visit(tree)
    following.handed |= bool(following.put)
    return following


_tree = once(method_source)
_Asked = tuple[frozenset[str], Given, frozenset[str], frozenset[str]]


@once
def _asked(code: Callable[..., Any]) -> Callable[[frozenset[str]], _Asked]:
    """The names by which code may branch, what its arguments choose, the attributes that it changes, and the variables
    that its caller may have, if some arguments are never others.
    """
    tree = _tree(code) or ast.Module([], [])

    @functools.cache
    def answer(fixed: frozenset[str]) -> _Asked:
        own = Given.of(tree, fixed=fixed).names if fixed else locals_of(tree)
        return own, Given.of(tree, skipped=1, fixed=fixed), remembered_in(tree), lent_in(tree, fixed)

    return answer


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
    """Follows the statements in order. functions: names outside of the method. options: variables that the arguments
    choose. lent: those that may be what the caller has. runs: whether it counts that a branch
    makes the value. depth: in how many branches by the arguments.
    inside: in how many functions, that of the method included. found: it is. handed: the caller has it, in something of
    its own. returned: the caller gets it. seen: some of the modules are named at all.
    put: where the caller would find it, with the depth and who had it before.
    """

    parts: Passing
    given: Given
    functions: Set[str]
    options: set[str]
    held: Held
    lent: frozenset[str]
    runs: bool
    depth: int = 0
    found: bool = False
    handed: bool = False
    returned: bool = False
    seen: bool = False
    inside: int = 0
    put: dict[str, tuple[int, Held]] = field(default_factory=dict)

    def visit(self, node: ast.AST) -> None:
        """Any node."""
        if isinstance(node, (ast.If, ast.Try, ast.Match)):
            self._branch(node)
        elif isinstance(node, (ast.For, ast.While)):
            self._loop(node)
        elif isinstance(node, FUNCTIONS):
            self._function(node)
        elif self.decides(node) or self._picks(node) or self.given.repeats(node):
            self._several(ast.iter_child_nodes(node))
        else:
            super().visit(node)

    def _branch(self, node: ast.If | ast.Try | ast.Match) -> None:
        """Each part begins with what there was before."""
        deciding = self.decides(node) or not isinstance(node, ast.If)
        parts = [part for part in ast.iter_child_nodes(node) if not isinstance(part, (ast.stmt, ast.match_case))]
        for part in parts:
            self.visit(part)
        before, ends = self.held, list[Held]()
        for way in self._ways(node):
            # What a block was left in by an error is between the two.
            self.held = self.held.join(before, deciding) if isinstance(node, ast.Try) else before
            self._several(way, deciding)
            ends += [] if _leaves(way) else [self.held]
        # One of the two ways of an ``if`` is taken; of other branches there may be none.
        first, *others = [*ends, *([] if isinstance(node, ast.If) and ends else [before])]
        self.held = first
        for end in others:
            self.held = self.held.join(end, deciding)
        self._leave(node, deciding)

    def _ways(self, node: ast.If | ast.Try | ast.Match) -> list[list[Any]]:
        """The statements of each way through a branch that the module does not close."""
        ways = self._all_ways(node)
        return [way for way in ways if not any(is_absent(self.parts.module, called_by(each)) for each in way)] or ways

    def _all_ways(self, node: ast.If | ast.Try | ast.Match) -> list[list[Any]]:
        if isinstance(node, ast.Match):
            return [[*([case.guard] if case.guard else []), *case.body] for case in node.cases]
        if isinstance(node, ast.If):
            return self._open(node)
        return [node.body, node.orelse, *(each.body for each in node.handlers), node.finalbody]

    def _open(self, node: ast.If | ast.IfExp) -> list[Any]:
        taken = None if self.decides(node) else settled(node.test, self.parts.module)
        return [*([] if taken is False else [node.body]), *([] if taken else [node.orelse])]

    def _loop(self, node: ast.For | ast.While) -> None:
        """What there is at its end may be there when it begins again."""
        deciding = self.decides(node) or self.given.repeats(node)
        for _ in range(2):
            before = self.held
            if isinstance(node, ast.For):
                self._assign([node.target], node.iter)
            else:
                self.visit(node.test)
            self._several((*node.body, *node.orelse), deciding)
            self.held = self.held.join(before, deciding)
        self._leave(node, deciding)

    def _leave(self, node: ast.AST, deciding: bool) -> None:
        """Behind what may have ended the code: what follows is another way than that."""
        if deciding and any(isinstance(part, ast.Return) for part in ast.walk(node)):
            self.held = self.held.leave()

    def _function(self, node: ast.AST) -> None:
        """The method itself, or a function in it, that may be called or not."""
        around, self.inside = self.inside, self.inside + 1
        if isinstance(node, ast.FunctionDef) and around:
            holds = any(map(self._holds, node.body))
            self.held = self.held.assign(ast.Name(node.name), names_under(node), holds, chosen=False)
        self._several(ast.iter_child_nodes(node), deciding=around > 0)
        self.inside = around

    def _picks(self, node: ast.AST) -> bool:
        """Whether it is an element of something by a key that the arguments choose."""
        if not isinstance(node, ast.Subscript):
            return False
        sliced = any(isinstance(part, ast.Slice) for part in ast.walk(node.slice))
        return not sliced and not names_under(node.slice).isdisjoint(self.options)

    def _several(self, nodes: Iterable[ast.AST], deciding: bool = True) -> None:
        self.depth += deciding
        for each in nodes:
            self.visit(each)
        self.depth -= deciding

    # --- who has the value ---------------------------------------------------------------------------

    def visit_Assign(self, node: ast.Assign) -> None:
        """Variables get the value, or something else."""
        self._assign(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """With its type."""
        if node.value is not None:
            self._assign([node.target], node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """In an expression."""
        self._assign([node.target], node.value)

    def _assign(self, targets: Iterable[ast.expr], value: ast.expr) -> None:
        if not isinstance(value, (ast.Name, ast.IfExp)) or not self._holds(value):
            self.visit(value)
        # Behind what has got a name inside of it.
        held, chosen = self._holds(value), self._is_chosen(value)
        for target in targets:
            self._put(target, held)
            self.held = self.held.assign(target, names_under(value), held, chosen)
            self.found |= held and self.depth > 0 and not isinstance(target, (ast.Name, ast.Tuple))
            self.visit(target)
            self.options |= names_under(target) if self.depth and _is_plain(value) else set()

    def _put(self, target: ast.expr, held: bool) -> None:
        """What is put into something of the caller's is there until something else is put into the same place."""
        bound = {part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        self.handed |= any(not bound.isdisjoint(names_under(ast.parse(place))) for place in self.put)
        for place in filter(self._is_lent_place, ast.walk(target)):
            text = ast.unparse(place)
            if held:
                self.put.setdefault(text, (self.depth, self.held))
            elif text in self.put and self.depth <= self.put[text][0]:
                _, before = self.put.pop(text)
                self.held = self.held.forget(frozenset(names_kept(place)) - before.names)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """``y += ...`` is another value, and may have one more in it."""
        held, more = self._holds(node.target), self._holds(node.value)
        self.found |= self.depth > 0 and held
        self.handed |= more and self._is_lent(node.target)
        self.generic_visit(node)
        chosen = self._is_chosen(node.target)
        self.held = self.held.assign(node.target, names_under(node), held or more, chosen)

    def _holds(self, node: ast.AST) -> bool:
        """Whether an expression may have the value in it: it is computed from it, and not by a module that reads it; or
        has one of those modules in it, which may then be called by another name.
        """
        if isinstance(node, ast.Name):
            return node.id in self.held.names or node.id == "self"
        if isinstance(node, ast.IfExp):
            return any(map(self._holds, self._open(node)))
        if isinstance(node, ast.Call):
            return self._gives(node)
        if isinstance(node, ast.Attribute) and (path := path_of(node)):
            return self.parts.has(path) or attribute(path) in self.held.names
        if isinstance(node, ast.Attribute):
            return node.attr not in ASKED and self._holds(node.value)
        return any(map(self._holds, ast.iter_child_nodes(node)))

    def _gives(self, node: ast.Call) -> bool:
        """Whether a call may give the value: of a module that does, or of a function or method of it."""
        path = path_of(node.func)
        if self.parts.gives(path) or self.parts.lists(path):
            return True
        # What another module gives was no such value in the trace.
        if self.parts.reads(path) or self.parts.is_module(path) or _named(node) in COUNTING:
            return False
        callee = not path and self._holds(node.func)
        return callee or any(map(self._holds, self._arguments(node)))

    def _is_chosen(self, node: ast.AST) -> bool:
        """Whether another way through the code makes an expression something else, or the value."""
        if isinstance(node, ast.Name):
            return node.id in self.held.chosen
        return isinstance(node, ast.IfExp) and self._holds(node) and self.decides(node)

    def _is_surely(self, node: ast.AST) -> bool:
        """Whether an expression is the value, or a view of it, on every way through the code."""
        if isinstance(node, ast.Name):
            return node.id in self.held.names - self.held.chosen
        if isinstance(node, ast.Call):
            if self.parts.gives(path_of(node.func)) or self._is_surely(node.func):
                return True
            others = [part for part in node.args if not self._is_surely(part)]
            chosen = any(names_under(part) & self.given.names for part in (*others, *node.keywords))
            return len(others) < len(node.args) and not chosen and not path_of(node.func)
        return isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)) and self._is_surely(node.value)

    # --- what is done with it ------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> None:
        """A variable that is read."""
        if isinstance(node.ctx, ast.Load):
            self._read(node.id)

    def _read(self, name: str) -> None:
        held = name in self.held.names or name == "self"
        self.found |= name in self.held.chosen or (self.depth > 0 and held) or name in self.held.left & self.held.names

    def visit_Return(self, node: ast.Return) -> None:
        """The caller gets it."""
        self.generic_visit(node)
        self.handed |= bool(self.put)
        self.returned |= node.value is not None and self._holds(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """A question does not depend on numbers."""
        if path := path_of(node):
            self.seen |= self.parts.has(path)
            self._read(attribute(path))
            self.found |= self.depth > 0 and self.parts.has(path)
        elif node.attr not in ASKED:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A message computes nothing."""

    def visit_Compare(self, node: ast.Compare) -> None:
        """Whether it is None is a question."""
        if not all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """A call of a module that reads the value, or of anything."""
        path = path_of(node.func)
        arguments = self._arguments(node)
        self.seen |= self.parts.has(path)
        self.found |= _named(node) in EVERYTHING or (self.runs and self.depth > 0 and self._runs(path))
        if self.parts.reads(path):
            # Where there is one way only the module gets what it got in the trace.
            sure = any(map(self._is_surely, arguments)) if self.depth else not any(map(self._is_chosen, arguments))
            self.found |= not sure
            arguments = [part for part in arguments if not isinstance(part, ast.Name)]
        if _named(node) in COUNTING:
            arguments = [part for part in arguments if not isinstance(part, ast.Name)]
        # A function may give one or the other of its arguments.
        chosen = not self.parts.is_module(path) and any(names_under(part) & self.options for part in arguments)
        chosen &= not (isinstance(node.func, ast.Attribute) and node.func.attr in SIZED)
        chosen |= not path and (self._picks(node.func) or _named(node) in self.options)
        self._several([*([] if path else [node.func]), *arguments], chosen)
        holding = any(map(self._holds, arguments))
        # What a function inside is given is not followed.
        self.handed |= (holding or self.inside > 1) and self._is_lent(fills(node))
        if isinstance(node.func, ast.Attribute) and holding:
            # As in ``seen.append(y)``.
            self._fill(node.func.value)

    def _arguments(self, node: ast.Call) -> list[ast.expr]:
        """What a call gets. What a variable calls is taken to do with the module what it did in the trace."""
        known = _named(node) in self.functions
        values = [*node.args, *(each.value for each in node.keywords)]
        return [each for each in values if known or not _is_self(each)]

    def _runs(self, path: str) -> bool:
        """Whether a call of what is at a path gives the value, or runs a part of a module by which it goes."""
        return self.parts.gives(path) or self.parts.is_inside(path) or self.parts.lists(path)

    def _is_lent(self, container: ast.expr | None) -> bool:
        """Whether others may see what is put into a container, or is added to it."""
        return container is not None and not self.lent.isdisjoint(names_kept(container))

    def _is_lent_place(self, node: ast.AST) -> bool:
        return isinstance(node, (ast.Attribute, ast.Subscript)) and self._is_lent(node.value)

    def _fill(self, container: ast.expr) -> None:
        if isinstance(container, ast.Name) and container.id != "self":
            self.held = self.held.fill(container.id)


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _named(node: ast.Call) -> str:
    """The name of a function that is called by its name."""
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _leaves(way: Sequence[ast.AST]) -> bool:
    """Whether statements end by leaving the code."""
    return bool(way) and isinstance(way[-1], (ast.Return, ast.Raise))


def _is_plain(value: ast.expr) -> bool:
    """Whether an expression has but names and constants in it."""
    return not any(isinstance(part, (ast.Call, ast.Attribute, ast.Subscript)) for part in ast.walk(value))
