"""What is called in a trace, and not traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, eq=False)
class Opaque:
    """A module that is called and not traced. outputs: of its calls in a real run, if there was one."""

    module: nn.Module
    outputs: Sequence[Any]


@dataclass(frozen=True, eq=False)
class GoingOn:
    """How a trace goes on where a module cannot be traced: with the outputs that it gave in a real run.

    outputs: per module (by identity) the outputs of its calls in a real run, if there was one. failed: receives the
    errors of the modules that cannot be traced, by path.
    """

    outputs: Mapping[int, Sequence[Any]]
    failed: dict[str, Exception] = field(default_factory=dict)
