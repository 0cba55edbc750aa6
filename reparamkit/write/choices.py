"""Whether the code of a call may go otherwise than it went in the trace."""

from __future__ import annotations

import inspect

from torch import fx

from ..capture.captured import Captured
from ..sourcecode.flow import catches, names_in, remembered, tested
from ..tracing.frame import Frame
from .originals import codes_of, original_forward


def has_other_ways(captured: Captured, frame: Frame) -> bool:
    """Whether the code of a call may go otherwise than it went in the trace."""
    codes = codes_of(captured, frame.module)
    decides = frame in captured.deciding or any(catches(code) or remembered(code) for code in codes)
    kinds = [*map(tested, codes), *map(tested, frame.codes)]
    return decides or any(kinds) or _has_flags(frame)


def _has_flags(frame: Frame) -> bool:
    """Whether its code goes by an argument that is no tensor, or may be none; it may hand that on to others."""
    forward = original_forward(frame.module)
    names = names_in(forward)
    signature = inspect.signature(frame.module.forward)
    bound = signature.bind(*frame.args, **frame.kwargs)
    bound.apply_defaults()
    return any(
        (names is None or name in names)
        and (signature.parameters[name].default is None or not isinstance(value, fx.Node))
        for name, value in bound.arguments.items()
    )
