"""Tables between the marks of a page: ``<!-- name:begin -->`` and ``<!-- name:end -->``, each on a line of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def filled(text: str, mark: str, lines: Iterable[str]) -> str:
    """A page with other lines between its marks. Raises `ValueError` if it has no such marks."""
    begin, end = f"<!-- {mark}:begin -->\n", f"<!-- {mark}:end -->"
    between = "".join(f"{line}\n" for line in lines)
    found, count = re.subn(f"({begin}).*?({end})", lambda m: m[1] + between + m[2], text, flags=re.S)
    if count != 1:
        raise ValueError(f"a page must have the marks {begin.strip()} and {end} once, found {count}")
    return found


def fill(page: Path, mark: str, lines: Iterable[str]) -> None:
    """Write other lines between the marks of a page."""
    page.write_text(filled(page.read_text(), mark, lines))
