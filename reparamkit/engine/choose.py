"""Choose what to merge: the plan of least price that never raises FLOPs or stored numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import fx

from ..algebra.size import Size, Symbol
from ..capture.captured import Captured
from ..layers.price import Cost
from ..layers.registry import Readers
from ..reasons import Reason
from .keep import Keeper
from .memo import Memo
from .options import Options
from .plan import Excess, Planner, Writable, beyond
from .reader import read
from .reading import Reading
from .regions import regions
from .scope import Scope
from .site import Plan, Site


def choose(
    captured: Captured,
    readers: Readers,
    scope: Scope,
    writable: Writable,
    objective: str,
    recording: AbstractContextManager[object],
    assumed: Mapping[Symbol, int],
    memo: Memo,
) -> tuple[Plan, Reading]:
    """Read the graph and choose the merges. recording: the context in which readers are called. assumed: what the
    reading before had to assume. memo: what readings before found out.
    """

    def once(assumed: Mapping[Symbol, int]) -> Options:
        reading = Reading(captured, assumed=assumed, memo=memo)
        options = Options(captured, reading, objective)
        with recording:
            read(captured, readers, scope, Keeper(options).keep, reading)
        return options

    options = once(assumed)
    if (told := (found := options.reading).to_assume).keys() & found.stuck != found.stuck & assumed.keys():
        options = once(told)
    planners = [Planner(region, options, writable) for region in regions(captured, options.is_inside)]
    _improve(planners, options)
    return _joined(planners, options), options.reading


def _improve(planners: Sequence[Planner], options: Options) -> None:
    """Each region in view of what the others raise or save."""
    total = _each(planners, Planner.improve)
    # Two merges may only pay together, and be beyond what is allowed each alone: then neither is made.
    while beyond(total, options) and (overlapping := [planner for planner in planners if planner.overlapping]):
        for planner in overlapping:
            planner.give_up()
        total = sum((planner.excess for planner in planners), Excess())
    _each(planners, Planner.drop_idle)


def _each(planners: Sequence[Planner], step: Callable[[Planner, Excess], None]) -> Excess:
    """One step in each region, in view of what the others raise or save; and what all of them do then."""
    total = sum((planner.excess for planner in planners), Excess())
    for planner in planners:
        others = total - planner.excess
        step(planner, others)
        total = others + planner.excess
    return total


def _joined(planners: Sequence[Planner], options: Options) -> Plan:
    """The plans of all regions as one."""
    order = options.captured.aliases.order
    sites = sorted((site for p in planners for site in p.sites), key=lambda site: order[site.value])
    sites = _read_of_merged(sites, options.reading)
    before = sum((p.original for p in planners), Cost())
    refusals = _refusals(planners, options)
    parted = any(planner.parted for planner in planners)
    return Plan(sites, refusals, before, options.rejected, options.idle, parted)


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


def _refusals(planners: Sequence[Planner], options: Options) -> dict[fx.Node, list[Reason]]:
    """Why nodes stay, of those that stay."""
    needed = {node for node in options.captured.graph.nodes if options.must_stay(node)}
    needed = needed.union(*(p.plan.needed for p in planners))
    merged = {member for p in planners for site in p.plan.sites for member in site.members}
    left = needed - merged - {n for n, launches in options.reading.moves.items() if launches == 0}
    return {n: why for n, why in options.reading.reasons.items() if n in left}
