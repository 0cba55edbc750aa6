"""What code does with the modules and tensors of a model, found by reading it: for code that no trace has seen.

The code is followed, on all its branches, with what each variable may stand for, into the methods and functions that
it calls. What is handed to code that cannot be read counts as used, with all that is beneath it.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FunctionType, MethodType

from torch import Tensor, nn

from .parse import forward_of, is_torchs, source
from .values import (
    OWN,
    TENSORS,
    Bound,
    Depths,
    Function,
    Group,
    Inner,
    Item,
    Names,
    Part,
    Super,
    Value,
    fingerprint,
    one,
    tensors_of,
    union,
)

DEEPEST, MOST, FEW = 30, 300, 6
"""How many calls inside each other are followed, how many in all, and how many of one function by its containers."""


def _definition(function: object) -> Function | None:
    """The code of a function, which may be a lambda in the middle of a statement."""
    found = source(function)
    nodes = [*ast.walk(found)] if found is not None else []
    defined = next((node for node in nodes if isinstance(node, ast.FunctionDef)), None)
    if getattr(function, "__name__", "") != "<lambda>":
        return defined
    # Where the file is no code as a whole, a page or a transcript, there are the lines of the statement.
    lambdas = [node for node in nodes if isinstance(node, ast.Lambda)] if defined is None else []
    return _lambda(function) or (lambdas[0] if len(lambdas) == 1 else None)


def _lambda(function: object) -> ast.Lambda | None:
    """The code of a lambda, by where it is in its file."""
    try:
        lines, _ = inspect.findsource(function)  # type: ignore[arg-type]
        tree = ast.parse("".join(lines))
    except (OSError, SyntaxError, TypeError):
        return None
    code: CodeType = function.__code__  # type: ignore[attr-defined]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno]
    if len(found) > 1:
        places = {(first, begin, last, end) for first, last, begin, end in code.co_positions()}
        found = [node for node in found if _place(node.body) in places and _place(node) not in places]
    return found[0] if len(found) == 1 else None


def _place(node: ast.expr) -> tuple[int | None, ...]:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


@dataclass(eq=False)
class Uses:
    """What code does, all that was followed together. called: modules that it calls as they are. read: modules and
    tensors that it uses in any other way, with the methods of torch by which it found them ("" for none). methods:
    that may run. asked: modules whose class is asked for, with the same. exact: those of them that have to be of just
    that class. lists: those that torch makes of tensors of a
    module, by the method. stored: what attributes may have got, by their name. changing: the names of attributes that
    are known to change. relied: those of attributes that were taken not to.
    """

    called: dict[nn.Module, None] = field(default_factory=dict)
    read: dict[Part, set[str]] = field(default_factory=dict)
    methods: set[tuple[nn.Module, str]] = field(default_factory=set)
    asked: dict[nn.Module, set[str]] = field(default_factory=dict)
    exact: dict[nn.Module, set[str]] = field(default_factory=dict)
    lists: dict[nn.Module, set[str]] = field(default_factory=dict)
    stored: dict[str, Value] = field(default_factory=dict)
    changing: frozenset[str] = frozenset()
    relied: set[str] = field(default_factory=set)
    depths: Depths = field(default_factory=Depths)
    _trees: dict[object, Function | None] = field(default_factory=dict)
    _results: dict[object, Value] = field(default_factory=dict)
    _made: dict[object, Group | Bound | Super | Inner] = field(default_factory=dict)
    _times: Counter[object] = field(default_factory=Counter)
    _used: Value = field(default_factory=dict)
    _alive: list[object] = field(default_factory=list)
    """What is known by its identity, which nothing else may get."""
    _owner: int = 0
    _depth: int = 0
    _runs: int = 0

    def follow(self, module: nn.Module) -> None:
        """The forward of a module."""
        for _ in range(2):
            stored, self._runs = self._stored(), 0
            self._times.clear()
            self._used.clear()
            self.run_of(Item(module), forward_of(module), [], {})
            if self._stored() == stored:
                return
            # What is stored in an attribute may be read by what ran before.
            self._results = {}

    def _stored(self) -> int:
        """How much attributes may have got."""
        return sum(map(len, self.stored.values()))

    def run_any(self, callee: object, args: list[Value], kwargs: Mapping[str, Value]) -> None:
        """A call of a function, a method, a partial, or an object that can be called; not of torch's objects."""
        called = inspect.getattr_static(type(callee), "__call__", None)
        if isinstance(callee, partial):
            named = {name: one(each) for name, each in callee.keywords.items()}
            self.run_any(callee.func, [*map(one, callee.args), *args], {**named, **kwargs})
        elif isinstance(callee, FunctionType):
            self.run(callee, args, kwargs)
        elif isinstance(callee, MethodType) and not is_torchs(callee):
            self.run_of(Item(callee.__self__), callee.__func__, args, kwargs)
        elif isinstance(called, FunctionType) and not is_torchs(called):
            self.run_of(Item(callee), called, args, kwargs)

    def run_of(self, owner: Item, function: object, args: list[Value], kwargs: Mapping[str, Value]) -> Value:
        """A call of a function as a method of an object. What functions that it calls make is told by the object."""
        around, self._owner = self._owner, id(owner.thing)
        self._alive.append(owner)
        result = self.run(function, [one(owner.thing, owner.listed), *args], kwargs)
        self._owner = around
        return result

    def run(self, function: object, args: list[Value], kwargs: Mapping[str, Value]) -> Value:
        """A call of a function; returns what it may return."""
        given = [("", value) for value in args] + sorted(kwargs.items(), key=lambda pair: pair[0])
        key = self._key(function, given)
        if key not in self._results:
            self._times[function] += 1
            self._alive.append((function, given))
            result = self._results[key] = {}
            tree = self._tree(function)
            inner = inspect.unwrap(function)  # type: ignore[arg-type]
            known = tree is not None and self._depth < DEEPEST and self._runs < MOST
            if not known or not isinstance(inner, FunctionType):
                self.use(union(value for _, value in given))
            else:
                self._depth, self._runs = self._depth + 1, self._runs + 1
                self.run_code(inner, tree, result, args, kwargs)  # type: ignore[arg-type]
                self._depth -= 1
        return self._results[key]

    def run_code(
        self, function: FunctionType, tree: Function, result: Value, args: list[Value], kwargs: Mapping[str, Value]
    ) -> None:
        """Follow the code of a function; `result` receives what it may return."""
        raise NotImplementedError

    def follow_inside(self, follow: Callable[[], None], given: Value) -> None:
        """A call of a function inside another, which counts as any call. given: what it gets."""
        if self._depth >= DEEPEST or self._runs >= MOST:
            self.use(given)
            return
        self._depth, self._runs = self._depth + 1, self._runs + 1
        follow()
        self._depth -= 1

    def _key(self, function: object, given: list[tuple[str, Value]]) -> object:
        """What tells a call from others: containers that the code makes, each time anew, tell it only a few times."""
        tell = fingerprint if self._times[function] < FEW else self._holdings
        return function, tuple((name, *tell(value)) for name, value in given)

    def _holdings(self, value: Value) -> Iterator[object]:
        """What tells a value from others that hold other parts of a model, or are another name."""
        told = (key for key, item in value.items() if isinstance(item.thing, (str, Names)))
        return iter([*sorted(self.depths.reached(value)), *told])

    def _tree(self, function: object) -> Function | None:
        if function not in self._trees:
            self._trees[function] = _definition(function)
        return self._trees[function]

    def same(self, made: Bound | Super) -> Value:
        """Such an object, the same one each time that it is asked for."""
        first = made.function if isinstance(made, Bound) else made.cls
        return one(self._made.setdefault((first if isinstance(first, str) else id(first), id(made.owner)), made))

    def group(self, place: ast.AST) -> Group:
        """What the code at a place makes, the same each time that it runs for the same object."""
        return self._made.setdefault((id(place), self._owner), Group())  # type: ignore[return-value]

    def inner(self, tree: Function) -> Inner:
        """A function inside another, the same for each call of the other for the same object."""
        return self._made.setdefault((id(tree), self._owner), Inner(tree))  # type: ignore[return-value]

    def list_of(self, module: nn.Module, name: str, parts: Value) -> Value:
        """A list that torch made, the same one each time."""
        if name in TENSORS | OWN:
            self.lists.setdefault(module, set()).add(name)
        return one(self._made.setdefault(("list", name, id(module)), Group(parts)))

    def note(self, part: Part, listed: str) -> None:
        """A module or tensor is used otherwise than by a call."""
        self.read.setdefault(part, set()).add(listed)

    def use(self, value: Value) -> None:
        """Hand values to code that cannot be read."""
        fresh = {key: item for key, item in value.items() if key not in self._used}
        for key, item in self.depths.reached(fresh).items():
            thing = item.thing
            if key in self._used:
                continue
            self._used[key] = item
            if isinstance(thing, nn.Module):
                for inner in thing.modules():
                    self.note(inner, item.listed)
                for tensor in tensors_of(thing):
                    self.note(tensor, item.listed)
            elif isinstance(thing, Tensor):
                self.note(thing, item.listed)
            elif isinstance(thing, Bound) and not is_torchs(thing.function):
                self.run_of(Item(thing.owner), thing.function, [], {})
