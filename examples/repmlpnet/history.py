"""A record of loss and quality after every epoch, as JSON, and for TensorBoard if that is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import ExampleError
from files import write_atomically

NAME = "history.json"


def write_history(history: list[dict[str, float]], folder: Path) -> None:
    """Replace the record in `folder`."""
    write_atomically(folder / NAME, lambda temporary: temporary.write_text(json.dumps(history)))


def read_history(folder: Path) -> list[dict[str, float]]:
    """The record in `folder`; empty if there is none, or none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def board_writer() -> Any:
    """The class that writes for TensorBoard. Raises `ExampleError` if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ExampleError("--tensorboard needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter


def write_board(line: Mapping[str, float], folder: Path) -> None:
    """Add an epoch to the curves of TensorBoard in `folder`; what is there from it on is of a run that was given up."""
    with board_writer()(str(folder / "tensorboard"), purge_step=int(line["epoch"])) as board:
        for name in line.keys() - {"epoch"}:
            board.add_scalar(name, line[name], int(line["epoch"]))
