"""Whom the code of a method hands the results of the modules on to that it calls."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from .flow import locals_of, names_under
from .parse import method_source, once, path_of

ELSEWHERE = ""
"""What stands for all but a call of a module."""
EACH, LAST = ".*", ".-1"
"""Endings of the path of a row of modules whose elements a loop calls: any of them, and the last, after the loop."""
STRAIGHT = (ast.FunctionDef, ast.With, ast.Module)
NOTHING = frozenset[str]()
LOOPS = (ast.For, ast.AsyncFor, ast.While)
Readers = dict[str, frozenset[str]]


@once
def readers_of_results(method: Callable[..., Any]) -> Readers:
    """Per path of a module that a method calls the paths of those that are called with the result itself, on any way
    through it; `ELSEWHERE` is among them if anything else is done with it.
    """
    tree = method_source(method)
    if tree is None:
        return {}
    handing = _Handing(locals_of(tree))
    handing.follow(tree)
    return {path: frozenset(readers) for path, readers in handing.found.items()}


@dataclass
class _Handing:
    """Follows the statements in order. A branch on attributes of the module alone is none.

    own: local names. depth: in how many statements that may be left halfway. rows: per variable the row of modules
    that it is, or that the loop goes through whose variable it is. holding: per variable the modules whose result it
    may have.
    """

    own: frozenset[str]
    depth: int = 0
    rows: dict[str, str] = field(default_factory=dict)
    holding: dict[str, frozenset[str]] = field(default_factory=dict)
    found: dict[str, set[str]] = field(default_factory=dict)

    def follow(self, node: ast.AST) -> None:
        """A statement, with those inside it."""
        assigned = _assigned(node)
        if assigned:
            for name, value in assigned:
                self._assign(name, value)
            return
        inside = [each for each in ast.iter_child_nodes(node) if _is_inside(each)]
        for each in ast.iter_child_nodes(node):
            if not _is_inside(each):
                self._read(each, ELSEWHERE)
        if isinstance(node, ast.If):
            self._branch(node)
        elif isinstance(node, LOOPS):
            self._loop(node, inside)
        else:
            self._several(inside, certain=isinstance(node, STRAIGHT))

    def _several(self, statements: Iterable[ast.AST], certain: bool = True) -> None:
        self.depth += not certain
        for each in statements:
            self.follow(each)
        self.depth -= not certain

    def _branch(self, node: ast.If) -> None:
        before = dict(self.holding)
        self._several(node.body)
        if node.orelse or self._decides(node):
            after, self.holding = self.holding, before
            self._several(node.orelse)
            self._join(after)

    def _loop(self, node: ast.AST, inside: list[ast.AST]) -> None:
        """What is held at its end is there when it begins again. Behind a row there is the result of the last element;
        another loop may not run at all.
        """
        before, rows = dict(self.holding), self._rows(node)
        self.rows |= rows
        self._several(inside)
        self._join(before)
        self._several(inside)
        if not rows:
            self._join(before)
        ends = {f"{row}{EACH}": f"{row}{LAST}" for row in rows.values()}
        self.holding = {name: frozenset(ends.get(p, p) for p in paths) for name, paths in self.holding.items()}

    def _join(self, other: Mapping[str, frozenset[str]]) -> None:
        """Another way may have come here, with these results."""
        for name, held in other.items():
            self.holding[name] = held | self.holding.get(name, NOTHING)

    def _rows(self, loop: ast.AST) -> dict[str, str]:
        """As in ``for k, layer in enumerate(self.layers)``."""
        if not isinstance(loop, ast.For):
            return {}
        parts = ast.walk(loop.iter)
        found = [path_of(part) or (self.rows.get(part.id) if isinstance(part, ast.Name) else "") for part in parts]
        # As in self.layers.values(): the longest begins with the others.
        row = min(filter(None, found), key=len, default="")
        names = [part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)] if row else []
        return dict.fromkeys(names, row)

    def _assign(self, name: str, value: ast.expr) -> None:
        held = self._held(value)
        self._read(value, None)
        if path := path_of(value):
            self.rows[name] = path
        self.holding[name] = held | (self.holding.get(name, NOTHING) if self.depth else NOTHING)

    def _decides(self, branch: ast.If | ast.IfExp) -> bool:
        return bool(names_under(branch.test) & self.own)

    def _ways(self, choice: ast.IfExp) -> list[ast.expr]:
        """What may be chosen; a call of a module that is there, rather than nothing."""
        both = [choice.body, choice.orelse]
        calls = [each for each in both if self._called(each)]
        return calls if len(calls) == 1 and not self._decides(choice) else both

    def _held(self, value: ast.expr) -> frozenset[str]:
        if isinstance(value, ast.IfExp):
            return NOTHING.union(*map(self._held, self._ways(value)))
        if isinstance(value, ast.Name):
            return self.holding.get(value.id, NOTHING)
        return frozenset({self._called(value)} - {ELSEWHERE})

    def _read(self, node: ast.AST, reader: str | None) -> None:
        """reader: who gets the value; None if a variable does."""
        path = self._called(node)
        if isinstance(node, ast.IfExp):
            self._read(node.test, ELSEWHERE)
            for way in self._ways(node):
                self._read(way, reader)
        elif isinstance(node, ast.Name):
            self._note(self.holding.get(node.id, NOTHING), reader)
        else:
            self._note({path} - {ELSEWHERE}, reader)
            for child in _arguments(node) if path else ast.iter_child_nodes(node):
                self._read(child, path)

    def _called(self, node: ast.AST) -> str:
        if not isinstance(node, ast.Call):
            return ELSEWHERE
        row = self.rows.get(node.func.id, "") if isinstance(node.func, ast.Name) else ""
        return f"{row}{EACH}" if row else path_of(node.func)

    def _note(self, made: Set[str], reader: str | None) -> None:
        for path in made:
            self.found.setdefault(path, set()).update(() if reader is None else {reader})


def _is_inside(node: ast.AST) -> bool:
    return isinstance(node, (ast.stmt, ast.ExceptHandler, ast.match_case))


def _assigned(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """The variables that a statement gives values to, if that is all it does."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        pairs = [(node.target, node.value)]
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        pairs = _pairs(node.targets[0], node.value)
    named = [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
    return named if len(named) == len(pairs) else []


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _arguments(call: Any) -> Iterator[ast.AST]:
    yield from call.args
    yield from (keyword.value for keyword in call.keywords)


def hands_on_otherwise(readers: Readers, place: str, given: Set[str], lasts: Mapping[str, str]) -> bool:
    """Whether a method does something else with what the module at a place gives than to call those at others with it;
    "" among the `given` is anything else. readers: of the method. lasts: per row of modules the name of its last.
    """
    return any(
        _covers(call, place)
        and not all(_as_one(call, place, each) for each in given)
        and _takes_else(takers - ({call} if _is_last(call, place, lasts) else NOTHING), given)
        for call, takers in readers.items()
    )


def _takes_else(takers: Set[str], given: Set[str]) -> bool:
    return any(not (taker in given or any(_covers(taker, each) for each in given)) for taker in takers)


def _covers(call: str, place: str) -> bool:
    """Whether a call runs the module at a place."""
    return bool(call) and f"{place}.".startswith(f"{call.removesuffix(EACH).removesuffix(LAST)}.")


def _as_one(call: str, place: str, other: str) -> bool:
    """Whether what hands a result on from one place to the other is inside the call."""
    return _covers(call, other) and (not call.endswith(EACH) or _element(call, place) == _element(call, other))


def _is_last(call: str, place: str, lasts: Mapping[str, str]) -> bool:
    """Whether no other element of a row follows the one at a place."""
    return call.endswith(EACH) and lasts.get(call.removesuffix(EACH)) == _element(call, place)


def _element(call: str, place: str) -> str:
    """The name in a row of the element that a place is in."""
    return place[len(call) - 1 :].partition(".")[0]
