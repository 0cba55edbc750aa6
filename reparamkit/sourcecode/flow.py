"""On which ways through its code a method calls which layers.

A trace shows one way. Where the code has others (a flag, an optional argument), what was seen of a value is not all.
"""

from __future__ import annotations

import ast
import dis
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from .parse import method_source, once, path_of, source

Around = tuple[int | str, ...]
"""The branches, loops and functions around a call, by their places; and what of its callee the arguments choose."""
Way = tuple[Around, int]
"""What is around a call, and how many ways out of the code come before it."""
BRANCHES = (ast.If, ast.IfExp, ast.While, ast.BoolOp, ast.Try, ast.Match)
LOOPS = (ast.For, ast.AsyncFor, ast.comprehension)
KINDS = frozenset({"isinstance", "type", "hasattr", "callable"})
"""Builtins that tell what a value is."""
ANSWERED = frozenset({"len", "int", "float", "bool", "min", "max", "abs", "any", "all", "sum", "range"})
"""Builtins that ask a value itself."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@once
def catches(function: Callable[..., Any] | CodeType) -> bool:
    """Whether a function, or other code, goes on after some errors."""
    tree = method_source(function)
    return tree is not None and any(isinstance(node, ast.ExceptHandler) for node in ast.walk(tree))


@dataclass(frozen=True)
class Tested:
    """The variables that code goes by as they are, not by what they have or are equal to. given: which are compared
    with None; kinds: whatever else is asked of which, as their type.
    """

    given: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.given or self.kinds)


@once
def tested(function: Callable[..., Any] | CodeType) -> Tested:
    """By which of its variables a method, or any other code, goes; by all that it has, if there is no source."""
    code = function if isinstance(function, CodeType) else getattr(inspect.unwrap(function), "__code__", None)
    tree = source(code) if code is function else method_source(function)
    if tree is not None:
        return _tested(tree)
    if not isinstance(code, CodeType) or not any("JUMP" in step.opname for step in dis.get_instructions(code)):
        return Tested()
    return Tested(kinds=frozenset(code.co_varnames))


def _tested(tree: ast.AST) -> Tested:
    local, given, kinds = locals_of(tree), set[str](), set[str]()
    for test in _tests(tree):
        compared = (side for each in ast.walk(test) if _is_with_none(each) for side in ast.iter_child_nodes(each))
        none = {side.id for side in compared if isinstance(side, ast.Name)}
        given |= local & none
        kinds |= local & _themselves(test) - none
    subjects = (node.subject for node in ast.walk(tree) if isinstance(node, ast.Match))
    kinds.update(local.intersection(each.id for each in subjects if isinstance(each, ast.Name)))
    for names, value in assigned_in(tree):
        other = {value.id} & local if isinstance(value, ast.Name) else set[str]()
        given |= other if names & given else set()
        kinds |= other if names & kinds else set()
    return Tested(frozenset(given), frozenset(kinds))


def _tests(tree: ast.AST) -> Iterator[ast.AST]:
    """What code may decide by."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
            yield node.test
        elif isinstance(node, (ast.BoolOp, ast.Compare)):
            yield node
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            yield node


def _is_with_none(node: ast.AST) -> bool:
    """Whether it is a comparison with None: ``x is None``."""
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    identity = isinstance(node, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops)
    return identity and any(isinstance(side, ast.Constant) and side.value is None for side in sides)


def _themselves(test: ast.AST) -> set[str]:
    """The names in a test of which something is asked that no trace sees, as it sees ``x``, ``x.dim()``, ``x == 1``."""
    if isinstance(test, ast.Call):
        known = isinstance(test.func, ast.Name) and test.func.id in ANSWERED
        asked = set[str]() if known else {arg.id for arg in test.args if isinstance(arg, ast.Name)}
    elif isinstance(test, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot)) for op in test.ops):
        asked = {side.id for side in (test.left, *test.comparators) if isinstance(side, ast.Name)}
    else:
        asked = set()
    return asked.union(*map(_themselves, ast.iter_child_nodes(test)))


@once
def remembered(forward: Callable[..., Any] | CodeType) -> frozenset[str]:
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


def _following(tree: ast.AST, skipped: int, others: Set[str], fixed: Set[str]) -> frozenset[str]:
    """The arguments but for the first ones and some, and the variables that get something computed with them, or with
    others.
    """
    found = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg) and node.arg != "self"]
    known, size = {*found[skipped:], *others} - fixed, -1
    assigned = list(assigned_in(tree))
    while size < len(known):
        size = len(known)
        for targets, value in assigned:
            known |= targets if names_under(value) & known else set()
    return frozenset(known)


def assigned_in(tree: ast.AST) -> Iterator[tuple[set[str], ast.AST]]:
    """The variables that code gives values, with what each is computed of."""
    for node in ast.walk(tree):
        value = getattr(node, "iter" if isinstance(node, LOOPS) else "value", None)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr, *LOOPS)) and value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield set().union(*map(given_to, targets)), value


def given_to(target: ast.AST) -> set[str]:
    """The variables that get a value, or have it in them: of ``x[i] = y`` that is x."""
    keys = {id(part) for n in ast.walk(target) if isinstance(n, ast.Subscript) for part in ast.walk(n.slice)}
    return {part.id for part in ast.walk(target) if isinstance(part, ast.Name) and id(part) not in keys}


ALWAYS: Way = ((), 0)
"""Of what is called whatever the arguments are."""


def way_to(method: Callable[..., Any], place: str, module: object) -> Way | None:
    """The way on which the code of a method calls the module at a place, which may be inside of what it calls; None if
    that is not clear. module: whose method it is; where it calls what this has not, nothing goes on.
    """
    calls, certain = _calls(method)
    found = [called for called in calls if called and f"{place}.".startswith(f"{called}.")]
    ends = [] if catches(method) else [end for path, ends in certain.items() if is_absent(module, path) for end in ends]
    ways = {way for called in found for way in calls[called] if not any(_ends_in(way, end) for end in ends)}
    if len(found) != 1 or len(ways) != 1:
        return None
    ((around, exits),) = ways
    elements = place.removeprefix(found[0]).split(".")
    return (*around, *elements[1 : len(chosen(around)) + 1]), exits


def _ends_in(way: Way, end: Way) -> bool:
    """Whether what runs on a way is in a block that surely fails, with no way out of the code between them."""
    return way[0][: len(end[0])] == end[0] and way[1] == end[1]


def is_absent(module: object, path: str) -> bool:
    """Whether a module has nothing, or None, at a path, so that to call it is an error."""
    return bool(path) and getattr(module, path.partition(".")[0], None) is None


def chosen(around: Around) -> list[str]:
    """What of a callee the arguments choose."""
    return [each for each in around if isinstance(each, str)]


@once
def _calls(method: Callable[..., Any]) -> tuple[Mapping[str, Set[Way]], Mapping[str, Set[Way]]]:
    """Per path that the code of a method calls the ways on which it does, and those of them on which it surely does,
    once it is in the branch; nothing if that is not known.
    """
    tree = method_source(method)
    if tree is None:
        return {}, {}
    found = _Ways(locals_of(tree), remembered_in(tree), Given.of(tree), {})
    found.visit(tree)
    return found.calls, found.certain


@dataclass(frozen=True)
class Given:
    """What the arguments of a method choose. names: variables that follow from them. vague: names and attributes that
    are given several values.
    """

    names: frozenset[str]
    vague: frozenset[str]

    @classmethod
    def of(cls, tree: ast.AST, skipped: int = 0, fixed: Set[str] = frozenset()) -> Given:
        """In the code of a method. skipped: how many first arguments choose nothing. fixed: others that do not."""
        left = (n.target for n in ast.walk(tree) if isinstance(n, LOOPS) and _may_leave(n))
        names = _following(tree, skipped, set().union(*map(names_under, left)), fixed)
        looped = {t for node in ast.walk(tree) if isinstance(node, LOOPS) for t in names_under(node.target)} - names
        counts = Counter(name for targets, _ in assigned_in(tree) for name in targets)
        counts.update(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg))
        several = {name for name, count in counts.items() if count > 1} - looped
        return cls(names, frozenset(several | _attribute_names(tree, ast.Store)))

    def repeats(self, node: ast.AST) -> bool:
        """Whether the code in a node is run as often as they say."""
        if isinstance(node, ast.comprehension):
            return False
        loops = getattr(node, "generators", [node])
        tests = [test for loop in loops for test in getattr(loop, "ifs", ())]
        iterated = [loop.iter for loop in loops if isinstance(loop, LOOPS)]
        left = isinstance(node, LOOPS) and _may_leave(node)
        return left or any(names_under(n) & self.names for n in (*iterated, *tests))

    def chosen(self, callee: ast.AST) -> Around | None:
        """The keys in what is called that they choose; None if such a key cannot be told from others."""
        if isinstance(callee, ast.Name):
            return (callee.id,) if callee.id in self.names else ()
        keys = list(keys_of(callee))
        found = [key for key in keys if names_under(key) & self.names]
        told = {name for key in keys for name in names_under(key) | _attribute_names(key)}
        return None if told & self.vague else tuple(map(ast.unparse, found))


def _attribute_names(node: ast.AST, use: type[ast.expr_context] = ast.expr_context) -> set[str]:
    """The names of the attributes that code uses in this way."""
    return {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, use)}


def _may_leave(loop: ast.AST) -> bool:
    """Whether a loop may end, or skip something, before it is through."""
    return any(isinstance(node, (ast.Return, ast.Break, ast.Continue)) for node in ast.walk(loop))


def keys_of(node: ast.AST) -> Iterator[ast.expr]:
    """The keys of the elements that an expression takes, one of the other."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Subscript):
            yield node.slice
        node = node.value


def ways(tree: ast.AST, variables: Mapping[str, Iterable[str]]) -> dict[str, frozenset[Way]]:
    """Of the code of a method, per path that it calls, in which branches it does; "" stands for what it computes
    itself, if it has branches. Branches by what follows from the first argument alone, the data, are none. variables:
    the paths of the modules that local names may be.
    """
    given = Given.of(tree, skipped=1)
    found = _Ways(given.names, remembered_in(tree), given, variables)
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
    """Notes what is called where. inside: what is around. exits: how many ways out came before. certain: the calls that
    are statements of a branch.
    """

    given: Given
    variables: Mapping[str, Iterable[str]]
    inside: Around | None = None
    exits: int = 0
    calls: dict[str, set[Way]] = field(default_factory=dict)
    certain: dict[str, set[Way]] = field(default_factory=dict)

    def visit(self, node: ast.AST) -> None:
        """Any node; what an ``if`` does otherwise is another branch than what it does."""
        around = self.inside
        if around is None:
            # The method itself is no function inside.
            self.inside = () if isinstance(node, FUNCTIONS) else None
            super().visit(node)
        elif self.decides(node):
            self._note("", around)
            self._branches(node, around)
        elif isinstance(node, FUNCTIONS) or self.given.repeats(node):
            self._note("", around)
            self.inside = (*around, *place_in(node))
            super().visit(node)
        else:
            super().visit(node)
        self.inside = around

    def _branches(self, node: ast.AST, around: Around) -> None:
        for number, (name, part) in enumerate(ast.iter_fields(node)):
            self.inside = around if name == "test" else (*around, *place_in(node), number)
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, ast.AST):
                    self.visit(each)
                    self.certain.setdefault(called_by(each), set()).add((self.inside, self.exits))

    def visit_Call(self, node: ast.Call) -> None:
        """A call of a module, or of a method."""
        self.generic_visit(node)
        names = self.variables.get(node.func.id, ()) if isinstance(node.func, ast.Name) else [path_of(node.func)]
        chosen = self.given.chosen(node.func)
        around = (*(self.inside or ()), *(place_in(node) if chosen is None else chosen))
        for name in filter(None, names):
            self._note(name, around)
            if chosen != ():
                self._note("", around)

    def _note(self, name: str, around: Around) -> None:
        self.calls.setdefault(name, set()).add((around, self.exits))

    def _leave(self, node: ast.AST) -> None:
        self.generic_visit(node)
        self.exits += bool(self.inside)

    visit_Return = visit_Break = visit_Continue = _leave


def called_by(statement: ast.AST) -> str:
    """The path of what a statement calls, as in ``y = self.conv(x)``; "" if it is no such statement."""
    value = getattr(statement, "value", None)
    return path_of(value.func) if isinstance(value, ast.Call) and isinstance(statement, ast.stmt) else ""


def place_in(node: Any) -> tuple[int, int]:
    """Of a statement or expression in the code."""
    return node.lineno, node.col_offset
