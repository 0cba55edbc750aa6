"""The default tables, and the functions that extend them.

``reader``, ``register_rule`` are methods of two plain objects; `fuse` takes other sets of rules as arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from .layers.registry import READERS
from .rulebook.builtin import RULES
from .rulebook.pattern import Pattern
from .rulebook.rule import Build, Guard, Rule, make_rule

rules = RULES
reader = READERS.reader
register_rule = RULES.add


def rule(
    *,
    name: str,
    equation: str,
    pattern: Pattern,
    guard: Guard | None = None,
    doc: str | None = None,
    register: bool = True,
) -> Callable[[Build], Rule]:
    """Decorator: the function that builds the merged module becomes a registered `Rule`.

    The function gets the `Match` and returns the nn.Module that computes the pattern's value from its inputs, in
    their order of appearance. It may raise `NotFusable(reason)`, as may `guard`, which runs before it.

    Args:
        name: lower case, unique.
        equation: what equals what, for the report and the docs.
        pattern: made of `call` and `value`.
        guard: the conditions of the rule.
        doc: sentences about it; default: the function's docstring.
        register: use it in every later `fuse`; else pass it as ``extra_rules=[...]``.

    Raises `RuleError` when it is declared: malformed, or the name is taken.
    """

    def declare(build: Build) -> Rule:
        made = make_rule(name=name, equation=equation, pattern=pattern, guard=guard, doc=doc)(build)
        return RULES.add(made) if register else made

    return declare
