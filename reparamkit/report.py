"""What a fusion did and did not do, as data; ``print(report)`` is worth reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten


@dataclass(frozen=True)
class Totals:
    """Of a whole model.

    parameters: numbers in its parameters. stored: numbers in parameters and buffers. ops: operations that
    compute something (views and sizes are not counted). flops: of the layers that can be read as affine, on the
    example inputs (free sizes nominal without them).
    """

    parameters: int
    stored: int
    ops: int
    flops: int


@dataclass(frozen=True)
class Merge:
    """One merge. path: of the merged layer. layer: its description. rules: that made it. members: paths of what
    it replaces. error: the largest relative error against them, in float64 (None: not checked).
    """

    path: str
    layer: str
    rules: tuple[str, ...]
    members: tuple[str, ...]
    error: float | None
    flops_before: int
    flops_after: int
    stored_before: int
    stored_after: int


@dataclass(frozen=True)
class Refusal:
    """A layer that was left as it is. path: where. layer: what it is. reason: why, and what could be done."""

    path: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of `reparamkit.fuse`.

    tier: how the model was captured ("symbolic", or "values" with example inputs). error: the largest relative
    error of the whole model on the example inputs in its own dtype (None without them).
    """

    merges: tuple[Merge, ...]
    refusals: tuple[Refusal, ...]
    before: Totals
    after: Totals
    tier: str
    error: float | None = None

    @property
    def largest_error(self) -> float:
        """The largest relative error of any merge, and of the whole model if it was run."""
        errors = [m.error for m in self.merges if m.error is not None]
        return max([*errors, *([] if self.error is None else [self.error])], default=0.0)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(report: Report) -> Iterator[str]:
    yield f"{len(report.merges)} merges, {len(report.refusals)} refusals"
    yield from _totals(report)
    if report.merges:
        yield ""
        yield from _table(
            ("merged into", "layer", "replaces", "rules", "error"),
            [
                (m.path, m.layer, shorten(", ".join(m.members), 60), ", ".join(m.rules), _error(m.error))
                for m in report.merges
            ],
        )
    if report.refusals:
        yield ""
        yield from _table(("left as it is", "layer", "why"), _refusals(report))


def _refusals(report: Report) -> list[tuple[str, ...]]:
    return [(r.path, r.layer, r.reason) for r in report.refusals]


def _totals(report: Report) -> Iterator[str]:
    before, after = report.before, report.after
    for name in ("parameters", "stored", "ops", "flops"):
        old, new = getattr(before, name), getattr(after, name)
        change = f"  ({new / old - 1:+.1%})" if old else ""
        yield f"  {name:<10} {old:>14,} -> {new:>14,}{change}"
    if report.error is not None:
        yield f"  whole model: relative error {report.error:.1e}"


def _error(error: float | None) -> str:
    return "not checked" if error is None else f"{error:.0e}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, tuple("-" * w for w in widths), *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
