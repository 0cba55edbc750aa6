"""The exceptions of reparamkit.

    ReparamkitError
    ├── InvalidInputError      the model or the example inputs cannot be used at all
    ├── CaptureError           the model's forward cannot be traced
    ├── RuleError              a rule or reader is malformed, fails, or its name is taken
    ├── CoverageError          less was merged than `min_coverage` asks for
    ├── EquivalenceError       a merged piece does not equal the piece it replaces
    ├── GuardError             a fused model is called with sizes, or gets a setting, it was not fused for
    ├── RecipeError            a checkpoint cannot be converted, or is one of the model before it was fused
    └── NotFusable             the one way to say "no" below the engine; recorded as a refusal

Each message says what happened, where (the module path), and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping

from .reasons import Kind, Reason, joined


class ReparamkitError(Exception):
    """Base of every error reparamkit raises on purpose."""


class InvalidInputError(ReparamkitError, ValueError):
    """The model or its example inputs cannot be used; nothing was changed."""


class CaptureError(ReparamkitError):
    """A ``forward`` could not be traced into a graph; ``path`` is the module where tracing stopped."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class RuleError(ReparamkitError, ValueError):
    """A rule or reader is refused when it is declared, or fails when it is used."""


class CoverageError(ReparamkitError):
    """Too many mergeable layers were left as they are; the message names them and the reasons."""


class EquivalenceError(ReparamkitError):
    """A merged piece differs from the piece it would replace; the merge is not returned."""


class GuardError(ReparamkitError, RuntimeError):
    """A fused model got an input of a size its merge was not proved for, or another value for what merges rely on."""


class RecipeError(ReparamkitError, ValueError):
    """There is no recipe, it is malformed, or it does not hold for this checkpoint; nothing was written."""


class NotFusable(ReparamkitError):
    """A structure has no exact merged form, or not a permitted one; ``reason`` says why."""

    def __init__(self, reason: str | Reason, kind: Kind = Kind.OTHER) -> None:
        super().__init__(str(reason))
        self.reason = reason if isinstance(reason, Reason) else Reason(reason, kind)


class FreeSize(NotFusable):
    """What would hold if a size was known that is free."""

    def __init__(self, reason: str | Reason, kind: Kind = Kind.SIZES) -> None:
        super().__init__(reason, kind)


class Unwritable(NotFusable):
    """The methods of the modules at some paths cannot be written with all merges in them that were chosen."""

    def __init__(self, reasons: Mapping[str, Reason]) -> None:
        super().__init__(joined(reasons.values()))
        self.reasons = reasons
