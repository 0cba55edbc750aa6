"""The page of the docs about engines, from benchmarks/results/peers.jsonl. Needs none of the engines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reparamkit.timing import FEWEST, Ratio, interval

Row = Mapping[str, Any]
RESULTS = Path(__file__).resolve().parent / "results" / "peers.jsonl"
INTRODUCTION = """\
# Engines

What does re-parameterisation bring in front of an engine that optimises by itself? Each engine runs the model as it was
trained (*alone*) and what `reparamkit.fuse` made of it (*after*). All of a row runs in turns, in one process; each
rests first, and of two calls the second is timed, since the threads of the engine before may still be spinning. The
ratio is alone / after: the median of the pairs within the rounds, with its 95% interval. Weights and norm statistics
are random.

    python benchmarks/peers.py

measures what is missing, about 20 minutes on two idle cores, and can be stopped and started again. An engine that takes
more than 90 seconds to convert a model is left out there (`TimeoutError`).
"""
NOTHING = "Nothing has been measured yet.\n"
HEAD = ("model", "fastest alone", "fastest after", "ratio", "slower after", "fuse")
NOTES = """\
*fastest alone / after*: the engine with the smallest median, and that median; *ratio* is between these two, so it may
be between two engines. *slower after*: engines whose whole interval lies below 1. *fuse*: seconds, proofs included.
"""


def results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of the file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The page, line by line."""
    yield INTRODUCTION
    if not rows:
        yield NOTHING
        return
    yield f"{machine(rows[0])}.\n"
    for title, merges in (("Built to be merged", True), ("Others", False)):
        found = [row for row in rows if row["merges"] == merges]
        if found:
            yield f"## {title}\n"
            yield from table(HEAD, (summary_cells(row) for row in found))
            yield ""
    yield NOTES
    yield "## Every engine\n"
    for row in rows:
        yield from details(row)


def machine(row: Row) -> str:
    """Versions and threads, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return f"{versions}; {row['threads']} threads, {row['machine']}, float32, 224 x 224"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    for cells in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


# --- one line per model ---------------------------------------------------------------------------------


def summary(row: Row) -> str:
    """The line of a model, for a terminal."""
    return "; ".join(f"{name}: {cell}" for name, cell in zip(HEAD, summary_cells(row), strict=True))


def summary_cells(row: Row) -> tuple[str, ...]:
    """See `HEAD`."""
    name = f"{row['row']}, batch {row['batch']}"
    best = {form: fastest(row, form) for form in ("alone", "after")}
    shown = [f"{engine}, {median(row, engine, form):.1f} ms" for form, engine in best.items()]
    between = ratio(row["engines"][best["alone"]]["alone"], row["engines"][best["after"]]["after"])
    slower = [engine for engine in row["engines"] if (found := paired(row, engine)) and found.high < 1]
    return name, *shown, written(between), ", ".join(slower) or "none", f"{row['fuse_s']:.0f} s"


def fastest(row: Row, form: str) -> str:
    """The engine with the smallest median."""
    ran = [engine for engine, entry in row["engines"].items() if form in entry]
    return min(ran, key=lambda engine: median(row, engine, form))


def median(row: Row, engine: str, form: str) -> float:
    """Milliseconds."""
    return statistics.median(row["engines"][engine][form])


def paired(row: Row, engine: str) -> Ratio | None:
    """Alone against after, for one engine; None if it refused one of them."""
    entry = row["engines"][engine]
    return ratio(entry["alone"], entry["after"]) if "alone" in entry and "after" in entry else None


def ratio(old: Sequence[float], new: Sequence[float]) -> Ratio:
    """Of times that were measured in the same rounds."""
    assert len(old) >= FEWEST
    return interval([a / b for a, b in zip(old, new, strict=True)])


def written(found: Ratio) -> str:
    """A ratio in a cell."""
    return f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"


# --- one table per model --------------------------------------------------------------------------------


def details(row: Row) -> Iterator[str]:
    """All engines of a model, folded."""
    limited = any("limit" in entry for entry in row["engines"].values())
    head = ("engine", "alone", "after", "ratio", "error alone", "error after", "convert alone, after")
    yield f'??? note "{row["row"]}, batch {row["batch"]}"\n'
    extra = ("by hand", "after / by hand") if limited else ()
    rows = (engine_cells(row, engine, limited) for engine in row["engines"])
    yield from (f"    {line}" for line in table((*head, *extra), rows))
    yield ""


def engine_cells(row: Row, engine: str, limited: bool) -> tuple[str, ...]:
    """One line of the table of a model."""
    entry, found = row["engines"][engine], paired(row, engine)
    times = [time_cell(entry, form) for form in ("alone", "after")]
    errors = [f"{entry[f'{form}_error']:.0e}" if form in entry else "" for form in ("alone", "after")]
    seconds = ", ".join(f"{entry[f'{form}_s']:.1f} s" for form in ("alone", "after") if form in entry)
    cells = (engine, *times, written(found) if found else "", *errors, seconds)
    if not limited:
        return cells
    both = "after" in entry and "limit" in entry
    return *cells, time_cell(entry, "limit"), written(ratio(entry["after"], entry["limit"])) if both else ""


def time_cell(entry: Mapping[str, Any], form: str) -> str:
    """The median, or why there is none."""
    return f"{statistics.median(entry[form]):.1f} ms" if form in entry else entry.get(f"{form}_refused", "")
