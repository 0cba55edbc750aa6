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
    """outputs: per module (by identity) of its calls in a real run, if there was one. failed: receives, by their paths,
    the errors of the modules that cannot be traced.
    """

    outputs: Mapping[int, Sequence[Any]]
    failed: dict[str, Exception] = field(default_factory=dict)
