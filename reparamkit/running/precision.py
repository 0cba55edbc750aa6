"""Products and convolutions of float32 on a GPU, with all digits of the format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class _Setting:
    """A setting of the process. exact: its value without TensorFloat-32."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    exact: Any

    def now(self) -> Any:
        """None where torch refuses to say it, as of the old settings once someone has made use of the new ones."""
        try:
            return self.read()
        except RuntimeError:
            return None


def _attribute(owner: Any, name: str, exact: Any) -> _Setting:
    return _Setting(partial(getattr, owner, name), partial(setattr, owner, name), exact)


def _settings() -> list[_Setting]:
    """Those of before torch 2.9, then those of today: the same state, but what is written last is what counts."""
    every: Any = torch.backends
    found = [
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _attribute(every.cudnn, "allow_tf32", False),
    ]
    if hasattr(every, "fp32_precision"):
        owners = every, every.cudnn, every.cudnn.conv, every.cudnn.rnn, every.cuda.matmul
        found += [_attribute(owner, "fp32_precision", "none") for owner in owners]
    return found


@dataclass
class _Exact:
    """The settings belong to the process: of several threads the first in changes them, the last out puts them back."""

    inside: int = 0
    before: list[tuple[_Setting, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = [(setting, setting.now()) for setting in _settings()]
                for setting, _ in self.before:
                    setting.write(setting.exact)
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            for setting, value in self.before if self.inside == 0 else ():
                if value is not None:
                    setting.write(value)


_EXACT = _Exact()


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, TensorFloat-32 is off: it rounds to 11 bits, more than any tolerance for float32 allows."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield
        return
    _EXACT.enter()
    try:
        yield
    finally:
        _EXACT.leave()
