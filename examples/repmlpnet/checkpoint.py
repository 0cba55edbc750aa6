"""The state of a run after an epoch: all that is needed to continue as if nothing had happened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from errors import CheckpointError, FileError
from files import read_tensors, write_atomically

NAME = "checkpoint.pt"
AGAIN = "the run cannot be continued, start again with --resume never"


@dataclass(frozen=True)
class Checkpoint:
    """A run after `epoch` epochs; every field is made of tensors and plain values."""

    settings: dict[str, Any]
    epoch: int
    model: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]
    random: dict[str, torch.Tensor]


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the checkpoint in `folder`; whoever is killed while writing keeps the previous one."""
    write_atomically(folder / NAME, lambda temporary: torch.save(vars(checkpoint), temporary))


def load(folder: Path) -> Checkpoint | None:
    """The checkpoint in `folder`, or None if there is none."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return _checked(read_tensors(path))
    except FileError as error:
        raise CheckpointError(f"{AGAIN}: {error}") from error
    except TypeError as error:
        raise CheckpointError(f"{AGAIN}: {path} holds another thing than a run") from error


def _checked(content: Any) -> Checkpoint:
    """Raises `TypeError` if it is none."""
    found = Checkpoint(**content)
    if not isinstance(found.settings, dict) or not isinstance(found.epoch, int):
        raise TypeError
    if not 0 <= found.epoch <= found.settings.get("epochs", 0):
        raise TypeError
    return found


def find(folder: Path, settings: Mapping[str, Any], resume: str) -> Checkpoint | None:
    """The checkpoint to continue from; None to start afresh.

    "never" starts afresh, "always" insists on a checkpoint of the same settings, "auto" takes one if it
    is there. A fresh start moves an older checkpoint aside.
    """
    found = None if resume == "never" else load(folder)
    if found is not None and found.settings == settings:
        return found
    if resume == "always":
        raise CheckpointError(f"--resume always: {folder} has no run to continue{_differences(found, settings)}")
    _move_aside(folder / NAME, _differences(found, settings))
    return None


def random_state() -> dict[str, torch.Tensor]:
    """The states of torch's generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Undo what was drawn since `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _differences(found: Checkpoint | None, settings: Mapping[str, Any]) -> str:
    if found is None:
        return ""
    old = found.settings
    changed = (f"{name} {old.get(name)}, not {new}" for name, new in settings.items() if old.get(name) != new)
    return f": the run there has {'; '.join(changed)}"


def _move_aside(path: Path, why: str) -> None:
    if path.exists():
        previous = path.with_name(f"previous-{path.name}")
        os.replace(path, previous)
        print(f"starting afresh{why}; its checkpoint is kept as {previous}")
