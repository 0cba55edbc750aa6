"""Patterns on a captured graph: ``call(nn.ReLU, call(nn.ReLU, value("x")))``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..errors import NotFusable, RuleError
from ..reasons import Kind


@dataclass(frozen=True)
class Value:
    """Matches any value; the same name must be the same value everywhere."""

    name: str


@dataclass(frozen=True)
class Call:
    """Matches a call of one of `targets` (module classes, functions, or method names) on these inputs."""

    targets: tuple[object, ...]
    inputs: tuple[Call | Value, ...]
    name: str | None = None


Pattern = Call | Value
ModuleOf = Callable[[fx.Node], nn.Module]
"""The module that a call_module node calls."""


def value(name: str) -> Value:
    """Any value, known in the match by `name`; the merged module gets the values in order of appearance."""
    return Value(name)


def call(target: object, *inputs: Pattern, name: str | None = None) -> Call:
    """A call of `target` whose tensor arguments match `inputs`.

    Args:
        target: a module class, a function, or the name of a tensor method; or a tuple of these, any of which matches.
        inputs: one pattern per tensor argument, in their order; other arguments may be anything.
        name: by which `Match.module` and `Match.arguments` find the call.

    Raises:
        RuleError: the pattern is malformed.
    """
    targets = target if isinstance(target, tuple) else (target,)
    for each in targets:
        if not (callable(each) or isinstance(each, str)):
            raise RuleError(f"call({each!r}): expected a module class, a function or a method name")
    if not inputs or not all(isinstance(i, (Call, Value)) for i in inputs):
        raise RuleError("call(target, *inputs): each input must be a call(...) or value(...), at least one")
    return Call(targets, inputs, name)


def names(pattern: Pattern) -> Iterator[str]:
    """All names in a pattern, values and calls, in order of appearance."""
    if isinstance(pattern, Value):
        yield pattern.name
        return
    if pattern.name is not None:
        yield pattern.name
    for each in pattern.inputs:
        yield from names(each)


@dataclass
class Match:
    """What a pattern found in a graph.

    Attributes:
        values: the graph node of each `value`, by its name.
        calls: the graph node of each `call` that has a name.
        members: the nodes of all calls of the pattern.
    """

    module_of: ModuleOf
    values: dict[str, fx.Node] = field(default_factory=dict)
    calls: dict[str, fx.Node] = field(default_factory=dict)
    members: list[fx.Node] = field(default_factory=list)

    def module(self, name: str) -> nn.Module:
        """The module that the call of this name calls.

        Raises `NotFusable` if it is a call of a function or method, `RuleError` if the pattern has no such name.
        """
        node = self._call(name)
        if node.op != "call_module":
            raise NotFusable(f"'{name}' is not a module here", Kind.UNREAD)
        return self.module_of(node)

    def arguments(self, name: str) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The positional and keyword arguments of the call of this name, with graph nodes for tensors.

        Raises `RuleError` if the pattern has no such name.
        """
        node = self._call(name)
        return tuple(node.args), node.kwargs

    def _call(self, name: str) -> fx.Node:
        if name not in self.calls:
            known = ", ".join(self.calls) or "none"
            raise RuleError(f"the pattern has no call(..., name={name!r}); the names of its calls: {known}")
        return self.calls[name]


def match(pattern: Pattern, node: fx.Node, module_of: ModuleOf) -> Match | None:
    """The match of a pattern whose outermost call is `node`, or None."""
    found = Match(module_of)
    return found if isinstance(pattern, Call) and _matches(pattern, node, found) else None


def _matches(pattern: Pattern, node: Any, found: Match) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if isinstance(pattern, Value):
        return found.values.setdefault(pattern.name, node) is node
    inputs = node.all_input_nodes
    if not _calls(pattern, node, found.module_of) or len(inputs) != len(pattern.inputs):
        return False
    found.members.append(node)
    if pattern.name is not None:
        found.calls[pattern.name] = node
    return all(_matches(p, n, found) for p, n in zip(pattern.inputs, inputs, strict=True))


def _calls(pattern: Call, node: fx.Node, module_of: ModuleOf) -> bool:
    if node.op == "call_module":
        return type(module_of(node)) in pattern.targets
    return node.op in ("call_function", "call_method") and node.target in pattern.targets
