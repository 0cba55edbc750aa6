"""A report for a terminal, with rich; ``rich.print(report)`` and the command line show it so."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from .text import Printed, Rows, aligned

STYLES = {"merged into": "bold", "layer": "green", "rules": "cyan", "flops": "magenta", "ms": "blue", "error": "dim"}


def renderables(printed: Printed, width: int) -> Iterator[Any]:
    """The parts of a report as objects that rich can print. width: of the terminal.

    rich is imported here, since the package does without it. No markup: a path may have brackets.
    """
    text = importlib.import_module("rich.text").Text
    yield text(printed.summary, style="bold")
    yield from map(_indented, (*aligned(printed.totals), *printed.notes))
    yield from (_indented(f"warning: {line}", "bold yellow") for line in printed.cautions)
    if printed.merged:
        yield _table(printed.merged) if _columns(printed.merged) <= width else _stacked(printed.merged)
    for group in printed.left:
        yield text(f"left: {group.title}", style="bold yellow")
        yield from map(_indented, group.lines)
        yield _indented(f"what to do: {group.remedy}", "green")


def _indented(line: str, style: str = "") -> Any:
    """A line that begins, and goes on where it is too long, two columns to the right."""
    text = importlib.import_module("rich.text").Text(line, style)
    return importlib.import_module("rich.padding").Padding(text, (0, 0, 0, 2), expand=False)


def _columns(rows: Rows) -> int:
    """How wide the table is: each cell on one line, and what rich puts between them."""
    return sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True))


def _table(rows: Rows) -> Any:
    text, box = importlib.import_module("rich.text").Text, importlib.import_module("rich.box").SIMPLE_HEAD
    table = importlib.import_module("rich.table").Table(box=box, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, style=STYLES.get(name), overflow="fold", justify="right" if name == "error" else "left")
    for row in rows[1:]:
        table.add_row(*map(text, row))
    return table


def _stacked(rows: Rows) -> Any:
    """A paragraph per row, for a terminal that is too narrow for the table."""
    text = importlib.import_module("rich.text").Text
    shown = text()
    for place, *cells in rows[1:]:
        shown.append(f"\n{place}\n", style=STYLES["merged into"])
        for name, cell in zip(rows[0][1:], cells, strict=True):
            if cell:
                shown.append(f"  {name} ").append(f"{cell}\n", style=STYLES.get(name))
    return shown
