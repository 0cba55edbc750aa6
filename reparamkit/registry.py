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

    The function gets the `Match` and returns an nn.Module. Called with the pattern's `value`s, in their order of
    appearance, that module returns what the pattern's outermost `call` returned. The function may raise
    `NotFusable(reason)`, as may `guard`, which gets the `Match` before it.

    Args:
        name: unique; lower case letters, digits and underscores.
        equation: what equals what, for the report and the docs.
        pattern: made of `call` and `value`.
        guard: raises `NotFusable` where the rule does not hold; default: it holds wherever the pattern matches.
        doc: sentences about it; default: the function's docstring.
        register: use it in every later `fuse`; else pass it as ``extra_rules=[...]``.

    Raises:
        RuleError: when it is declared: it is malformed, or the name is taken.
    """

    def declare(build: Build) -> Rule:
        made = make_rule(name=name, equation=equation, pattern=pattern, guard=guard, doc=doc)(build)
        return RULES.add(made) if register else made

    return declare
