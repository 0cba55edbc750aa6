"""The training run of `examples/repmlpnet`, with any measure of quality and a record of it after every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from files import write_atomically
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]
from training import Trainer

NAME = "history.json"

Measure = Callable[[nn.Module], float]
"""The quality of a model on the test images; larger is better."""


class Recorded(Trainer):
    """A run that keeps ``{"epoch", "loss", measure's name}`` per epoch in `history.json` of its folder."""

    def __init__(self, model: nn.Module, data: Any, options: Any, name: str, measure: Measure) -> None:
        super().__init__(model, data, options)
        self.name, self.measure = name, measure
        self.history: list[dict[str, float]] = []

    def train(self) -> None:
        """Train until the last epoch, from where the run in the output folder stopped."""
        self.resume()
        self.history = read_history(self.options.output)[: self.epoch]
        left = self.options.epochs - self.epoch
        with tqdm(total=left * self.steps, unit="step", disable=None if left else True) as bar:
            while self.epoch < self.options.epochs:
                loss = self.train_epoch(bar)
                self.history.append({"epoch": self.epoch, "loss": loss, self.name: self.measure(self.model)})
                # First, so that it is never shorter than the checkpoint says; what is too long is cut off above.
                write_history(self.history, self.options.output)
                self.save()
                bar.write(self.line())

    def line(self) -> str:
        """The last epoch in words."""
        last = self.history[-1]
        return f"epoch {self.epoch}/{self.options.epochs}: loss {last['loss']:.3f}, {self.name} {last[self.name]:.2%}"


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
