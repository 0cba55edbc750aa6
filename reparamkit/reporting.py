"""What a fusion did and did not do, as data; ``print(report)`` is worth reading."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidInputError
from .reasons import Kind
from .show.advice import ADVICE, Advice
from .show.data import decoded, encoded, parsed
from .show.page import page
from .show.terminal import renderables
from .show.text import Left, Printed, Rows, clipped, counted, lines, some, visible

SHOWN = 8
"""How many layers left for one reason are printed; `Report.refusals` has all of them."""
WIDE, LONG = 48, 72
"""Characters that are printed of the members of a merge, and of one path; the fields have all of them."""
SCHEMA, VERSION = "reparamkit.report", 2
"""Name and version of the JSON form. The version rises when a field changes its meaning or goes."""


@dataclass(frozen=True)
class Totals:
    """What a whole model costs.

    Attributes:
        parameters: how many numbers its parameters have.
        stored: how many numbers its parameters and floating-point buffers have.
        ops: operations that compute something; views and sizes are not counted.
        flops: floating-point operations of the affine layers and of sums, on the example inputs. Without any, each
            free size counts as a nominal one, so only the difference of two such numbers says something.
    """

    parameters: int
    stored: int
    ops: int
    flops: int


@dataclass(frozen=True)
class Picture:
    """A part of a weight as a small image of signed numbers.

    Attributes:
        title: what is shown.
        merged: True for the merged layer, False for a layer that it replaces.
        rows: height of the image in pixels.
        columns: width of the image in pixels.
        tile: (rows, columns) of one kernel or map; the image is a grid of these.
        largest: the largest magnitude in the image.
        pixels: one signed byte per pixel, in row-major order, in base64; 127 stands for `largest`.
    """

    title: str
    merged: bool
    rows: int
    columns: int
    tile: tuple[int, ...]
    largest: float
    pixels: str


@dataclass(frozen=True)
class Price:
    """What some operations of a model cost, before or after a merge.

    Attributes:
        flops: floating-point operations on the example inputs (without any: with a nominal number for each free size).
        stored: how many numbers their parameters and buffers have.
        launches: how many operations are started.
        milliseconds: median time, if ``objective="measured"`` timed them; else None.
    """

    flops: int
    stored: int
    launches: int
    milliseconds: float | None = None


@dataclass(frozen=True)
class Merge:
    """One merge: several operations of the model became one layer, or a few.

    Attributes:
        path: of the merged layer in the fused model; several are separated by ", ".
        layer: class of the merged layer; several are joined by " + ".
        rules: names of the rules that allowed the merge.
        members: what it replaces: paths of modules, and names of functions.
        error: largest relative error of the merged layer against its members, in float64; None with ``verify=False``.
        before: price of the members.
        after: price of what replaces them.
        equations: of the rules, in the same order.
        pictures: of weights before and after.
    """

    path: str
    layer: str
    rules: tuple[str, ...]
    members: tuple[str, ...]
    error: float | None
    before: Price
    after: Price
    equations: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Refusal:
    """A layer that looks mergeable and was left as it is.

    Attributes:
        path: of the layer; "(root)" is the model itself.
        layer: its class, or the name of the function.
        reason: why it was not merged.
        kind: what the reason has in common with others, as `Advice.kind`.
        before: if a merge would be exact and does not pay, the price of what it would replace; else None.
        after: the price of that merge; else None.
    """

    path: str
    layer: str
    reason: str
    kind: str = Kind.OTHER.value
    before: Price | None = None
    after: Price | None = None

    @property
    def advice(self) -> Advice:
        """The kind of the reason, and what the user could do."""
        return ADVICE[Kind(self.kind)]


@dataclass(frozen=True)
class Group:
    """Layers that were left for reasons of one kind.

    Attributes:
        advice: the kind of reason, with what to do about it.
        refusals: the layers.
    """

    advice: Advice
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Caution:
    """A warning about numbers that are right and may still surprise.

    Attributes:
        path: of the layer.
        text: what was found.
    """

    path: str
    text: str


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        name: unique in the graph.
        op: as in torch.fx ("call_module", ...).
        kind: name of the class, function or method.
        path: of the module that it calls, or whose forward it is in.
        detail: its settings or plain arguments, in words.
        inputs: names of the nodes that it reads.
        shape: of its value; -1 stands for a free size. None: unknown, or no tensor.
        sites: the merges that it is part of, as indices into `Report.merges`.
        role: "input", "output", "constant" (computed from parameters only), "size", "view" (the same numbers in
            another shape) or "compute".
        affine: whether it was read as an affine operator.
    """

    name: str
    op: str
    kind: str
    path: str
    detail: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...] | None
    sites: tuple[int, ...] = ()
    role: str = "compute"
    affine: bool = False

    @property
    def is_layer(self) -> bool:
        """Whether it calls a module."""
        return self.op == "call_module"


@dataclass(frozen=True)
class Coverage:
    """How many of the mergeable layers were merged.

    Attributes:
        merged: affine modules, batch norms among them, that a merge replaced.
        left: modules that were refused, and batch norms that the report says nothing about. Modules that torch computes
            in one call, such as attention, are not counted: nobody looked into them.
    """

    merged: int
    left: int

    @property
    def share(self) -> float:
        """The share that was merged, from 0 to 1; 1 if there was nothing to merge."""
        return self.merged / (self.merged + self.left) if self.merged + self.left else 1.0

    def __str__(self) -> str:
        return f"{self.merged} of {self.merged + self.left} mergeable layers ({self.share:.1%})"


@dataclass(frozen=True)
class Part:
    """A module whose forward became a graph of its own.

    Attributes:
        path: of the module; "" is the model itself.
        tier: how it was traced: "symbolic" (sizes unknown) or "values" (with the sizes of the example inputs).
        layers: how many calls of modules are in the graph.
        calls: how often one run of the model runs it; 0 if nothing calls it.
        reason: why it is not in the graph of the module around it; "" for the whole model.
    """

    path: str
    tier: str
    layers: int
    calls: int = 1
    reason: str = ""

    def __str__(self) -> str:
        often = f", {self.calls} times per run" if self.calls > 1 else ""
        why = f"; by itself because {self.reason}" if self.reason else ""
        return f"{self.path or '(root)'}: tier {self.tier}, {self.layers} layers{often}{why}"


@dataclass(frozen=True)
class Report:
    """What `reparamkit.fuse` did and did not do. ``print(report)`` shows it, `to_html` draws it.

    Attributes:
        merges: what was merged.
        refusals: layers that look mergeable and were left, with the reasons.
        before: cost of the model.
        after: cost of the fused model.
        tier: how the model was traced: "symbolic" (sizes unknown) or "values" (with the sizes of the example inputs).
        error: largest relative error of the whole model on the example inputs, in its own dtype; None if there were
            none, or with ``verify=False``.
        model: name of its class.
        warnings: batch norms whose statistics look wrong, and numbers too small for the dtype.
        graph_before: the operations of the model, in program order, one part after the other.
        graph_after: those of the fused model.
        parts: the modules whose forward became a graph: the whole model, or several if it could not be traced in one.
    """

    merges: tuple[Merge, ...]
    refusals: tuple[Refusal, ...]
    before: Totals
    after: Totals
    tier: str
    error: float | None = None
    model: str = ""
    warnings: tuple[Caution, ...] = ()
    graph_before: tuple[Node, ...] = field(default=(), repr=False)
    graph_after: tuple[Node, ...] = field(default=(), repr=False)
    parts: tuple[Part, ...] = ()

    @property
    def summary(self) -> str:
        """How many merges and refusals there are, as text."""
        return f"{counted(len(self.merges), 'merge')}, {counted(len(self.refusals), 'refusal')}"

    @property
    def largest_error(self) -> float:
        """The largest relative error of any merge, and of the whole model if it was run."""
        errors = [m.error for m in self.merges if m.error is not None]
        return max([*errors, *([] if self.error is None else [self.error])], default=0.0)

    @property
    def coverage(self) -> Coverage:
        """How many of the mergeable layers were merged."""
        layers = {node.path: node for node in self.graph_before if node.is_layer}
        # A layer that a merge took up and that is also read elsewhere is still there.
        still = {node.name for node in self.graph_after}
        merged = {path for path, node in layers.items() if node.sites and node.affine and node.name not in still}
        refused = {refusal.path for refusal in self.refusals if refusal.advice.counts} - merged
        silent = {path for path, node in layers.items() if "BatchNorm" in node.kind} - merged - refused
        return Coverage(len(merged), len(refused) + len(silent))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The refusals by the kind of their reason, the largest group first."""
        found: dict[Advice, list[Refusal]] = {}
        for refusal in self.refusals:
            found.setdefault(refusal.advice, []).append(refusal)
        return tuple(Group(a, tuple(r)) for a, r in sorted(found.items(), key=lambda item: -len(item[1])))

    def to_json(self, path: str | Path | None = None) -> str:
        """All fields as JSON, with the name and version of the schema; written to `path` too if it is given."""
        return _kept(json.dumps(self._data(), indent=1, allow_nan=False), path)

    def to_html(self, path: str | Path | None = None) -> str:
        """One page that needs no network: both graphs side by side, and each merge with its equation, cost and
        weights; written to `path` too if it is given.
        """
        groups = [
            {**encoded(group.advice), "refusals": [self.refusals.index(r) for r in group.refusals]}
            for group in self.groups
        ]
        coverage = {**encoded(self.coverage), "share": self.coverage.share}
        return _kept(page({**self._data(), "groups": groups, "coverage": coverage}), path)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report in a text that `to_json` wrote.

        Raises:
            InvalidInputError: the text is something else, or of another version of the schema.
        """
        data = parsed(text)
        schema, version = data.pop("schema", None), data.pop("version", None)
        if schema != SCHEMA:
            raise InvalidInputError(f"schema {schema!r} is not {SCHEMA!r}: pass what Report.to_json wrote")
        if version != VERSION:
            raise InvalidInputError(
                f"the report has version {version!r} of the schema, this reparamkit reads {VERSION}"
            )
        made = decoded(cls, data, "the report")
        assert isinstance(made, cls)
        return made

    def _data(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "version": VERSION, **encoded(self)}

    def __str__(self) -> str:
        return "\n".join(lines(_printed(self)))

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        # Called by rich itself, so it is there.
        return renderables(_printed(self), options.max_width)


def _kept(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


# --- in words -----------------------------------------------------------------------------------------


def _printed(report: Report) -> Printed:
    return Printed(
        report.summary,
        tuple(_totals(report)),
        tuple(map(visible, _notes(report))),
        tuple(visible(f"{each.path}: {each.text}") for each in report.warnings),
        _merged(report),
        tuple(Left(each.advice.title, tuple(_reasons(each)), each.advice.advice) for each in report.groups),
    )


def _totals(report: Report) -> Iterator[tuple[str, ...]]:
    for name in ("parameters", "stored", "ops", "flops"):
        old, new = getattr(report.before, name), getattr(report.after, name)
        yield name, f"{old:,}", f"{new:,}", f"({new / old - 1:+.1%})" if old else ""


def _notes(report: Report) -> Iterator[str]:
    if report.error is not None:
        yield f"whole model: relative error {report.error:.1e}"
    if len(report.parts) > 1 or any(part.path for part in report.parts):
        yield from (f"part {part}" for part in report.parts)


def _merged(report: Report) -> Rows:
    measured = any(merge.before.milliseconds for merge in report.merges)
    head = ("merged into", "layer", "replaces", "rules", "flops", *(["ms"] if measured else []), "error")
    rows = [
        (
            _place(merge.path),
            merge.layer,
            some([_place(member, WIDE) for member in merge.members], WIDE),
            ", ".join(merge.rules),
            _flops(merge),
            *([f"{merge.before.milliseconds or 0:.3g} -> {merge.after.milliseconds or 0:.3g}"] if measured else []),
            "not checked" if merge.error is None else f"{merge.error:.0e}",
        )
        for merge in report.merges
    ]
    return (head, *rows) if rows else ()


def _place(path: str, width: int = LONG) -> str:
    """A path as it is printed."""
    return clipped(visible(path), width)


def _flops(merge: Merge) -> str:
    """FLOPs before and after; empty if neither is known, as of what a graph rule replaced."""
    before, after = merge.before.flops, merge.after.flops
    return f"{brief(before)} -> {brief(after)}" if before or after else ""


def _reasons(group: Group) -> Iterator[str]:
    found: dict[str, list[Refusal]] = {}
    for refusal in group.refusals:
        found.setdefault(FACTOR.sub("", refusal.reason), []).append(refusal)
    for alike in found.values():
        where = ", ".join(f"{_place(each.path)} ({each.layer})" for each in alike[:SHOWN])
        more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
        yield visible(f"{where}{more}: {_ranged([each.reason for each in alike])}")


FACTOR = re.compile(r"\b\d+(\.\d+)?(?=x\b)")
"""By how much a merge would raise a cost, in a reason."""


def _ranged(reasons: Sequence[str]) -> str:
    """One text for reasons that differ in their factors only: "1.8x" and "2.4x" are "1.8x to 2.4x"."""
    columns = zip(*([found[0] for found in FACTOR.finditer(reason)] for reason in reasons), strict=True)
    spans = [(min(column, key=float), max(column, key=float)) for column in columns]
    texts = iter([low if low == high else f"{low}x to {high}" for low, high in spans])
    return FACTOR.sub(lambda _: next(texts), reasons[0])


def factors(reason: str) -> list[float]:
    """By how much a merge would raise costs, as a reason says."""
    return [float(found[0]) for found in FACTOR.finditer(reason)]


def brief(number: int) -> str:
    """Three digits and a unit: 77_400_000 is 77.4M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
