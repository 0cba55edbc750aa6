"""Rows: merges of calls that follow one another, so that the code around them stays as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from ..algebra.size import is_of_rank
from ..capture.captured import Captured
from ..capture.paths import start_of
from ..engine.methods import partial_methods, varying_methods
from ..engine.naming import called_plainly, place_of
from ..engine.nesting import innermost
from ..engine.placing import Placed
from ..engine.sharing import is_shared
from ..engine.site import Site
from ..sourcecode.flow import ALWAYS, Way, way_to
from ..tracing.frame import Frame
from .asked import asked
from .choices import has_other_ways
from .exposed import is_exposed, is_returned, showing_method
from .order import is_ordered, needs_order
from .originals import codes_of, original_forward
from .settings import is_varied


@dataclass(frozen=True)
class Part:
    """What one call of a module has of a row.

    nodes: in program order. frame: the call whose own code they are; None for a layer, that is swapped.
    """

    nodes: tuple[fx.Node, ...]
    frame: Frame | None = None

    @property
    def path(self) -> str:
        """Of the module that is called."""
        return place_of(self.nodes[0]) if self.frame is None else self.frame.path


@dataclass(frozen=True)
class Row:
    """The members of a site that are a row: each is read by the next only. layers: those that do not only regroup.

    anchor: the node whose place the merged layer takes.
    """

    nodes: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]
    anchor: fx.Node


def row_of(captured: Captured, site: Site) -> Row | None:
    """The row that the members are, those absorbed and views before a layer aside; None if they are none."""
    if site.placed is None or len(site.placed.terms) != 1 or _split(captured, site):
        return None
    placement = site.placed.terms[0]
    way = [captured.named[step.node] for step in placement.trail]
    if placement.layer is None or not placement.layer.bare or placement.position is None or set(way) < site.members:
        return None
    first = next(k for k, step in enumerate(placement.trail) if step.is_layer and way[k] not in site.absorbed)
    row = way[first:]
    layers = [n for n, step in zip(row, placement.trail[first:], strict=True) if step.is_layer]
    linked = all(set(a.users) == {b} for a, b in itertools.pairwise(row)) and _are_different(captured, row)
    linked = linked and all(_shape_kept(captured, site.placed, k, node) for k, node in enumerate(row, first))
    return Row(tuple(row), tuple(layers), way[placement.position]) if linked else None


def is_chain(captured: Captured, site: Site) -> bool:
    """Whether it is a row of module calls that needs no guard (but one on the rank): then modules can be swapped and
    nobody's code is rewritten.
    """
    row = row_of(captured, site)
    if row is None or site.placed is None:
        return False
    modules = all(n.op == "call_module" and called_plainly(n) for n in row.layers)
    modules = modules and not _read_directly(captured, row.layers) and _has_views(captured, row)
    modules = modules and not asked(captured, row.layers)
    modules = modules and not _decided(captured, row, [Part((layer,)) for layer in row.layers])
    return modules and (_only_rank_guards(site.placed) if len(row.nodes) > 1 else not site.placed.guards)


def parts_of(captured: Captured, site: Site) -> tuple[Part, ...]:
    """The calls that the members of a row are spread over, if only the code inside of them has to change; () if not."""
    row = row_of(captured, site)
    if row is None or site.placed is None or row.layers != row.nodes or is_shared(captured, site):
        return ()
    parts = _grouped(captured, row.nodes)
    called = [part.nodes[0] for part in parts if part.frame is None]
    ranked = not site.placed.guards or (_only_rank_guards(site.placed) and not site.placed.form.sample.open_rank)
    fitting = 1 < len(parts) > len(called) and ranked and not _read_directly(captured, called)
    fitting = fitting and not folding(captured, row.nodes)
    fitting = fitting and {frame for frame, _ in asked(captured, row.nodes)} <= {part.frame for part in parts}
    fitting = fitting and all(_hands_on(captured, part, part is parts[-1]) for part in parts)
    return tuple(parts) if fitting and not _decided(captured, row, parts) else ()


def layers_of(captured: Captured, site: Site) -> tuple[Part, ...]:
    """The layers of a row of module calls, each as a part, if there is nothing between them and no guard; () if not.

    Where the code that calls one is written again, it calls that layer no more; elsewhere the layer is swapped.
    """
    row = row_of(captured, site)
    if row is None or row.layers != row.nodes or is_shared(captured, site) or not is_chain(captured, site):
        return ()
    return tuple(Part((layer,)) for layer in row.layers) if site.placed and not site.placed.guards else ()


def _are_different(captured: Captured, nodes: Sequence[fx.Node]) -> bool:
    """Whether each of these calls is of another module, in whose place there can be another."""
    called = [captured.module(node) for node in nodes if node.op == "call_module"]
    return len(set(called)) == len(called)


def _grouped(captured: Captured, nodes: Iterable[fx.Node]) -> list[Part]:
    nodes = list(nodes)
    code = {captured.frame(n) for n in nodes if n.op != "call_module" or not called_plainly(n)}
    outer = {frame for frame in code if code.isdisjoint(frame.stack[:-1])}
    found: list[Part] = []
    for node in nodes:
        frame = next((each for each in captured.frame(node).stack if each in outer), None)
        if frame is not None and found and found[-1].frame is frame:
            found[-1] = Part((*found[-1].nodes, node), frame)
        else:
            found.append(Part((node,), frame))
    return found


def _hands_on(captured: Captured, part: Part, last: bool) -> bool:
    """Whether what a call has of a row is all that it returns, if the row goes on; no other place calls the module."""
    if part.frame is None:
        return True
    alone = captured.module_calls[id(part.frame.module)] == 1 and part.frame.parent is not None
    output = part.frame.output
    return alone and (last or (isinstance(output, fx.Node) and captured.current(output) is part.nodes[-1]))


def _split(captured: Captured, site: Site) -> bool:
    """Whether a method made a part of what is merged, or may, and not all that is no absorbed scale."""
    partial = partial_methods(captured, site.members)
    in_parts = any(not site.core <= captured.methods[each] for each in partial)
    return in_parts or bool(varying_methods(captured, site.core))


def is_swap(captured: Captured, site: Site) -> bool:
    """Whether a graph rule replaces the only call of a module by one of the same arguments: no code is rewritten."""
    (first, *others) = site.members
    if others or first.op != "call_module" or site.replacement is None:
        return False
    once = captured.targets[str(first.target)] == [first] and not folding(captured, [first])
    return once and first.args == site.replacement.inputs and not first.kwargs


def _decided(captured: Captured, row: Row, parts: Sequence[Part]) -> bool:
    """Whether some of the modules may run without the others, or without what they give each other, as a branch was
    taken in the code that calls them.
    """
    found: dict[bool, set[Way | None]] = {True: set(), False: set()}
    around = _around(captured, parts)
    for part in parts:
        for frame in _callers(captured, part):
            if around in frame.stack:
                found[frame is around].add(_way_to(captured, frame, part.path))
    # What is around all of them does not part them; in the calls inside, each has to be made.
    parted = None in found[True] or len(found[True]) > 1 or not found[False] <= {ALWAYS}
    parted = parted or any(_handed_otherwise(captured, row, *link) for link in itertools.pairwise(parts))
    return parted or is_varied(captured, [node for part in parts for node in part.nodes])


def _handed_otherwise(captured: Captured, row: Row, part: Part, following: Part) -> bool:
    """Whether the code between two parts may do something else than to hand the result of the first to the second."""
    around = _around(captured, (part, following))
    between = row.nodes[row.nodes.index(part.nodes[-1]) : row.nodes.index(following.nodes[0])]
    calls = (*_callers(captured, part), *_callers(captured, following))
    exposed = (is_exposed(captured, set(between), call) for call in dict.fromkeys(calls) if around in call.stack)
    shown = is_returned(captured, set(between), around) or bool(showing_method(captured, set(between)))
    return shown or any(exposed)


def _around(captured: Captured, parts: Iterable[Part]) -> Frame | None:
    """The innermost call whose code runs all of these parts."""
    return innermost([callers[-1] for part in parts if (callers := _callers(captured, part))])


def _callers(captured: Captured, part: Part) -> Sequence[Frame]:
    """The calls, from the outermost, whose code runs a part."""
    caller = captured.frame(part.nodes[0]) if part.frame is None else part.frame.parent
    return () if caller is None else caller.stack


def _way_to(captured: Captured, frame: Frame, path: str) -> Way | None:
    """The way on which the code of a call runs the module at a path; None if it is not clear."""
    if frame.asks:
        return None
    if not has_other_ways(captured, frame):
        return ALWAYS
    forward, place = original_forward(frame.module), path.removeprefix(start_of(frame.path))
    return way_to(forward, place, frame.module) or _way_in_method(captured, frame, place)


def _way_in_method(captured: Captured, frame: Frame, place: str) -> Way | None:
    """The way to what a method calls, one that the forward itself calls in one place."""
    forward, *methods = codes_of(captured, frame.module)
    ways = [(number, method, way_to(method, place, frame.module)) for number, method in enumerate(methods)]
    known = [(number, method, way) for number, method, way in ways if way is not None]
    outer = way_to(forward, known[0][1].__name__, frame.module) if len(known) == 1 else None
    if outer is None:
        return None
    ((number, _, (around, exits)),) = known
    # The ways out of a method come before nothing that is not in it.
    return outer if (around, exits) == ALWAYS else ((*outer[0], -1 - number, *around, -1 - exits), outer[1])


def _read_directly(captured: Captured, layers: Sequence[fx.Node]) -> bool:
    """Whether the model's code reads a parameter of one of these modules itself, or calls it on constants."""
    return any(place_of(layer) in captured.owners or folding(captured, [layer]) for layer in layers)


def folding(captured: Captured, members: Iterable[fx.Node]) -> set[Frame]:
    """The calls whose code calls modules of these members on constants too."""
    modules = {id(f.module) for member in members for f in captured.frame(member).stack}
    modules |= {id(captured.module(member)) for member in members if member.op == "call_module"}
    return {frame for module in modules for frame in captured.folded.get(module, ())}


def _shape_kept(captured: Captured, placed: Placed, number: int, node: fx.Node) -> bool:
    """Whether a value in the row, if the model's code reads its shape, keeps it when modules are swapped. (That of the
    whole row is as it was.)
    """
    unused, position, op = captured.unused, placed.terms[0].position, placed.form.sample
    if node is captured.named[placed.terms[0].trail[-1].node]:
        return True
    assert position is not None
    shape = op.value_sizes if number >= position else op.source_sizes, op.open_rank
    other_rank = node in unused.ranks and len(op.value_sizes) != len(op.source_sizes)
    return not unused.in_the_way(other_rank or unused.shapes.get(node, shape) != shape)


def _has_views(captured: Captured, row: Row) -> bool:
    """Whether what goes into a row has the views that the code takes before the merged layer."""
    views = row.nodes[: row.nodes.index(row.anchor)]
    return not any(map(needs_order, views)) or is_ordered(captured, row.nodes[0].all_input_nodes[0])


def _only_rank_guards(placed: Placed) -> bool:
    guards = placed.guards
    views = any(step.views for step in placed.terms[0].trail)
    return not guards or (not views and all(is_of_rank(*guard) for guard in guards))
