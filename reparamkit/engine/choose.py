"""Choose what to merge: the plan of least price that never raises FLOPs or stored numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import fx

from ..algebra.form import Form, Trail
from ..algebra.probe import PROBE
from ..capture.capture import Captured
from ..capture.trees import leaves
from ..errors import NotFusable
from ..layers.price import OBJECTIVES, Cost
from ..layers.registry import Readers
from .absorb import absorbed, is_scale, leading
from .placing import Placed, place
from .pricing import Prices, readers_of
from .reading import Candidate, Reading, checks, read
from .scope import Scope, check_calls, place_of
from .sharing import uneven
from .site import Merge, Plan, Rejected, Site

CHEAPEST, DEEPEST = 2, 2
"""How many forms of a value are kept: the cheapest ones, and those that reach back furthest."""
WORTH = 0.05
"""What each further member of a merge must save, in launches: of two equal merges the smaller one is better."""
MAX_TRIES = 200
"""How many other plans are tried; the first is nearly always the best."""
FLOPS, STORED = "FLOPs", "stored numbers"
MAY_RAISE = {"launches": frozenset({FLOPS, STORED}), "flops": frozenset({STORED})}
"""What an objective may let rise; for others neither FLOPs nor stored numbers."""


Writable = Callable[[Site], None]
"""Raises `NotFusable` if a site cannot be written into the model's code."""


def choose(
    captured: Captured,
    readers: Readers,
    scope: Scope,
    writable: Writable,
    objective: str,
    recording: AbstractContextManager[object],
) -> tuple[Plan, Reading]:
    """Read the graph and choose the merges. recording: the context in which readers are called."""
    reading = Reading(captured)
    chooser = _Chooser(captured, scope, objective, reading, writable)
    with recording:
        read(captured, readers, scope, chooser.prune, reading)
    return chooser.plan(), reading


@dataclass(eq=False)
class _Option:
    """A way to have a value: as computed (no placed form), or by a form. before: what the members cost. parts, price:
    once they were asked for.
    """

    cost: Cost
    sources: tuple[fx.Node, ...]
    members: frozenset[fx.Node] = frozenset()
    placed: Placed | None = None
    before: Cost = field(default_factory=Cost)
    parts: dict[fx.Node, float] | None = None
    price: float | None = None


@dataclass(eq=False)
class _Chooser:
    captured: Captured
    scope: Scope
    objective: str
    reading: Reading
    writable: Writable
    totals: dict[fx.Node, float] = field(default_factory=dict)
    options: dict[fx.Node, list[_Option]] = field(default_factory=dict)
    effort: float = 0.0
    computed: dict[fx.Node, _Option] = field(default_factory=dict)
    tries: int = 0
    able: set[tuple[fx.Node, frozenset[fx.Node], frozenset[fx.Node]]] = field(default_factory=set)
    staying: dict[fx.Node, str] = field(default_factory=dict)
    banned: set[Merge] = field(default_factory=set)
    pinned: set[fx.Node] = field(default_factory=set)
    affine: set[fx.Node] = field(default_factory=set)
    rejected: dict[fx.Node, Rejected] = field(default_factory=dict)
    idle: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.score: Callable[[Cost], float] = OBJECTIVES[self.objective]
        self.may_raise = MAY_RAISE.get(self.objective, frozenset())
        self.effort = WORTH * self.score(Cost(launches=1))
        self.named = self.captured.named
        self.prices = Prices(self.captured, self.reading)

    # --- prices ----------------------------------------------------------------------------------

    def total(self, node: fx.Node) -> float:
        """The least price of having a value by what is allowed, with shared inputs divided among their readers.

        What stays in every plan costs nothing to read, so only the affine part before a value counts.
        """
        if self._must_stay(node):
            return 0.0
        if node not in self.totals:
            self.totals[node] = self._price(self._best(node))
        return self.totals[node]

    def _price(self, option: _Option) -> float:
        if option.price is None:
            option.price = self._priced(option)
        return option.price

    def _priced(self, option: _Option) -> float:
        """Its own cost, and of every value it reads the part that is read for its sake.

        With these parts a merge is cheaper than its members exactly if its cost is less than theirs, each counted
        as far as it would no longer be needed.
        """
        if option.parts is None:
            option.parts = self._parts(option)
        reading = sum(self.total(s) * part for s, part in option.parts.items())
        return self.score(option.cost) + reading + self.effort * len(option.members)

    def _parts(self, option: _Option) -> dict[fx.Node, float]:
        """How much of the use of each source is by the option; a value with two readers is half for each."""
        if option.placed is None:
            return {s: 1 / max(1, len(readers_of(s))) for s in option.sources}
        order = self.captured.aliases.order
        members = sorted(option.members, key=order.__getitem__, reverse=True)
        parts = {members[0]: 1.0}
        for node in (*members[1:], *option.sources):
            users = readers_of(node)
            parts[node] = sum(parts.get(user, 0.0) for user in users) / max(1, len(users))
        return {s: parts[s] for s in option.sources}

    def _as_computed(self, node: fx.Node) -> _Option:
        if node not in self.computed:
            self.computed[node] = _Option(self.prices.cost(node), tuple(node.all_input_nodes))
        return self.computed[node]

    # --- forms worth keeping ---------------------------------------------------------------------

    def prune(self, node: fx.Node, found: list[Candidate]) -> list[Candidate]:
        """Keep the cheapest form, and per further distinct set of sources the deepest."""
        self.options[node] = []
        self.affine |= {node} if found else set()
        if found and not any(steps[-1].views for c in found for steps in _trails(c.form)):
            self.prices.passes.add(node)
        ranked: list[_Ranked] = []
        for number, candidate in enumerate(found):
            option = self._option(node, candidate)
            price = float("inf") if option is None else self._price(option)
            slower = option is not None and any(True for _ in self._raised(option))
            if (
                option is not None
                and (len(candidate.members) > 1 or (self.reading.arithmetic(node) and not _guesses(option)))
                and self._pays(node, option)
            ):
                self.options[node].append(option)
            ranked.append(((slower, price), number, candidate))
        self.total(node)
        return self._kept(ranked)

    def _kept(self, ranked: list[_Ranked]) -> list[Candidate]:
        by_sources: dict[frozenset[tuple[str, bool]], _Ranked] = {}
        for entry in ranked:
            key = frozenset((name, term.op.resamples) for name, term in entry[2].form.terms.items())
            if key not in by_sources or entry[:2] < by_sources[key][:2]:
                by_sources[key] = entry
        deep = sorted(by_sources.values(), key=lambda e: self._depth(e[2].form))
        # A view that is read deeper than a merge may reach is of no use.
        views = sorted((e for e in deep if _only_views(e[2])), key=lambda e: e[0][1] == float("inf"))
        layers = [e for e in deep if e not in views]
        cheap = sorted(layers, key=lambda e: e[:2])
        # The plainest, which begins right before the value, is what a merge falls back on.
        near = sorted(layers, key=lambda e: len(e[2].members))
        # The deepest may be no layer at all; then the deepest that is one can still take what comes.
        able = [e for e in layers if e[0][1] != float("inf")]
        kept = [e for e in layers if e in (*cheap[:CHEAPEST], *layers[:DEEPEST], *able[:DEEPEST], *near[:1])]
        # A scale with several readers may have to stay; then a merge begins behind it.
        behind = [e for e in layers if e not in kept and any(map(self._is_shared_scale, e[2].form.terms))]
        # The deepest may need a guard that cannot be written where it is read; then a nearer one does without.
        free = [e for e in views[1:] if not e[2].form.guards] if views and views[0][2].form.guards else []
        return [candidate for _, _, candidate in (*kept, *behind[:1], *views[:1], *free[:1])]

    def _is_shared_scale(self, name: str) -> bool:
        node = self.named[name]
        return len(node.users) > 1 and is_scale(self.reading, node)

    def _depth(self, form: Form) -> int:
        """How far back a form reaches: the position of its latest source, of a part the position of the whole."""
        order = self.captured.aliases.order
        return max(order[self._whole(self.named[name])] for name in form.terms)

    def _whole(self, node: fx.Node) -> fx.Node:
        return self._whole(node.all_input_nodes[0]) if self.reading.moves.get(node) == 0 else node

    def _option(self, node: fx.Node, candidate: Candidate) -> _Option | None:
        try:
            placed = place(candidate.form, self.prices.weigh, self.prices.sizes_of)
            check_calls(self.captured, candidate.members)
            self._check_stored(node, candidate)
            self._check_ranks(candidate.form)
            self._check_writes(node, candidate)
        except NotFusable as no:
            if len(candidate.members) > 1:
                matrix = "readable only as a full matrix on a fixed size; " if PROBE in candidate.form.used else ""
                self.reading.no(node, matrix + no.reason)
            return None
        sources = [self.named[name] for name in candidate.form.terms]
        sources += self._kept_inputs(candidate, placed)
        pins = {symbol: size for term in candidate.form.terms.values() for symbol, size in term.op.pins}
        before = sum((self.prices.cost_inside(m, pins) for m in candidate.members), Cost())
        return _Option(placed.cost, tuple(dict.fromkeys(sources)), candidate.members, placed, before)

    def _kept_inputs(self, candidate: Candidate, placed: Placed) -> list[fx.Node]:
        """What the views that stay need besides the value they view: sizes."""
        found: list[fx.Node] = []
        for term in placed.terms:
            nodes = [self.named[step.node] for step in term.trail if step.views]
            on_trail = {self.named[step.node] for step in term.trail} | {self.named[term.source]}
            found += [n for node in nodes for n in node.all_input_nodes if n not in on_trail]
        return found

    def _pays(self, node: fx.Node, option: _Option) -> bool:
        """Never slower: neither FLOPs nor stored numbers may rise (a bias added to a weight is exempt)."""
        before, after = option.before, option.cost
        for what, old, new in self._raised(option):
            if len(option.members) > 1:
                factor = f"{new / old:.{1 if new > 1.05 * old else 3}f}x" if old else f"from 0 to {new}"
                self.reading.no(node, f"{_because(option)}the merge would raise {what} {factor}")
                self._reject(node, Rejected(option.members, before, after))
            return False
        # Fewer numbers alone (a bias moved elsewhere) is no merge: work must disappear.
        # A layer over a concatenation that becomes several, and their sum, must save launches.
        one = option.placed is not None and (len(option.placed.terms) == 1 or option.placed.dim is not None)
        moved = one and after.macs < before.macs and self._moves_work(node, option)
        less = after.launches < before.launches or moved
        pays = less and self.score(after) < self.score(before)
        if not pays and (why := _because(option)):
            self.reading.no(node, f"{why}that costs more than the merge saves")
            self._reject(node, Rejected(option.members, before, after))
        elif not pays and self._moves_work(node, option):
            self.idle.add(node)
        return pays

    def _raised(self, option: _Option) -> Iterator[tuple[str, int, int]]:
        """What rises that may not: its name, from what, to what."""
        before, after = option.before, option.cost
        if after.flops > before.flops and FLOPS not in self.may_raise:
            yield FLOPS, before.flops, after.flops
        stored = after.stored - _bias_numbers(option.placed)
        if stored > before.stored and STORED not in self.may_raise:
            yield STORED, before.stored, stored

    def _moves_work(self, node: fx.Node, option: _Option) -> bool:
        """Whether a layer before the value is among the members: one layer behind views stays as large as it is, even
        where sizes of which there is no example are taken to be others.
        """
        return any(self.prices.cost(member).launches for member in option.members - {node})

    def _check_stored(self, node: fx.Node, candidate: Candidate) -> None:
        stored = {self.captured.current(kept) for kept in self.captured.stored}
        if not stored.isdisjoint(candidate.members - {node}):
            raise NotFusable("the forward of a module keeps a value inside the merge as an attribute")

    def _check_ranks(self, form: Form) -> None:
        """A rank that was only assumed: of a module that a run calls several times, all calls must have it."""
        ranks = [self.named[str(symbol.origin[0])] for symbol, _ in form.guards if symbol.stands_for_dims]
        assumed = [node for node in ranks if self.reading.shapes[node][1]]
        if assumed and self.captured.times > 1:
            raise NotFusable("the rank of a tensor inside a module that is called several times is unknown")

    def _reject(self, node: fx.Node, new: Rejected) -> None:
        known = self.rejected.get(node)
        if known is None or self.score(new.after) < self.score(known.after):
            self.rejected[node] = new

    def _check_writes(self, node: fx.Node, candidate: Candidate) -> None:
        for name in candidate.form.terms:
            # What was written before the first of them reads it, the merged layer reads as well.
            first = self.captured.aliases.first_reader(self.named[name], candidate.members)
            writers = self.captured.aliases.writes_between(self.named[name], first, node)
            # A write inside the merge goes with it, unless something else reads what was written.
            if any(w not in candidate.members or self._is_seen(w, node, candidate) for w in writers):
                raise NotFusable("its input is overwritten in place before the merged layer could read it")

    def _is_seen(self, writer: fx.Node, node: fx.Node, candidate: Candidate) -> bool:
        """Whether anything but a merge reads what is written in it, under whatever name."""
        aliases = self.captured.aliases
        names = {n for n in aliases.of(writer) if aliases.order[n] >= aliases.order[writer]} - {node}
        return any(not name.users.keys() <= candidate.members for name in names)

    # --- the plan --------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Choose backwards from the outputs, then drop merges as long as the plan as a whole gets better.

        A shared value is priced per reader, a guess; so merges that overlap, or whose pieces are needed elsewhere
        too, are tried without.
        """
        best = self._written()
        while (better := self._improved(best)) is not None:
            best = better
        # Two merges may only pay together, and be beyond what is allowed each alone: then neither is made.
        while self._rank(best)[0] > 0 and (shared := {site.merge for site, _ in _overlapping(best)}):
            self._forbid(self.banned | shared, self.pinned)
            best = self._written()
        refusals, saved = self._refusals(best), self._saved(best)
        return Plan(best.sites, refusals, best.needed, self.original, best.price, self.rejected, self.idle, saved)

    def _saved(self, plan: _Selection) -> int:
        """The FLOPs that are saved: a piece of several merges, or one that stays, is computed as often."""
        uses = Counter(member for site in plan.sites for member in site.members)
        stay = plan.needed - {site.value for site in plan.sites}
        again = sum((n - 1 + (member in stay)) * self.prices.cost(member).flops for member, n in uses.items())
        return sum(site.before.flops - site.after.flops for site in plan.sites) - again

    @cached_property
    def original(self) -> Cost:
        """The price of the model as it is, as far as it is affine."""
        return sum((self.prices.cost(n) for n in self.captured.graph.nodes), Cost())

    def _written(self, trial: bool = False) -> _Selection:
        """The best choice of merges that can all be written. trial: merges that this choice makes needless are good for
        another.
        """
        while True:
            plan = self._selected()
            needless = {site.merge for site in plan.sites if not self._worth_absorbing(site, plan)}
            refused = set() if needless else {site.merge for site in plan.sites if not self._can_be_written(site)}
            refused |= set() if needless else self._check_even(plan)
            self._forbid(self.banned | needless, self.pinned)
            if gone := refused if trial else refused | needless:
                self._drop(gone)
            elif not needless:
                return plan

    def _drop(self, merges: set[Merge]) -> None:
        """Forget merges that cannot be written."""
        for node, _ in merges:
            self.options[node] = [o for o in self.options[node] if (node, o.members) not in merges]
        self._forget_prices()

    def _forbid(self, banned: set[Merge], pinned: set[fx.Node]) -> None:
        """Choose without these merges, and without those that have one of these pieces inside."""
        if (banned, pinned) != (self.banned, self.pinned):
            self.banned, self.pinned = banned, pinned
            self._forget_prices()

    def _forget_prices(self) -> None:
        """Prices may have counted on what is not allowed any more."""
        self.totals.clear()
        for option in itertools.chain(self.computed.values(), *self.options.values()):
            option.price = None
        for node in self.captured.graph.nodes:
            self.total(node)

    def _can_be_written(self, site: Site) -> bool:
        key = site.value, site.members, site.absorbed
        if key not in self.able:
            try:
                self.writable(site)
            except NotFusable as no:
                self.reading.no(site.value, no.reason)
                self._reject(site.value, Rejected(site.members, site.before, site.after))
                return False
            self.able.add(key)
        return True

    def _worth_absorbing(self, site: Site, plan: _Selection) -> bool:
        try:
            self._check_absorbed(site, plan)
        except NotFusable as no:
            self.reading.no(site.value, no.reason)
            return False
        return True

    def _check_absorbed(self, site: Site, plan: _Selection) -> None:
        """A scale that some reader needs as it is: for the others there is nothing to win by absorbing it."""
        for scale in self._leading(site):
            if scale in plan.needed and is_scale(self.reading, scale):
                raise NotFusable(self.staying.setdefault(scale, self._needed_by(scale, plan)))
        if any(node in self.captured.apart for node in site.core):
            raise NotFusable("a norm keeps its place, and its scale cannot be written elsewhere")

    def _needed_by(self, scale: fx.Node, plan: _Selection) -> str:
        readers = [n for n in scale.users if n in plan.needed and scale in self._best(n).sources]
        # A check is no reader of the user's.
        told = [n for n in readers if not checks(n)] or readers
        names = ", ".join(dict.fromkeys(map(self._name, told)))
        return f"the scale of {self._name(scale)} is also read by what cannot absorb it: {names}"

    def _leading(self, site: Site) -> list[fx.Node]:
        return [] if site.placed is None else leading(self.reading, site.placed, self.named)

    def _name(self, node: fx.Node) -> str:
        if node.op == "output":
            return "the output"
        name = str(getattr(node.target, "__name__", node.target))
        return place_of(node) or f"{name} in {self.captured.path(node)}"

    def _check_even(self, plan: _Selection) -> set[Merge]:
        """Merges of a module that is called at several places, which not all of them merge alike."""
        found = uneven(self.captured, plan.sites)
        for site in found:
            calls = max(self.captured.module_calls[id(self.captured.module(m))] for m in _module_calls(site))
            self.reading.no(site.value, f"its module is called at {calls} places: not all of them merge it alike")
        return {site.merge for site in found}

    def _selected(self) -> _Selection:
        """What is read for its shape only is not kept if the value before an absorbed scale has that shape."""
        needed = {n for n in self.captured.graph.nodes if self._must_stay(n)}
        while True:
            plan, measured = self._selection(set(needed))
            gone = absorbed([(site.members, self._leading(site)) for site in plan.sites], plan.needed)
            if measured <= plan.needed | gone:
                return replace(plan, sites=[replace(site, absorbed=site.members & gone) for site in plan.sites])
            needed |= measured - gone

    def _selection(self, needed: set[fx.Node]) -> tuple[_Selection, set[fx.Node]]:
        """The best way to have these values, and the values whose shape is read."""
        sites: list[Site] = []
        measured: set[fx.Node] = set()
        price = Cost()
        for node in reversed(self.captured.graph.nodes):
            if node in needed:
                option = self._best(node)
                needed.update(self._writes_into(option.sources, node))
                (measured if node in self.reading.sizes else needed).update(option.sources)
                price += option.cost
                if option.placed is not None:
                    sites.append(self._site(node, option, option.placed))
        return _Selection(sites[::-1], needed, price), measured

    def _writes_into(self, sources: tuple[fx.Node, ...], reader: fx.Node) -> Iterator[fx.Node]:
        """In-place operations that make constants what they are when they are read."""
        order = self.captured.aliases.order
        return (w for w, value in self.reading.writes.items() if value in sources and order[w] < order[reader])

    def _site(self, node: fx.Node, option: _Option, placed: Placed) -> Site:
        return Site(node, option.members, tuple(sorted(placed.form.used)), option.before, option.cost, placed)

    def _best(self, node: fx.Node) -> _Option:
        options = [self._as_computed(node)]
        options += [o for o in self.options.get(node, []) if self._allowed(node, o)]
        return min(options, key=self._price)

    def _allowed(self, node: fx.Node, option: _Option) -> bool:
        inside = option.members - {node}
        return (node, option.members) not in self.banned and inside.isdisjoint(self.pinned)

    def _improved(self, plan: _Selection) -> _Selection | None:
        """A better plan without one of the merges that share their pieces, or without all merges through a piece; or
        with one of the merges through a piece again, all of which were given up.
        """
        for banned, pinned, site in self._moves(plan):
            self.tries += 1
            if self.tries > MAX_TRIES:
                return None
            before = self.banned, self.pinned
            self._forbid(self.banned | banned, pinned)
            other = self._written(trial=True)
            if self._rank(other) < self._rank(plan):
                if site is not None:
                    self.reading.no(site.value, "its pieces are needed elsewhere too: merging would add work")
                return other
            self._forbid(*before)
        return None

    def _moves(self, plan: _Selection) -> Iterator[tuple[set[Merge], set[fx.Node], Site | None]]:
        """What to try: merges to ban, the pieces that are pinned then, and the merge that is given up by it."""
        for site, shared in _overlapping(plan):
            yield {site.merge}, self.pinned, site
            yield from ((set(), self.pinned | {piece}, site) for piece in shared)
        for piece in sorted(self.pinned, key=lambda n: n.name):
            merges = set(self._merges_through(piece))
            yield from ((merges - {kept}, self.pinned - {piece}, None) for kept in self._merges_through(piece))

    def _merges_through(self, piece: fx.Node) -> Iterator[Merge]:
        """The merges that have a piece inside."""
        for node, options in self.options.items():
            yield from ((node, option.members) for option in options if piece in option.members - {node})

    def _rank(self, plan: _Selection) -> tuple[float, float]:
        """By how much a plan is worse than the model itself, which it may not be in the end; and its price."""
        stored = plan.price.stored - sum(_bias_numbers(site.placed) for site in plan.sites)
        excess = {FLOPS: -self._saved(plan), STORED: stored - self.original.stored}
        beyond = sum(max(0, more) for what, more in excess.items() if what not in self.may_raise)
        return beyond, self.score(plan.price)

    def _must_stay(self, node: fx.Node) -> bool:
        """Outputs, inputs, and everything that is not known to be free of side effects."""
        if node in self.reading.writes:
            return False
        if node.op in ("output", "placeholder") or (not node.users and node.op.startswith("call")):
            return True
        if node in self.handed:
            return True
        known = node in self.affine or node in self.reading.constants or node in self.reading.sizes
        return not known and node.op != "get_attr"

    @cached_property
    def handed(self) -> set[fx.Node]:
        """Arguments of calls in which nothing reads them: as long as there is the call, they are computed for it."""
        found: set[fx.Node] = set()
        for frame in self.captured.frames:
            made = {node for node in self.captured.made_in[frame] if node.op.startswith("call")}
            given = [leaf for leaf in leaves((frame.args, frame.kwargs)) if isinstance(leaf, fx.Node)]
            found |= {node for node in map(self.captured.current, given) if made and made.isdisjoint(node.users)}
        return found

    def _refusals(self, plan: _Selection) -> dict[fx.Node, list[str]]:
        merged = frozenset().union(*(site.members for site in plan.sites))
        left = plan.needed - merged - {n for n, launches in self.reading.moves.items() if launches == 0}
        return {n: why for n, why in self.reading.reasons.items() if n in left}


_Ranked = tuple[tuple[bool, float], int, Candidate]
"""A form with whether it is slower than its members, its price, and its number."""


@dataclass(frozen=True)
class _Selection:
    """One choice for every value: the merges, the nodes that stay, the price of all affine nodes."""

    sites: list[Site]
    needed: set[fx.Node]
    price: Cost


def _module_calls(site: Site) -> list[fx.Node]:
    return [member for member in site.members if member.op == "call_module"]


def _overlapping(plan: _Selection) -> Iterator[tuple[Site, list[fx.Node]]]:
    """Merges with pieces that another merge has too, or that stay; and these pieces."""
    uses = Counter(member for site in plan.sites for member in site.core)
    for site in reversed(plan.sites):
        inside = sorted(site.core - {site.value}, key=lambda n: n.name)
        shared = [m for m in inside if uses[m] > 1 or m in plan.needed]
        if shared:
            yield site, shared


def _only_views(candidate: Candidate) -> bool:
    """Whether a form only regroups its source; such a form costs nothing to keep."""
    return not any(step.is_layer for trail in _trails(candidate.form) for step in trail)


def _trails(form: Form) -> Iterator[Trail]:
    return (trail for term in form.terms.values() for trail in term.trails if trail)


def _because(option: _Option) -> str:
    """Why a merge adds its bias by a layer of its own, which is in its price."""
    layers = [term.layer for term in option.placed.terms] if option.placed else []
    return next((f"{layer.beside}: " for layer in layers if layer is not None and layer.beside), "")


def _guesses(option: _Option) -> bool:
    """Whether it was only assumed that a size is that of a constant: the constant may be spread over a size of 1."""
    guards = option.placed.guards if option.placed else ()
    return any(not (symbol.traced or symbol.stands_for_dims) for symbol, _ in guards)


def _bias_numbers(placed: Placed | None) -> int:
    """Numbers in biases of weights: a bias added to an existing weight is not counted as growth."""
    layers = [term.layer for term in placed.terms] if placed else []
    return sum(layer.bias for layer in layers if layer is not None)
