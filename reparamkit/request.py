"""What a call of `fuse` asks for, checked before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import nn

from .capture.arguments import Inputs
from .capture.captured import Captured
from .engine.naming import matches
from .engine.scope import Scope
from .errors import InvalidInputError
from .inputs import Example, check_no_global_hooks, checked_inputs, checked_model
from .layers.price import OBJECTIVES
from .reasons import Reason
from .rulebook.builtin import RULES
from .rulebook.rule import Registry, Rule


@dataclass(frozen=True)
class Request:
    """The options of one `fuse`; see there. unwritable: per path of a module whose method turned out not to be writable
    with all merges in it, why.
    """

    example: Example | None
    rules: tuple[Rule, ...]
    only: tuple[str, ...] | None
    skip: tuple[str, ...]
    objective: str
    verify: bool
    inplace: bool
    as_graph: bool
    min_coverage: float
    unwritable: Mapping[str, Reason] = field(default_factory=dict)

    @property
    def inputs(self) -> Inputs | None:
        """The example inputs, if there are any."""
        return None if self.example is None else self.example.inputs

    @property
    def measured(self) -> bool:
        """Whether the device has the last word on a merge."""
        return self.objective == "measured"

    def scope(self, captured: Captured) -> Scope:
        """What may be merged in this model."""
        calls = {} if self.example is None else self.example.calls
        permitted = frozenset(rule.name for rule in self.rules)
        return Scope(captured, permitted, self.only, self.skip, self.unwritable, calls)


def requested(
    model: Any,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None,
    *,
    rules: Iterable[Rule | str] | None,
    extra_rules: Iterable[Rule],
    without: Iterable[Rule | str],
    only: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
    objective: str,
    verify: bool,
    inplace: bool,
    as_graph: bool,
    min_coverage: float,
) -> Request:
    """The options of a call of `fuse`, checked, and its inputs tried. Raises `InvalidInputError` and `RuleError`."""
    if not (isinstance(min_coverage, (int, float)) and 0 <= min_coverage <= 1):
        raise InvalidInputError(f"min_coverage={min_coverage!r}: give a share from 0 to 1")
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        raise InvalidInputError(f"objective={objective!r}: choose one of {', '.join(OBJECTIVES)}")
    check_no_global_hooks()
    chosen = chosen_rules(rules, extra_rules, without)
    example = checked_inputs(checked_model(model), example_inputs, example_kwargs)
    if example is None and objective == "measured":
        raise InvalidInputError('objective="measured" runs the merges: pass example_inputs of the size to be measured')
    return Request(
        example=example,
        rules=chosen,
        only=None if only is None else chosen_paths(model, "only", only),
        skip=chosen_paths(model, "skip", skip or ()),
        objective=objective,
        verify=verify,
        inplace=inplace,
        as_graph=as_graph,
        min_coverage=min_coverage,
    )


def chosen_paths(model: nn.Module, option: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """The patterns of an option, each of which must name a module. Raises `InvalidInputError`."""
    patterns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidInputError(f"{option}={value!r}: give a module path or pattern, or several of them")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = ", ".join(get_close_matches(pattern, names, 3))
            hint = f"did you mean {near}?" if near else "see model.named_modules() for the paths"
            raise InvalidInputError(f"{option}={pattern!r} names no module: {hint}")
    return patterns


def chosen_rules(
    rules: Iterable[Rule | str] | None, extra: Iterable[Rule], without: Iterable[Rule | str]
) -> tuple[Rule, ...]:
    """The rules of one call, those of the user before the built-in ones. Raises `RuleError`."""
    base = Registry(tuple(RULES) if rules is None else tuple(_rule(r) for r in _each(rules)))
    for rule in _each(extra):
        base.add(rule)
    for unwanted in _each(without):
        if (name := getattr(unwanted, "name", unwanted)) in base:
            base.remove(name)
        else:
            # One that is not among these anyway, or a name that none has.
            _rule(unwanted)
    return tuple(sorted(base, key=lambda rule: rule.pattern is None))


def _each(rules: Any) -> Iterable[Any]:
    """Several rules, or one."""
    return (rules,) if isinstance(rules, (str, Rule)) or not isinstance(rules, Iterable) else rules


def _rule(rule: Rule | str) -> Rule:
    return RULES[rule] if isinstance(rule, str) else rule
