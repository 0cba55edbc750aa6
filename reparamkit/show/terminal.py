"""A report for a terminal, with rich; ``rich.print(report)`` and the command line show it so."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

STYLES = {"merged into": "bold", "layer": "green", "rules": "cyan", "flops": "magenta", "ms": "blue", "error": "dim"}


def renderable(
    summary: str,
    totals: Iterable[tuple[str, str, str, str]],
    cautions: Sequence[str],
    merged: Sequence[tuple[str, ...]],
    refused: Iterable[tuple[str, str, Sequence[str]]],
) -> Any:
    """The parts of a report as one object that rich can print.

    summary: one line. totals: (name, before, after, change). cautions: lines. merged: rows of a table, the first its
    head. refused: (title, advice, lines). rich is imported here, since the package does without it.
    """
    text, console = importlib.import_module("rich.text"), importlib.import_module("rich.console")
    parts = [text.Text(summary, style="bold"), _totals(totals)]
    parts += [text.Text(f"warning: {line}", style="bold yellow") for line in cautions]
    if merged:
        parts.append(_merged(merged))
    for title, remedy, lines in refused:
        parts.append(text.Text(f"left: {title}", style="bold yellow"))
        parts += [text.Text(f"  {line}") for line in lines]
        parts.append(text.Text(f"  what to do: {remedy}", style="green"))
    return console.Group(*parts)


def _totals(rows: Iterable[tuple[str, str, str, str]]) -> Any:
    text = importlib.import_module("rich.text").Text
    table = importlib.import_module("rich.table").Table(box=None, show_header=False, pad_edge=False)
    for justify in ("left", "right", "center", "right", "left"):
        table.add_column(justify=justify)
    for name, before, after, change in rows:
        table.add_row(name, before, "->", text(after, style="bold"), change)
    return table


def _merged(rows: Sequence[tuple[str, ...]]) -> Any:
    box = importlib.import_module("rich.box")
    table = importlib.import_module("rich.table").Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        justify = "right" if name == "error" else "left"
        table.add_column(name, style=STYLES.get(name), overflow="fold", justify=justify)
    text = importlib.import_module("rich.text").Text
    for row in rows[1:]:
        # No markup: a path may have brackets, and whoever prints may have switched markup off.
        table.add_row(*(text(cell) for cell in row))
    return table
