"""Fake tensors, which have sizes and no numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch._subclasses.fake_tensor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

LOG = logging.getLogger(torch._subclasses.fake_tensor.__name__)


def new_mode() -> FakeTensorMode:
    """A mode whose tensors meet those of a model."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def as_fake(mode: FakeTensorMode) -> Callable[[Any], Any]:
    """Turns tensors into fake ones, and leaves the rest."""
    return lambda value: mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value


@contextmanager
def failing_quietly() -> Iterator[None]:
    """Inside, torch does not log the errors of calls with fake tensors: code may try what fails."""
    before, LOG.disabled = LOG.disabled, True
    try:
        yield
    finally:
        LOG.disabled = before
