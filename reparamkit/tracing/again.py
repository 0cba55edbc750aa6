"""Errors of a trace that another one may not have."""

from __future__ import annotations

from ..errors import CaptureError


class WritesConstant(CaptureError):
    """The forward writes a traced value into a tensor that is none."""


class FillsArgument(CaptureError):
    """A function that is one node changes a list that it is given, which the code around it sees."""


class AsksForGradients(CaptureError):
    """The forward asks whether gradients of a value are followed."""


AGAIN = (WritesConstant, FillsArgument, AsksForGradients)
"""Errors of a trace that another one may not have."""
