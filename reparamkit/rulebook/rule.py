"""A rule is a value: a name, an equation, and for graph rules a pattern, a guard and a build."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx, nn

from ..errors import RuleError
from .pattern import Call, Match, ModuleOf, Pattern, Value, match, names

Build = Callable[[Match], nn.Module]
Guard = Callable[[Match], None]
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Rule:
    """A permission to merge.

    Built-in rules have no pattern: they name what the two laws may do, and `fuse` asks for them. A graph rule
    replaces what `pattern` matches by the module that `build` makes; `guard` may raise `NotFusable(reason)`.

    Attributes:
        name: lower case letters, digits and underscores.
        equation: what equals what.
        doc: sentences about it.
        pattern: what a graph rule replaces, made of `call` and `value`.
        build: gets the `Match`, returns the module to put in place.
        guard: gets the `Match`; raises `NotFusable` where the rule does not hold.

    Raises:
        RuleError: when it is declared, if it is malformed.
    """

    name: str
    equation: str
    doc: str = ""
    pattern: Pattern | None = None
    build: Build | None = None
    guard: Guard | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise RuleError(f"rule name {self.name!r}: use lower case letters, digits and underscores")
        if not isinstance(self.equation, str) or not self.equation.strip():
            raise RuleError(f"rule '{self.name}' needs an equation: what equals what")
        if (self.pattern is None) != (self.build is None):
            raise RuleError(f"rule '{self.name}' needs both a pattern and a build function, or neither")
        if self.pattern is not None:
            _check_pattern(self.name, self.pattern)
        for what, function in (("build", self.build), ("guard", self.guard)):
            if function is not None and not callable(function):
                raise RuleError(f"{what} of rule '{self.name}' must be a function, found {function!r}")

    def __str__(self) -> str:
        return f"{self.name}: {self.equation}"

    def find(self, node: fx.Node, module_of: ModuleOf) -> Match | None:
        """The match of the rule's pattern whose outermost call is `node`, or None."""
        return None if self.pattern is None else match(self.pattern, node, module_of)


def _check_pattern(name: str, pattern: Pattern) -> None:
    if not isinstance(pattern, Call):
        raise RuleError(f"the pattern of rule '{name}' must be a call(...), found {pattern!r}")
    values = {n.name for n in _values(pattern)}
    if not values:
        raise RuleError(f"the pattern of rule '{name}' has no value(...): the merged module would have no input")
    twice = [n for n, count in Counter(names(pattern)).items() if count > 1 and n not in values]
    if twice:
        raise RuleError(f"the pattern of rule '{name}' uses the name '{twice[0]}' for two calls")


def _values(pattern: Pattern) -> Iterator[Value]:
    if isinstance(pattern, Value):
        yield pattern
    else:
        for each in pattern.inputs:
            yield from _values(each)


class Registry:
    """An ordered set of rules with unique names. User rules are tried before built-in ones."""

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self._rules: dict[str, Rule] = {}
        for rule in rules:
            self.add(rule)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules.values())

    def __len__(self) -> int:
        return len(self._rules)

    def __contains__(self, name: object) -> bool:
        return name in self._rules

    def __getitem__(self, name: str) -> Rule:
        if name not in self._rules:
            raise RuleError(f"there is no rule '{name}'; known: {', '.join(self._rules)}")
        return self._rules[name]

    def __repr__(self) -> str:
        return "\n".join(str(rule) for rule in self)

    def add(self, rule: Rule) -> Rule:
        """Register a rule for every later `fuse`. Raises `RuleError` if it is no rule or its name is taken."""
        if not isinstance(rule, Rule):
            raise RuleError(f"expected a Rule, found {type(rule).__name__}; make one with @reparamkit.rule(...)")
        if rule.name in self._rules:
            raise RuleError(f"there is already a rule '{rule.name}'; choose another name or remove('{rule.name}')")
        self._rules[rule.name] = rule
        return rule

    def remove(self, name: str) -> None:
        """Forget a rule, by name. Raises `RuleError` if there is none of that name."""
        del self._rules[self[name].name]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Undo, at the end, what is registered inside; for tests."""
        before = dict(self._rules)
        try:
            yield
        finally:
            self._rules = before


def make_rule(
    *, name: str, equation: str, pattern: Pattern, guard: Guard | None, doc: str | None
) -> Callable[[Build], Rule]:
    """Decorator: the build function of a graph rule becomes a `Rule` (not registered yet)."""

    def declare(build: Build) -> Rule:
        return Rule(name, equation, doc if doc is not None else (build.__doc__ or ""), pattern, build, guard)

    return declare
