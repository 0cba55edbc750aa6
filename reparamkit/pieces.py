"""What a proof of a merge is given: the values that it reads, of sizes and ranks that go together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from torch import fx

from .algebra.operator import Operator, closed, identity, pin, seen_dims
from .algebra.segments import parts_of
from .algebra.size import Pin, Symbol, roots, solved
from .capture.captured import Captured
from .capture.reach import reached
from .engine.reading import Reading
from .proof import Piece, check
from .write.round import Prove
from .write.splice import Written


def prover(reading: Reading, is_checked: Callable[[Written], bool]) -> Prove:
    """What proves the merges of a graph that was read. is_checked: whether a merge is in code that is written again,
    which checks the sizes that it computed with.
    """
    # Of the graph as it was read: merges that are written first take nodes out of it.
    named = {node.name: node for node in reading.captured.graph.nodes}

    def prove(captured: Captured, written: Written) -> float:
        site = written.site
        paths = sorted({captured.path(member) for member in site.members})
        where = f"'{captured.path(site.value)}' (rules={list(site.rules)}, only={paths})"
        outside = captured.decided_outside(site.value, written.frame if is_checked(written) else None)
        read = _sources(reading, named, written)
        beside = _beside(reading, written, read)
        read = _taken_apart(reading, read, beside)
        beside = {node: op for node, op in beside.items() if node not in read}
        ops = _agreed(reading, read | beside)
        sources, others = ({node: ops[node] for node in some} for some in (read, beside))
        return check(Piece(captured, sources, site.value, written.result, site.members, others, outside), where)

    return prove


def _sources(reading: Reading, named: Mapping[str, fx.Node], written: Written) -> dict[fx.Node, Operator]:
    """The values a merge reads, each with an operator that tells its sizes."""
    site = written.site
    if site.replacement is not None:
        # The form of a single layer knows the sizes that its weights fix.
        form = reading.read.get(site.value)
        known = {} if form is None else {name: term.op for name, term in form.terms.items()}
        return {n: known.get(n.name, identity(*reading.shapes[n])) for n in site.replacement.inputs}
    assert site.placed is not None
    return {named[name]: term.op for name, term in site.placed.form.terms.items()}


def _beside(reading: Reading, written: Written, sources: Collection[fx.Node]) -> dict[fx.Node, Operator]:
    """The values of known sizes that the members of a merge read, or only sizes of, and the merge does not."""
    order, members = reading.captured.aliases.order, written.site.members
    read = {node for member in members for node in member.all_input_nodes if node not in reading.constants}
    read |= {each for node in read & reading.sizes.keys() for each in _measured(reading, node)}
    others = sorted((read & reading.shapes.keys()) - members - {*sources}, key=order.__getitem__)
    return {node: _read_as(reading, node) for node in others}


def _taken_apart(
    reading: Reading, sources: Mapping[fx.Node, Operator], beside: Collection[fx.Node]
) -> dict[fx.Node, Operator]:
    """The sources, with the parts in the place of a concatenation of which members read a part by itself as well."""
    joined = [node for node in sources if _joins(reading, node, beside)]
    parts = [part for whole in joined for part in whole.all_input_nodes if part in reading.shapes]
    left = {node: op for node, op in sources.items() if node not in joined}
    return left | {part: _read_as(reading, part) for part in parts if part not in left}


def _joins(reading: Reading, whole: fx.Node, parts: Collection[fx.Node]) -> bool:
    """Whether a value is a concatenation of some of these."""
    joins = whole in reading.read and parts_of(reading.read[whole]) is not None
    return joins and any(part in parts for part in whole.all_input_nodes)


def _agreed(reading: Reading, ops: Mapping[fx.Node, Operator]) -> dict[fx.Node, Operator]:
    """Operators of values, each with the sizes and the dimensions that what reads the other values fixes."""
    fixed: dict[Symbol, Pin] = {}
    symbols = set().union(*(roots(size) for op in ops.values() for size in op.source_sizes))
    ops = {node: _seen_with(op, symbols) for node, op in ops.items()}
    for node, op in ops.items():
        sizes, open_rank = reading.shape_of(node)
        pairs = [] if open_rank or len(sizes) != len(op.source_sizes) else zip(sizes, op.source_sizes, strict=True)
        for size, found in pairs:
            fixed |= solved(size, found.factor) if found.known else {}
    return {node: pin(op, fixed) for node, op in ops.items()}


def _seen_with(op: Operator, symbols: Iterable[Symbol]) -> Operator:
    """An operator of a tensor of unknown rank with the dimensions that others see of it."""
    if not (op.open_rank and op.source):
        return op
    _, taken = op.rest.origin
    seen = seen_dims(op, symbols)
    return closed(op, seen - taken) if isinstance(taken, int) and seen > taken else op


def _measured(reading: Reading, size: fx.Node) -> set[fx.Node]:
    """The values that a number was made of sizes of."""
    read = set(size.all_input_nodes)
    return read.union(*(_measured(reading, node) for node in read & reading.sizes.keys()))


def prove_raised(reading: Reading, old: fx.Node, new: fx.Node, over: Collection[fx.Node]) -> None:
    """Check that a scale of a part, put where a layer can absorb it, leaves a value as it was."""
    captured = reading.captured
    between = reached([old], lambda node: [n for n in node.all_input_nodes if n not in over])
    measured = set[fx.Node]().union(*(_measured(reading, node) for node in between if node in reading.sizes))
    others = sorted((measured & reading.shapes.keys()) - {*over}, key=captured.aliases.order.__getitem__)
    ops = _agreed(reading, {node: _informed(reading, _read_as(reading, node)) for node in (*over, *others)})
    sources, beside = ({node: ops[node] for node in some} for some in (over, others))
    check(Piece(captured, sources, old, new, beside=beside), f"'{captured.path(old)}'")


def _informed(reading: Reading, op: Operator) -> Operator:
    """An operator with the sizes that layers fix: code may compute with them, as scores divided by a root of one."""
    symbols = set[Symbol]().union(*map(roots, op.source_sizes))
    return pin(op, {symbol: reading.facts[symbol] for symbol in symbols if symbol in reading.facts})


def _read_as(reading: Reading, node: fx.Node) -> Operator:
    """An operator that tells the rank and the sizes of a value, as far as one of its readers knows them."""
    forms = (reading.read[user] for user in node.users if user in reading.read)
    ops = [form.terms[node.name].op for form in forms if node.name in form.terms]

    def unknown(op: Operator) -> tuple[bool, int]:
        return op.open_rank, sum(not size.known for size in op.source_sizes)

    return min((identity(*reading.shape_of(node)), *ops), key=unknown)
