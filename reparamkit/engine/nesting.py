"""Calls that are inside of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from torch import fx

from ..capture.captured import Captured
from ..tracing.frame import Frame


def innermost(frames: Sequence[Frame]) -> Frame:
    """The innermost call that contains all of these calls."""
    common = frames[0].stack
    for frame in frames[1:]:
        common = tuple(a for a, b in zip(common, frame.stack, strict=False) if a is b)
    return common[-1]


def outer(frame: Frame, inlined: Set[int]) -> Frame:
    """The call whose code has that of `frame` in it. inlined: calls (by identity) whose code goes into that around."""
    while id(frame) in inlined and frame.parent is not None:
        frame = frame.parent
    return frame


def code_around(captured: Captured, members: Iterable[fx.Node], inlined: Set[int] = frozenset()) -> Frame:
    """The innermost call whose code has all of these members in it. inlined: see `outer`."""
    return outer(innermost([*dict.fromkeys(map(captured.frame, members))]), inlined)


def below(captured: Captured, frame: Frame, members: Iterable[fx.Node]) -> set[int]:
    """The calls inside `frame` (by identity) that these members are in."""
    return {
        id(inner)
        for node in members
        for inner in captured.frame(node).stack
        if frame in inner.stack and inner is not frame
    }
