"""What a command says, and where: lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .. import __version__
from ..reporting import Report
from ..show.data import encoded
from ..show.text import visible
from .failures import Code, Failure

STATUS = {"debug": False, "json": False}
"""How errors are shown; set by the command as soon as its options are known."""


@dataclass
class Voice:
    """Where a command says what. said: what --json prints at the end."""

    as_json: bool
    quiet: bool
    said: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out, self.progress = Console(), Console(stderr=True)

    def say(self, text: Any) -> None:
        """A line or a report for people, on stdout."""
        if self.as_json or self.quiet:
            return
        if self.out.is_terminal and isinstance(text, Report):
            self.out.print(text, markup=False, highlight=False)
        else:
            # A file or a pipe gets plain text, which other programs can read.
            print(*map(visible, str(text).splitlines()), sep="\n")

    def note(self, text: str) -> None:
        """A line on stderr."""
        if not (self.as_json or self.quiet):
            print(text, file=sys.stderr)

    def wrote(self, what: str, path: Path, detail: str = "") -> None:
        """Tell that a file is there."""
        self.said.setdefault("written", {})[what] = str(path)
        self.say(f"wrote {path}{detail}")

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Shows on a terminal what takes its time. Raises `Failure` if the code of a model ends the process."""
        try:
            with self._shown(what):
                yield
        except SystemExit as error:
            raise Failure(Code.MODEL, "the code of the model ended the process", "run it by itself") from error

    @contextmanager
    def _shown(self, what: str) -> Iterator[None]:
        if self.as_json or self.quiet:
            # What the code of a model prints is no part of the object.
            with redirect_stdout(sys.stderr):
                yield
        elif not self.progress.is_terminal:
            yield
        else:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=self.progress, transient=True) as shown:
                shown.add_task(what)
                yield

    def finish(self) -> None:
        """Print the JSON object."""
        if self.as_json:
            print(json.dumps(encoded(self.said), indent=1, default=str, allow_nan=False))
            STATUS["json"] = False


def voice(command: str, as_json: bool, quiet: bool, debug: bool) -> Voice:
    """The voice of a command; from here on errors are shown as its options ask."""
    STATUS.update(debug=debug, json=as_json)
    if not debug:
        warnings.simplefilter("ignore")
        logging.getLogger("torch").setLevel(logging.CRITICAL)
    return Voice(as_json, quiet, {"command": command, "reparamkit": __version__})
