"""What is printed of a report, and how a file or a pipe shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Rows = tuple[tuple[str, ...], ...]
"""Rows of cells, the first the head; empty if there is nothing to show."""


@dataclass(frozen=True)
class Left:
    """Layers that were left for reasons of one kind. lines: one per reason. remedy: what to do."""

    title: str
    lines: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Printed:
    """A report in words, for each way to show it. totals: (name, before, after, change). notes: lines below them."""

    summary: str
    totals: Rows
    notes: tuple[str, ...]
    cautions: tuple[str, ...]
    merged: Rows
    left: tuple[Left, ...]


def lines(printed: Printed) -> Iterator[str]:
    """Plain text."""
    yield printed.summary
    yield from (f"  {line}" for line in aligned(printed.totals))
    yield from (f"  {note}" for note in printed.notes)
    yield from (f"  warning: {caution}" for caution in printed.cautions)
    if printed.merged:
        yield ""
        yield from _table(printed.merged)
    if printed.left:
        yield from ("", "left as it is", "-------------")
    for group in printed.left:
        yield group.title
        yield from (f"  {line}" for line in group.lines)
        yield f"  what to do: {group.remedy}"


def aligned(totals: Rows) -> Iterator[str]:
    """The totals, a line each."""
    for name, old, new, change in totals:
        yield f"{name:<10} {old:>14} -> {new:>14}  {change}".rstrip()


def visible(text: str) -> str:
    """A line with all that a terminal would obey written out: escapes, line breaks, changes of direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clipped(text: str, width: int) -> str:
    """The end of a text that is too long."""
    return text if len(text) <= width else f"...{text[3 - width :]}"


def some(names: Sequence[str], width: int) -> str:
    """As many names as fit, at least one, and how many more there are."""
    for shown in range(len(names), 0, -1):
        more = len(names) - shown
        text = ", ".join(names[:shown]) + (f" and {more} more" if more else "")
        if len(text) <= width or shown == 1:
            return text
    return ""


def counted(number: int, thing: str) -> str:
    """A number of things, such as 1 merge or 2 merges."""
    return f"{number} {thing}{'s' * (number != 1)}"


def _table(rows: Rows) -> Iterator[str]:
    head = rows[0]
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    for row in (head, tuple("-" * w for w in widths), *rows[1:]):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
