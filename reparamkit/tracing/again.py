"""Errors that end a trace, and that another attempt, with other settings of the tracer, may avoid."""

from __future__ import annotations

from ..errors import CaptureError


class WritesConstant(CaptureError):
    """The forward writes a traced value into a constant tensor."""


class FillsArgument(CaptureError):
    """A function that became a single node (by torch.fx.wrap) changes a list it was given, which the caller sees."""


class AsksForGradients(CaptureError):
    """The forward asks whether gradients of a value are followed."""


AGAIN = (WritesConstant, FillsArgument, AsksForGradients)
"""The errors after which it is worth to trace again."""
