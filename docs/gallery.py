"""The page Gallery: every structure of the tests, fused while the page is made, and what was measured.

``python docs/gallery.py`` prints the page.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import reparamkit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from graphs import before_and_after

INTRODUCTION = """\
# Gallery

Each row is a network of the test suite. It was fused while this page was made, with random statistics in every norm:
the operations are those that a run executes, views aside (click: the graph before and after, one colour per merge), and
the errors are the largest difference from the float64 original relative to its largest number. The tests hold every row
to this, with and without example inputs, at several sizes. No row has code of its own: all follow from the [two
laws](algebra.md).
"""
HEAD = ("structure", "equation", "operations", "what is left", "error in float32, float64", "must be left")
NEAR_MISSES = """\
## What must be left

These look like the structures above and are not. Each runs as before, and the report says why; the reason is quoted as
it is printed.
"""


def gallery_page(tests: ModuleType) -> Iterator[str]:
    """The page, line by line. tests: the table of structures."""
    yield INTRODUCTION
    for family in tests.FAMILIES:
        yield f"## {family.title}\n\n{family.text}\n"
        published = [each for each in family.structures if each.source] or family.structures
        others = [each for each in family.structures if each not in published]
        yield from table(HEAD, (structure_row(tests, each) for each in published))
        if others:
            yield f'\n??? note "{len(others)} more, checked in the same way"\n'
            yield from (f"    {line}" for line in table(HEAD, (structure_row(tests, each) for each in others)))
        yield ""
    yield NEAR_MISSES
    yield from table(("network", "operations", "why it is left"), (miss_row(tests, miss) for miss in tests.NEAR_MISSES))


def structure_row(tests: ModuleType, case: Any) -> tuple[str, ...]:
    """One structure, measured."""
    single, double = (fused(tests, case, dtype) for dtype in (torch.float32, torch.float64))
    before, after = (tests.operations(model, single[2]) for model in single[:2])
    errors = ", ".join(f"{deviation(tests, case, *pair):.0e}" for pair in (single, double))
    name = f"{case.name}<br><small>{case.source}</small>" if case.source else case.name
    near = f"[{case.near}](#{anchor(case.near)})" if case.near else ""
    equation = code(case.equation) if "=" in case.equation else case.equation
    counts = f"{len(before.split())} -> {len(after.split())}"
    graphs = f"<span>{before_and_after(reparamkit.report(single[1]))}</span>"
    drawn = f'<details style="white-space:nowrap;width:max-content"><summary>{counts}</summary>{graphs}</details>'
    return name, equation, drawn, code(after), errors, near


def miss_row(tests: ModuleType, case: Any) -> tuple[str, ...]:
    """One near miss, with what the report says about it."""
    _, after, x = fused(tests, case, torch.float32)
    reasons = [refusal.reason for refusal in reparamkit.report(after).refusals]
    reason = next(reason for reason in reasons if re.search(case.reason, reason))
    return f'<span id="{anchor(case.name)}">{case.name}</span>', code(tests.operations(after, x)), reason


def fused(tests: ModuleType, case: Any, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A network of the table, what `fuse` makes of it, and the example input."""
    model, x = tests.build(case.make, dtype), tests.sample(case.shapes[0], dtype)
    return model, reparamkit.fuse(model, x, objective=case.objective), x


def deviation(tests: ModuleType, case: Any, model: nn.Module, after: nn.Module, x: torch.Tensor) -> float:
    """The largest error over the sizes of a structure."""
    inputs = [tests.sample(shape, x.dtype) for shape in case.shapes]
    wide = tests.wide(model)
    return max(tests.error(tests.run(after, each), tests.run(wide, each.double())) for each in inputs)


def anchor(name: str) -> str:
    """The place of a near miss on the page."""
    return "left-" + re.sub(r"\W+", "-", name).strip("-").lower()


def code(text: str) -> str:
    """Text as code, if there is any."""
    return f"`{text}`" if text else ""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table."""
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def structures() -> ModuleType:
    """The table of structures, of the tests."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        return importlib.import_module("structures")
    finally:
        sys.path.pop(0)


if __name__ == "__main__":
    print("\n".join(gallery_page(structures())))
