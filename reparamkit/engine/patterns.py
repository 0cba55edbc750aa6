"""Find where graph rules apply: the same soundness for every rule, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import fx, nn

from ..capture.captured import Captured
from ..errors import NotFusable, RuleError
from ..layers.price import Cost
from ..reasons import Kind, Reason
from .cuts import check_calls
from .scope import WATCHED, Scope, watched
from .site import Replacement, Site


class Found(Protocol):
    """A match: the inputs by name, and all matched calls."""

    values: dict[str, fx.Node]
    members: list[fx.Node]


class GraphRule(Protocol):
    """What the engine needs of a rule."""

    @property
    def name(self) -> str: ...

    @property
    def build(self) -> Callable[[Any], nn.Module] | None: ...

    @property
    def guard(self) -> Callable[[Any], None] | None: ...

    def find(self, node: fx.Node, module_of: Callable[[fx.Node], nn.Module]) -> Found | None:
        """The match whose outermost call is `node`."""


Refused = Callable[[fx.Node, Reason], None]


def next_site(
    captured: Captured, scope: Scope, rules: Iterable[GraphRule], seen: set[tuple[str, str]], no: Refused
) -> Site | None:
    """The first place, rules in order and nodes in program order, where a rule applies.

    A rule is not applied to a value it had a part in, or rules that undo each other would go on for ever.
    seen: (rule, node) pairs that were tried; receives the new ones. no: is told each refusal.
    """
    for rule in rules:
        for node in captured.graph.nodes:
            if (rule.name, node.name) in seen or rule.name in node.meta.get("history", ()):
                continue
            if (found := rule.find(node, captured.module)) is None:
                continue
            seen.add((rule.name, node.name))
            try:
                return _site(captured, scope, rule, node, found)
            except NotFusable as refused:
                no(node, refused.reason.within(f"rule '{rule.name}': "))
    return None


def _site(captured: Captured, scope: Scope, rule: GraphRule, node: fx.Node, found: Found) -> Site:
    members = frozenset(found.members)
    _check_members(captured, scope, node, members)
    _check_guard(rule, found)
    assert rule.build is not None
    module = _of_rule(rule, "build", rule.build, found)
    if not isinstance(module, nn.Module):
        raise RuleError(f"the build of rule '{rule.name}' returned {type(module).__name__}, not an nn.Module")
    replacement = Replacement(tuple(found.values.values()), module)
    return Site(node, members, (rule.name,), Cost(), Cost(), replacement=replacement)


def _check_guard(rule: GraphRule, found: Found) -> None:
    answer = None if rule.guard is None else _of_rule(rule, "guard", rule.guard, found)
    if answer is not None:
        raise RuleError(
            f"the guard of rule '{rule.name}' returned {answer!r:.50}: it refuses by raising NotFusable(reason), and"
            " returns nothing"
        )


def _of_rule(rule: GraphRule, what: str, function: Callable[[Any], Any], found: Found) -> Any:
    """What a function of a rule makes of a match."""
    try:
        return function(found)
    except (NotFusable, MemoryError):
        raise
    except Exception as error:
        raise RuleError(
            f"the {what} of rule '{rule.name}' fails ({type(error).__name__}: {error}): correct it, or pass"
            f" without=['{rule.name}']"
        ) from error


def _check_members(captured: Captured, scope: Scope, value: fx.Node, members: frozenset[fx.Node]) -> None:
    check_calls(captured, members)
    for node in members:
        reason = WATCHED if watched(captured, node) else scope.refusal(node)
        if reason is not None:
            raise NotFusable(reason)
        if node is not value and not set(node.users) <= members:
            raise NotFusable("a value inside the pattern is read elsewhere", Kind.SHARED)
        if node in captured.aliases.writers:
            raise NotFusable("it writes in place", Kind.IN_PLACE)
