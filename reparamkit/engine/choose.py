"""Choose what to merge: the plan of least price that never raises FLOPs or stored numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import fx

from ..algebra.size import Size, Symbol
from ..capture.captured import Captured
from ..layers.price import Cost
from ..layers.registry import Readers
from .keep import Keeper, shapes_of_inputs
from .options import Options
from .plan import Excess, Planner, Writable, beyond
from .reader import read
from .reading import Reading
from .regions import regions
from .scope import Scope
from .site import Plan, Settled, Site


def choose(
    captured: Captured,
    readers: Readers,
    scope: Scope,
    writable: Writable,
    objective: str,
    recording: AbstractContextManager[object],
    last: Plan | None,
    assumed: Mapping[Symbol, int],
) -> tuple[Plan, Reading]:
    """Read the graph and choose the merges. recording: the context in which readers are called. last: what was chosen,
    and is written now; where that left all as it was, it stays so. assumed: what the reading before had to assume.
    """

    def once(last: Plan | None, assumed: Mapping[Symbol, int]) -> Keeper:
        reading = Reading(captured, assumed=assumed)
        keeper = Keeper(Options(captured, reading, objective), {} if last is None else last.settled)
        with recording:
            read(captured, readers, scope, keeper.keep, reading)
        return keeper

    keeper = once(last, assumed)
    if (told := (found := keeper.options.reading).to_assume).keys() & found.stuck != found.stuck & assumed.keys():
        assumed = told
        keeper = once(last, assumed)
    if last is not None and keeper.reaches_left:
        # A region that was left may merge with what is affine only now.
        keeper, last = once(None, assumed), None
    options = keeper.options
    if last is not None:
        _carry(last, options, keeper.left)
    planners = [Planner(region, options, writable) for region in regions(captured, options.is_inside)]
    _improve(planners, options)
    return _joined(planners, options, parted=last is not None and last.parted), options.reading


def _carry(last: Plan, options: Options, left: set[fx.Node]) -> None:
    """What was said of values that were not looked at again."""
    options.reading.reasons.update({node: why for node, why in last.refusals.items() if node in left})
    options.rejected.update({node: one for node, one in last.rejected.items() if node in left})
    options.idle |= last.idle & left


def _improve(planners: Sequence[Planner], options: Options) -> None:
    """Each region in view of what the others raise or save."""
    total = sum((planner.excess for planner in planners), Excess())
    for planner in planners:
        others = total - planner.excess
        planner.improve(others)
        total = others + planner.excess
    # Two merges may only pay together, and be beyond what is allowed each alone: then neither is made.
    while beyond(total, options) and (overlapping := [planner for planner in planners if planner.overlapping]):
        for planner in overlapping:
            planner.give_up()
        total = sum((planner.excess for planner in planners), Excess())


def _joined(planners: Sequence[Planner], options: Options, parted: bool) -> Plan:
    """The plans of all regions as one. parted: whether what was written before is."""
    order = options.captured.aliases.order
    sites = sorted((site for p in planners for site in p.sites), key=lambda site: order[site.value])
    sites = _read_of_merged(sites, options.reading)
    before = sum((p.original for p in planners), Cost())
    refusals = _refusals(planners, options)
    parted = parted or any(planner.parted for planner in planners)
    return Plan(sites, refusals, before, options.rejected, options.idle, _settled(planners, options), parted)


def _read_of_merged(sites: Sequence[Site], reading: Reading) -> list[Site]:
    """A size of what is inside of another merge can be read of what that one gives, if it has the size too: a guard
    would keep the layers inside for their shape.
    """
    inside = {member.name: site.value for site in sites for member in site.core}

    def shapes(site: Site) -> dict[str, tuple[Size, ...]]:
        guards = site.placed.guards if site.placed is not None else ()
        values = (inside.get(str(symbol.origin[0]), site.value) for symbol, _ in guards)
        return {value.name: reading.shapes[value][0] for value in values if value is not site.value}

    return [replace(site, sizes={**site.sizes, **shapes(site)}) for site in sites]


def _refusals(planners: Sequence[Planner], options: Options) -> dict[fx.Node, list[str]]:
    """Why nodes stay, of those that stay."""
    needed = {node for node in options.captured.graph.nodes if options.must_stay(node)}
    needed = needed.union(*(p.plan.needed for p in planners))
    merged = {member for p in planners for site in p.plan.sites for member in site.members}
    left = needed - merged - {n for n, launches in options.reading.moves.items() if launches == 0}
    return {n: why for n, why in options.reading.reasons.items() if n in left}


def _settled(planners: Sequence[Planner], options: Options) -> Settled:
    """What need not be looked at again once this plan is written."""
    left = (p.region for p in planners if not p.plan.sites and not p.unwritten)
    return {node: shapes_of_inputs(options.reading, node) for region in left for node in region}
