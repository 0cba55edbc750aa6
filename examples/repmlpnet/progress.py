"""What is seen of a run while it trains: steps, loss, learning rate, images per second, the time that is left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

SECONDS = 0.5
"""Between two looks at the loss: for each the GPU is waited for."""
COLUMNS = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
COLUMNS_BEHIND = (TextColumn("{task.fields[figures]}"), TimeRemainingColumn())


class Steps:
    """The steps of a run; nothing is shown where the output is no terminal."""

    def __init__(self, total: int, *, silent: bool = False, console: Console | None = None) -> None:
        console = console or Console()
        self.shown = console.is_terminal and not silent
        self.bar = Progress(*COLUMNS, *COLUMNS_BEHIND, console=console, disable=not self.shown)
        self.task = self.bar.add_task("", total=total, epoch="", figures="")
        self.images, self.looked = 0, time.monotonic()

    def __enter__(self) -> Steps:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def advance(self, epoch: int, loss: Tensor, lr: float, images: int) -> None:
        """One step is done, on so many images."""
        if not self.shown:
            return
        self.images += images
        self.bar.advance(self.task)
        now = time.monotonic()
        if now - self.looked >= SECONDS:
            speed = self.images / (now - self.looked)
            figures = f"loss {loss.item():.3f}, lr {lr:.2g}, {speed:,.0f} images/s"
            self.bar.update(self.task, epoch=epoch, figures=figures)
            self.images, self.looked = 0, now
