"""Choose the merges of one region: the plan of least price that never raises FLOPs or stored numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile

from torch import fx

from ..errors import NotFusable
from ..layers.price import Cost
from ..reasons import Kind, Reason
from .absorb import absorbed, is_scale, leading
from .counting import checks
from .keep import OVERWRITTEN
from .naming import name_of, place_of
from .options import FLOPS, STORED, Option, Options, dearer
from .placing import Placed
from .regions import Region
from .sharing import largest, separable, uneven
from .site import Merge, Rejected, Site

MAX_TRIES = 200
"""How many other plans are tried; the first is nearly always the best."""

ADDS_WORK = Reason("its pieces are needed elsewhere too: merging would add work", Kind.COST)
SAVES_NOTHING = Reason("its pieces are needed elsewhere too: merging would save nothing", Kind.COST)
ADDS_NUMBERS = dearer(STORED).within("its parameters are needed elsewhere too: ")
ADDS_BIAS = dearer(STORED).within("layers without a bias would get one for that of a norm: ")

Writable = Callable[[Site], None]
"""Raises `NotFusable` if a site cannot be written into the model's code."""


@dataclass(frozen=True)
class Selection:
    """One choice for every value: the merges, the nodes that stay, the price of all affine nodes."""

    sites: list[Site]
    needed: set[fx.Node]
    price: Cost


@dataclass(frozen=True)
class Excess:
    """How many FLOPs and stored numbers more than the model itself a plan has; less than 0 if it saves some."""

    flops: int = 0
    stored: int = 0

    def __add__(self, other: Excess) -> Excess:
        return Excess(self.flops + other.flops, self.stored + other.stored)

    def __sub__(self, other: Excess) -> Excess:
        return Excess(self.flops - other.flops, self.stored - other.stored)


@dataclass(eq=False)
class Planner:
    """Chooses the merges of one region.

    plan: the best so far. unwritten: the members of merges that were given up, as they could not be written into the
    code as it is.
    """

    region: Region
    options: Options
    writable: Writable
    unwritten: list[Set[fx.Node]] = field(default_factory=list)
    _able: set[tuple[fx.Node, frozenset[fx.Node], frozenset[fx.Node]]] = field(default_factory=set)
    _staying: dict[fx.Node, Reason] = field(default_factory=dict)
    _costs: dict[fx.Node, Cost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.captured, self.reading = self.options.captured, self.options.reading
        self.plan = self._written()

    def improve(self, others: Excess) -> None:
        """Drop merges as long as the plan as a whole gets better. others: of the other regions.

        A shared value is priced per reader, a guess; so merges that overlap, or whose pieces are needed elsewhere
        too, are tried without.
        """
        tries = iter(range(MAX_TRIES))
        while (better := self._improved(others, tries)) is not None:
            self.plan = better

    def drop_idle(self, others: Excess) -> None:
        """Make no merge that brings nothing, as its pieces have to run anyway. others: of the other regions.

        Only once no merge is tried without another: each of two may bring nothing alone. A view, or what puts parts
        together, may be what a later merge looks through.
        """
        for site in [site for site, _ in _overlapping(self.plan) if site.has_layer]:
            before = self.options.banned, self.options.pinned
            self._forbid(before[0] | {site.merge}, before[1])
            other = self._written(trial=True)
            if self._is_rest(other, others):
                self.plan = other
                self.reading.no(site.value, SAVES_NOTHING)
            else:
                self._forbid(*before)

    def _is_rest(self, other: Selection, others: Excess) -> bool:
        """Whether a plan has only some of the merges, and is as good."""
        only = {site.merge for site in other.sites} < {site.merge for site in self.plan.sites}
        return only and self._rank(other, others) <= self._rank(self.plan, others)

    @property
    def overlapping(self) -> set[Merge]:
        """The merges of the plan with pieces that another merge has too, or that stay, or parameters that stay."""
        return {site.merge for site, _ in self._shared(self.plan)}

    def give_up(self) -> None:
        """Make no merge that overlaps."""
        for site, _ in self._shared(self.plan):
            self._refuse_dearer(site)
        self._forbid(self.options.banned | self.overlapping, self.options.pinned)
        self.plan = self._written()

    @property
    def parted(self) -> bool:
        """Whether several merges are made in the place of one that could not be written."""
        return any(sum(site.members <= whole for site in self.plan.sites) > 1 for whole in self.unwritten)

    # --- one plan ----------------------------------------------------------------------------------

    def _written(self, trial: bool = False) -> Selection:
        """The best choice of merges that can all be written. trial: merges that this choice makes needless are good for
        another.
        """
        while True:
            plan = self._selected()
            needless = {site.merge for site in plan.sites if not self._worth_absorbing(site, plan)}
            refused = set() if needless else {site.merge for site in plan.sites if not self._can_be_written(site)}
            refused |= set() if needless else self._check_even(plan) | self._check_writes(plan)
            self._forbid(self.options.banned | needless, self.options.pinned)
            if gone := refused if trial else refused | needless:
                self.options.drop(gone)
                self.options.price_again(self.region)
            elif not needless:
                return plan

    def _forbid(self, banned: set[Merge], pinned: set[fx.Node]) -> None:
        """Choose without these merges, and without those that have one of these pieces inside."""
        if (banned, pinned) != (self.options.banned, self.options.pinned):
            self.options.banned, self.options.pinned = banned, pinned
            self.options.price_again(self.region)

    def _selected(self) -> Selection:
        """What is read for its shape only is not kept if the value before an absorbed scale has that shape."""
        needed = {n for n in self.region if self.options.must_stay(n)}
        while True:
            plan, measured = self._selection(set(needed))
            ways = [self._leading(site) for site in plan.sites]
            wanted = plan.needed.union(*map(self._read_in_vain, ways))
            gone = absorbed([(site.members, way) for site, way in zip(plan.sites, ways, strict=True)], wanted)
            if measured <= plan.needed | gone:
                return replace(plan, sites=[replace(site, absorbed=site.members & gone) for site in plan.sites])
            needed |= measured - gone

    def _selection(self, needed: set[fx.Node]) -> tuple[Selection, set[fx.Node]]:
        """The best way to have these values, and those whose shape is read. A view of what is needed anyway is free."""
        free: set[fx.Node] = set()
        while True:
            plan, measured = self._covering(set(needed), free)
            more = {site.value for site in plan.sites if self.options.is_there(site, plan.needed)}
            if not more:
                return plan, measured
            free |= more

    def _covering(self, needed: set[fx.Node], free: set[fx.Node]) -> tuple[Selection, set[fx.Node]]:
        """The way to have these values that is best if shared inputs are divided among their readers. free: values that
        stay views.
        """
        sites: list[Site] = []
        measured: set[fx.Node] = set()
        price = Cost()
        for node in reversed(self.region):
            if node in needed:
                option = self.options.as_computed(node) if node in free else self.options.best(node)
                needed.update(self._writes_into(option.sources, node))
                (measured if node in self.reading.sizes else needed).update(option.sources)
                price += option.cost
                if option.placed is not None:
                    sites.append(self._site(node, option, option.placed))
        return Selection(sites[::-1], needed, price), measured

    def _writes_into(self, sources: tuple[fx.Node, ...], reader: fx.Node) -> Iterator[fx.Node]:
        """In-place operations that make constants what they are when they are read."""
        order = self.captured.aliases.order
        return (w for w, value in self.reading.writes.items() if value in sources and order[w] < order[reader])

    def _site(self, node: fx.Node, option: Option, placed: Placed) -> Site:
        shapes, named = self.options.reading.shapes, self.options.captured.named
        sizes = {name: shapes[named[name]][0] for name in placed.form.terms}
        rules = tuple(sorted(placed.form.used))
        return Site(node, option.members, rules, option.before, option.cost, placed, sizes=sizes)

    # --- what a plan must respect ------------------------------------------------------------------

    def _can_be_written(self, site: Site) -> bool:
        key = site.value, site.members, site.absorbed
        if key not in self._able:
            try:
                self.writable(site)
            except NotFusable as no:
                self.reading.no(site.value, no.reason)
                self.options.reject(site.value, Rejected(site.members, site.before, site.after))
                self.unwritten.append(site.members)
                return False
            self._able.add(key)
        return True

    def _worth_absorbing(self, site: Site, plan: Selection) -> bool:
        try:
            self._check_absorbed(site, plan)
        except NotFusable as no:
            self.reading.no(site.value, no.reason)
            return False
        return True

    def _check_absorbed(self, site: Site, plan: Selection) -> None:
        """A scale that some reader needs as it is: for the others there is nothing to win by absorbing it."""
        way = self._leading(site)
        wanted = plan.needed.union(self._read_in_vain(way))
        for scale in way:
            if scale in wanted and is_scale(self.reading, scale):
                raise NotFusable(self._staying.setdefault(scale, self._needed_by(scale, plan)))
        if any(node in self.captured.apart for node in site.core):
            raise NotFusable("a norm keeps its place, and its scale cannot be written elsewhere", Kind.SCALE)

    def _needed_by(self, scale: fx.Node, plan: Selection) -> Reason:
        readers = [n for n in scale.users if n in plan.needed and scale in self.options.best(n).sources]
        if scale not in plan.needed:
            kept = (
                f"the scale of {self._name(scale)} keeps its place: code computes something else that may be asked for"
            )
            return Reason(kept, Kind.SCALE)
        # A check is no reader of the user's.
        told = [n for n in readers if not checks(n)] or readers
        names = ", ".join(dict.fromkeys(map(self._name, told)))
        return Reason(f"the scale of {self._name(scale)} is also read by what cannot absorb it: {names}", Kind.SCALE)

    def _read_in_vain(self, way: Sequence[fx.Node]) -> set[fx.Node]:
        """Of what a merge begins with: that with which, or with a view of which, code computes what nothing reads.

        It still does, for other arguments or for an attribute, and has to get the scaled value.
        """
        unused = self.captured.unused
        return unused.in_the_way({node for k, node in enumerate(way) if not unused.inputs.isdisjoint(way[k:])})

    def _leading(self, site: Site) -> list[fx.Node]:
        """Up to a module that the merge calls twice: in its place cannot be both the scale and what absorbs it."""
        found = [] if site.placed is None else leading(self.reading, site.placed, self.captured.named)
        calls = Counter(map(self.captured.module, _module_calls(site)))
        return [*takewhile(lambda n: n.op != "call_module" or calls[self.captured.module(n)] < 2, found)]

    def _name(self, node: fx.Node) -> str:
        if node.op == "output":
            return "the output"
        name = name_of(node)
        if node.op == "call_module":
            # Without a place of its own it stands for a merge.
            name = f"the merged {type(self.captured.module(node)).__name__}"
        return place_of(node) or f"{name} in {self.captured.path(node)}"

    def _check_even(self, plan: Selection) -> set[Merge]:
        """Merges of a module that is called at several places, which not all of them merge alike."""
        separate = set(map(id, self._separate(plan)))
        found = largest([site for site in uneven(self.captured, plan.sites) if id(site) not in separate])
        for site in found:
            calls = max(self.captured.module_calls[id(self.captured.module(m))] for m in _module_calls(site))
            reason = f"its module is called at {calls} places: not all of them merge it alike"
            self.reading.no(site.value, Reason(reason, Kind.SHARED))
        return {site.merge for site in found}

    def _separate(self, plan: Selection) -> list[Site]:
        """Merges of a module that goes on being called elsewhere."""
        found = uneven(self.captured, plan.sites)
        return [site for site in found if separable(self.captured, site.members, site.absorbed)]

    def _check_writes(self, plan: Selection) -> set[Merge]:
        """Merges that take in a write into what they read, where others go on reading what was written."""
        aliases = self.captured.aliases
        found = [site for site in plan.sites if any(self._stays_written(w, site, plan) for w in aliases.writers)]
        for site in found:
            self.reading.no(site.value, OVERWRITTEN)
        return {site.merge for site in found}

    def _stays_written(self, writer: fx.Node, site: Site, plan: Selection) -> bool:
        aliases = self.captured.aliases
        inside = writer in site.members and any(self.captured.named[name] in aliases.of(writer) for name in site.sizes)
        return inside and not plan.needed.isdisjoint(aliases.since(writer) - {site.value})

    # --- better plans ------------------------------------------------------------------------------

    def _improved(self, others: Excess, tries: Iterator[int]) -> Selection | None:
        """A better plan: without one of the merges that share their pieces, or without all merges through a piece,
        whichever is best; or with one of the merges through a piece again, all of which were given up.
        """
        before = self.options.banned, self.options.pinned
        for site, moves in self._moves():
            best, state = self.plan, before
            for (banned, pinned), _ in zip(moves, tries, strict=False):
                self._forbid(before[0] | banned, pinned)
                other = self._written(trial=True)
                if self._rank(other, others) < self._rank(best, others):
                    best, state = other, (self.options.banned, self.options.pinned)
            self._forbid(*state)
            if best is not self.plan:
                if site is not None:
                    self._refuse_dearer(site)
                return best
        return None

    def _refuse_dearer(self, site: Site) -> None:
        if not any(other.merge == site.merge for other in self._separate(self.plan)):
            self.reading.no(site.value, self._why_dearer(site))
            return
        for member in _module_calls(site):
            calls = self.captured.calls_left(id(self.captured.module(member)))
            if calls > 1:
                reason = dearer(STORED).within(f"its module is called at {calls} places, and stays for others: ")
                self.reading.no(member, reason)
                if member is not site.value:
                    self.reading.no(site.value, reason.beside(self._name(member)))

    def _why_dearer(self, site: Site) -> Reason:
        if any(other.merge == site.merge for other, _ in _overlapping(self.plan)):
            return ADDS_WORK
        return ADDS_BIAS if self._within_norms(site) else ADDS_NUMBERS

    def _moves(self) -> Iterator[tuple[Site | None, list[tuple[set[Merge], set[fx.Node]]]]]:
        """What to try instead of each merge that shares its pieces, and of each piece that no merge may have inside:
        merges to ban, and the pieces that are pinned then.
        """
        pinned = self.options.pinned
        for site, shared in self._shared(self.plan):
            yield site, [({site.merge}, pinned), *((set[Merge](), pinned | {piece}) for piece in shared)]
        for piece in sorted(pinned.intersection(self.region), key=lambda n: n.name):
            merges = set(self.options.through(piece, self.region))
            yield None, [(merges - {kept}, pinned - {piece}) for kept in self.options.through(piece, self.region)]

    def _rank(self, plan: Selection, others: Excess) -> tuple[float, float]:
        """By how much a plan is worse than the model itself, which it may not be in the end; and its price."""
        return beyond(self._excess(plan) + others, self.options), self.options.score(plan.price)

    def _shared(self, plan: Selection) -> Iterator[tuple[Site, list[fx.Node]]]:
        """Merges with pieces or parameters that are not theirs alone; and these pieces."""
        found = dict.fromkeys(site.merge for site, _ in _overlapping(plan))
        yield from _overlapping(plan)
        separate = {site.merge for site in self._separate(plan)}
        for site in plan.sites:
            stays = self.options.prices.staying(site.members - plan.needed | {site.value}) or site.merge in separate
            if site.merge not in found and stays:
                yield site, []
            if (norms := self._within_norms(site)) and self._excess(plan).stored > 0:
                yield site, sorted(norms, key=lambda n: n.name)

    def _within_norms(self, site: Site) -> Set[fx.Node]:
        """The scales and shifts that norms do as they normalise, of those that a merge absorbs."""
        return site.members & self.captured.apart.keys()

    @property
    def excess(self) -> Excess:
        """Of the best plan so far."""
        return self._excess(self.plan)

    def _excess(self, plan: Selection) -> Excess:
        stay = plan.needed - {site.value for site in plan.sites}
        gone = set[fx.Node]().union(*(site.members for site in plan.sites)) - stay
        stored = plan.price.stored + self.options.prices.staying(gone)
        stored += sum(self.options.prices.repeated(site.members) for site in plan.sites)
        left, kept = self._left_to_others(plan, stay)
        stored += kept + sum(map(self.options.prices.stored, self._uncalled(gone | plan.needed)))
        rows = [site for site in plan.sites if not self._within_norms(site)]
        own = gone & set[fx.Node]().union(*(site.members for site in rows)) - left
        stored -= self.options.added_bias((site.placed for site in rows), own)
        return Excess(-round(sum(self._saved(plan))), stored - self.original.stored)

    def _uncalled(self, known: Set[fx.Node]) -> list[fx.Node]:
        """The calls of layers that nothing needs any more, with a plan that has these values: the layers stay."""
        calls = (n for n in self.region if n.op == "call_module" and n not in known)
        return [n for n in calls if n.target not in self.captured.held]

    def _left_to_others(self, plan: Selection, stay: Set[fx.Node]) -> tuple[set[fx.Node], int]:
        """The calls that go of modules that other calls need, and how many more numbers there are than the calls were
        said to save: each counts all numbers of its module.
        """
        members = [m for site in self._separate(plan) for m in site.members if m.op == "call_module"]
        left, kept = set[fx.Node](), 0
        for module in {self.captured.module(member): None for member in members}:
            calls = [n for n in self.region if n.op == "call_module" and self.captured.module(n) is module]
            staying = [n for n in calls if n in stay]
            kept += (len(calls) - max(1, len(staying))) * self.options.prices.stored(calls[0])
            left |= set(calls) if staying else set()
        return left, kept

    @property
    def sites(self) -> list[Site]:
        """The merges of the best plan so far, each with what it saves."""
        found = zip(self.plan.sites, self._saved(self.plan), strict=True)
        return [replace(site, saved=saved) for site, saved in found]

    def _saved(self, plan: Selection) -> Iterator[float]:
        """The FLOPs that each merge saves: a piece of several merges, or one that stays, is computed as often."""
        uses = Counter(member for site in plan.sites for member in site.members)
        stay = plan.needed - {site.value for site in plan.sites}
        again = {m: (n - 1 + (m in stay)) / n for m, n in uses.items() if n > 1 or m in stay}
        for site in plan.sites:
            pins = site.placed.form.pins if site.placed is not None else {}
            repeated = site.members & again.keys()
            more = sum(again[m] * self.options.prices.cost_inside(m, pins).flops for m in repeated)
            yield site.before.flops - site.after.flops - more

    @cached_property
    def original(self) -> Cost:
        """The price of the region as it is, as far as it is affine."""
        return sum(map(self._cost, self.region), Cost())

    def _cost(self, node: fx.Node) -> Cost:
        if node not in self._costs:
            self._costs[node] = self.options.prices.cost(node)
        return self._costs[node]


def beyond(excess: Excess, options: Options) -> int:
    """How much of an excess is not allowed."""
    more = {FLOPS: excess.flops, STORED: excess.stored}
    return sum(max(0, number) for what, number in more.items() if what not in options.may_raise)


def _module_calls(site: Site) -> list[fx.Node]:
    return [member for member in site.members if member.op == "call_module"]


def _overlapping(plan: Selection) -> Iterator[tuple[Site, list[fx.Node]]]:
    """Merges with pieces that another merge has too, or that stay; and these pieces."""
    uses = Counter(member for site in plan.sites for member in site.core)
    for site in reversed(plan.sites):
        inside = sorted(site.core - {site.value}, key=lambda n: n.name)
        shared = [m for m in inside if uses[m] > 1 or m in plan.needed]
        if shared:
            yield site, shared
