"""Patterns on a captured graph: ``call(nn.ReLU, call(nn.ReLU, value("x")))``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..errors import NotFusable, RuleError


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
    """A call of `target` (or one of a tuple of targets) whose tensor arguments match `inputs`.

    target: a module class, a function, or the name of a tensor method. name: to find it in the match.
    Raises `RuleError` if the pattern is malformed.
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
    """What a pattern found.

    values: per name the node of an input. calls: per name the node of a call. members: all matched calls.
    """

    module_of: ModuleOf
    values: dict[str, fx.Node] = field(default_factory=dict)
    calls: dict[str, fx.Node] = field(default_factory=dict)
    members: list[fx.Node] = field(default_factory=list)

    def module(self, name: str) -> nn.Module:
        """The module that the call of this name calls."""
        node = self.calls[name]
        if node.op != "call_module":
            raise NotFusable(f"'{name}' is not a module here")
        return self.module_of(node)

    def arguments(self, name: str) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of the call of this name; tensors that are values are graph nodes."""
        return tuple(self.calls[name].args), self.calls[name].kwargs


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
