"""What the running code is asking: the instruction that called into a proxy tells."""

from __future__ import annotations

import dis
from functools import lru_cache
from types import CodeType, FrameType

import torch


def unpacked(frame: FrameType) -> int | None:
    """How many values ``a, b = ...`` takes, if that is what is being run."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at + 1] if dis.opname[code[at]] == "UNPACK_SEQUENCE" else None


def asks(frame: FrameType, *names: str) -> bool:
    """Whether a call of a builtin of one of these names is being run, by code that is not torch's own: that takes
    proxies for what they are.
    """
    while frame.f_code.co_name == "__instancecheck__" and frame.f_back is not None:
        frame = frame.f_back
    own = frame.f_code is not torch.is_tensor.__code__ and _package(frame) in ("torch", __package__.partition(".")[0])
    return not own and any(_calls(frame.f_code, frame.f_lasti, name) for name in names)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


@lru_cache(maxsize=1024)
def _calls(code: CodeType, at: int, name: str) -> bool:
    """Whether the call at an instruction begins, in the source, where the name is read."""
    if name not in code.co_names:
        return False
    starts = [(line, column) for line, _, column, _ in code.co_positions()]
    # Where a call is specialized, the instruction before it does the work, PRECALL.
    here = starts[at // 2] if "CALL" in dis.opname[code.co_code[at]] else (None, None)
    reads = (i for i in dis.get_instructions(code) if i.argval == name and i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return None not in here and any(starts[read.offset // 2] == here for read in reads)
