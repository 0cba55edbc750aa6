"""Which attributes of modules the code of a forward reads while it is traced: it may go by what they are."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

from torch import nn

from ..running.patches import replaced
from ..running.state import TABLES
from ..sourcecode.origins import is_users
from ..sourcecode.parse import TORCHS


def settings_read(note: Callable[[nn.Module, str, CodeType], None]) -> AbstractContextManager[None]:
    """Inside, `note` gets each module and the name of each attribute that code reads which is neither torch's nor ours,
    or asks for in vain, and that code; children, tensors and what the class computes aside.
    """
    get, thread = nn.Module.__getattribute__, threading.get_ident()

    # Called for each attribute that anybody reads, so nothing comes before the cheapest question.
    def read(module: nn.Module, name: str) -> Any:
        if name not in TORCHS and threading.get_ident() == thread:
            by = sys._getframe(1)
            if is_users(by) and _is_setting(module, name):
                note(module, name, by.f_code)
        return get(module, name)

    return replaced(nn.Module, {"__getattribute__": read})


def _is_setting(module: nn.Module, name: str) -> bool:
    own = object.__getattribute__(module, "__dict__")
    if name in own:
        return True
    parts = (own.get(table, {}) for table in TABLES)
    known = next((table[name] for table in parts if name in table), None)
    return known is None and not hasattr(inspect.getattr_static(type(module), name, None), "__get__")
