"""Which forms of a value are worth keeping: the cheapest, and those that reach back furthest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

from torch import fx

from ..algebra.form import Form, Trail
from ..algebra.operator import Role
from ..algebra.probe import PROBE
from ..algebra.size import is_of_rank
from ..errors import NotFusable
from ..layers.price import Cost
from ..layers.windows import is_uneven
from ..layers.writers import plan
from ..reasons import Kind, Reason
from .absorb import is_scale
from .cuts import check_calls
from .memo import identity
from .options import FLOPS, OPERATIONS, STORED, Option, Options, dearer
from .placing import Means, Placed, place, spreads
from .ranks import ROWS
from .reading import Candidate
from .site import Rejected

OVERWRITTEN = Reason("its input is overwritten in place before the merged layer could read it", Kind.IN_PLACE)
"""The reason why a merge across a write into what it reads is not made."""
NO_LAYER = float("inf")
"""The price of a form that cannot be written."""
CHEAPEST, DEEPEST = 2, 2
"""How many forms of a value are kept: the cheapest ones, and those that reach back furthest."""
FEW = 4
"""How many sources a form may have, whatever it costs; and by how many operations one of more may exceed what it saves.
Each layer of a residual net could be read as one of all that came before it, which never pays, and takes its time.
"""


@dataclass(eq=False)
class Keeper:
    """Prices the forms of each value as they are read, offers those that pay as options, and keeps few."""

    options: Options

    def __post_init__(self) -> None:
        self.captured, self.reading = self.options.captured, self.options.reading
        self.named = self.captured.named
        weigh, flags = self.options.prices.weigh, product((False, True), repeat=2)
        self._means = {(u, t): Means(weigh, partial(plan, uneven=u, transposed=t), lean=u) for u, t in flags}

    def keep(self, node: fx.Node, found: list[Candidate]) -> list[Candidate]:
        """Keep the cheapest form, and per further distinct set of sources the deepest."""
        self.options.affine |= {node} if found else set()
        if found and not any(steps[-1].views for c in found for steps in _trails(c.form)):
            self.options.prices.passes.add(node)
        kept = self._kept(self._ranked(node, found))
        self.options.total(node)
        return kept

    def _ranked(self, node: fx.Node, found: list[Candidate]) -> list[_Ranked]:
        merges = self.options.merges[node] = []
        folds = self.reading.arithmetic(node) > 0
        ranked: list[_Ranked] = []
        for number, candidate in enumerate(found):
            alone = len(candidate.members) == 1
            if alone and not folds:
                ranked.append(_Ranked(candidate, number, False, self.options.price(self.options.as_computed(node))))
                continue
            option = self._option(node, candidate)
            slower = option is not None and any(True for _ in self._raised(option))
            if alone or not self._never_pays(node, candidate, option, slower):
                price = NO_LAYER if option is None else self.options.price(option)
                ranked.append(_Ranked(candidate, number, slower, price))
            if option is not None and not (alone and _guesses(option)) and self._pays(node, option):
                merges.append(option)
        return ranked

    def _never_pays(self, node: fx.Node, candidate: Candidate, option: Option | None, slower: bool) -> bool:
        """Whether a form of many sources costs so much that no layer after it makes up for that."""
        terms = candidate.form.terms.values()
        if len(terms) <= FEW:
            return False
        if slower:
            return True
        # What cannot be written is, further on, at best a layer per source, and their sum.
        sums = sum(not term.op.is_identity for term in terms) + len(terms) - 1
        own = (m for m in candidate.members if m is node or m.users.keys() <= candidate.members)
        saved = sum(self.options.prices.cost(member).launches for member in own)
        return (sums if option is None else option.cost.launches) > saved + FEW

    def _kept(self, ranked: list[_Ranked]) -> list[Candidate]:
        """The forms that a merge further on may be made of."""
        found = _cheapest(ranked)
        reach = {each: self._sources(each.form) for each in found}
        deep = sorted(found, key=lambda e: reach[e][0])
        # A view that is read deeper than a merge may reach is of no use.
        views = sorted((e for e in deep if _only_views(e.form)), key=lambda e: not e.is_layer)
        layers = [e for e in deep if e not in views]
        cheap = sorted(layers, key=lambda e: e.rank)
        # The plainest, which begins right before the value, is what a merge falls back on.
        near = sorted(layers, key=lambda e: len(e.candidate.members))
        # Of a sum that grows layer by layer all terms have to reach back.
        whole = sorted(layers, key=lambda e: reach[e])
        # The deepest may be no layer at all; then the deepest that is one can still take what comes.
        able = [e for e in layers if e.is_layer]
        best = (*cheap[:CHEAPEST], *layers[:DEEPEST], *whole[:1], *able[:DEEPEST], *near[:1])
        kept = [e for e in layers if e in best]
        # A scale with several readers may have to stay; then a merge begins behind it.
        behind = [e for e in layers if e not in kept and any(map(self._is_shared_scale, e.form.terms))]
        # Branches can be added over the value at which they part; a row of layers may only pay as one of them.
        parting = [e for some in (able, views) for e in [e for e in some if all(map(self._is_fork, e.form.terms))][-1:]]
        # The deepest may need a guard that cannot be written where it is read; then a nearer one does without.
        free = _unguarded(views[:1], views) + _unguarded(kept, [e for e in layers if e not in behind[:1]])
        found = [*kept, *behind[:1], *views[:1], *free]
        return [each.candidate for each in (*found, *(e for e in parting if e not in found))]

    def _is_fork(self, name: str) -> bool:
        return len(self.named[name].users) > 1

    def _is_shared_scale(self, name: str) -> bool:
        node = self.named[name]
        return len(node.users) > 1 and is_scale(self.reading, node)

    def _sources(self, form: Form) -> list[int]:
        """How far back a form reaches: the positions of its sources, of a part that of the whole; the latest first."""
        order = self.captured.aliases.order
        return sorted((order[self._whole(self.named[name])] for name in form.terms), reverse=True)

    def _whole(self, node: fx.Node) -> fx.Node:
        return self._whole(node.all_input_nodes[0]) if self.reading.moves.get(node) == 0 else node

    # --- forms as options --------------------------------------------------------------------------

    def _option(self, node: fx.Node, candidate: Candidate) -> Option | None:
        option = self._planned(node, candidate, uneven=False)
        if option is None or not _is_uneven(candidate.form) or not any(True for _ in self._raised(option)):
            return option
        return self._planned(node, candidate, uneven=True)

    def _planned(self, node: fx.Node, candidate: Candidate, uneven: bool) -> Option | None:
        """How a form would be written. uneven: whether one end of an input may be padded by a pass of its own."""
        prices = self.options.prices
        how = uneven, not self._transposed.isdisjoint(candidate.members)
        key = "place", candidate, *how, *(identity(prices.sizes_of(name)) for name in candidate.form.terms)
        try:
            placed = self.reading.memo.ask(key, lambda: place(candidate.form, self._means[how], prices.sizes_of))
            self._check(node, candidate)
            self._check_memory(node, placed)
        except NotFusable as no:
            if len(candidate.members) > 1:
                matrix = "readable only as a full matrix on a fixed size; " if PROBE in candidate.form.used else ""
                self.reading.no(node, no.reason.within(matrix))
            return None
        sources = [self.named[name] for name in candidate.form.terms]
        sources += self._kept_inputs(candidate, placed)
        pins = candidate.form.pins
        before = sum((prices.cost_inside(m, pins) for m in candidate.members), Cost())
        before += Cost(stored=-prices.repeated(candidate.members))
        return Option(placed.cost, tuple(dict.fromkeys(sources)), candidate.members, placed, before)

    @cached_property
    def _transposed(self) -> set[fx.Node]:
        """The transposed convolutions of the graph."""
        return {node for node in self.captured.graph.nodes if spreads(self.captured, node)}

    def _kept_inputs(self, candidate: Candidate, placed: Placed) -> list[fx.Node]:
        """What the views that stay need besides the value they view: sizes."""
        found: list[fx.Node] = []
        for term in placed.terms:
            nodes = [self.named[step.node] for step in term.trail if step.views and not step.spelled]
            on_trail = {self.named[step.node] for step in term.trail} | {self.named[term.source]}
            kept = ((node, n) for node in nodes for n in node.all_input_nodes if n not in on_trail)
            found += [n for node, n in kept if node.meta.get(ROWS) is not n]
        return found

    def _pays(self, node: fx.Node, option: Option) -> bool:
        """Never slower: neither FLOPs nor stored numbers may rise (a bias added to a weight is exempt)."""
        before, after, score = option.before, option.cost, self.options.score
        for what, old, new in self._raised(option):
            if len(option.members) > 1:
                factor = f"{new / old:.{1 if new > 1.05 * old else 3}f}x" if old else f"from 0 to {new}"
                self._too_dear(node, option, dearer(f"{what} {factor}"))
            return False
        # Fewer numbers alone (a bias moved elsewhere) is no merge: work must disappear.
        moved = _is_as_few(option) and after.flops < before.flops and self._moves_work(node, option)
        less = after.launches < before.launches or moved
        pays = less and score(after) < score(before)
        if not pays and _because(option) is not None:
            self._too_dear(node, option, Reason("that costs more than the merge saves", Kind.COST))
        elif not pays and self._moves_work(node, option):
            self.options.idle.add(node)
        return pays

    def _too_dear(self, node: fx.Node, option: Option, why: Reason) -> None:
        because = _because(option)
        self.reading.no(node, why if because is None else because.leading_to(why))
        self.options.reject(node, Rejected(option.members, option.before, option.cost))

    def _raised(self, option: Option) -> Iterator[tuple[str, int, int]]:
        """What rises that may not: its name, from what, to what."""
        before, after = option.before, option.cost
        if after.flops > before.flops and FLOPS not in self.options.may_raise:
            yield FLOPS, before.flops, after.flops
        # The norm stays: a bias that it had for nothing would become a pass of the layer.
        within = option.members & self.captured.apart.keys()
        stored = after.stored - (0 if within else self.options.added_bias([option.placed], option.members))
        if stored > before.stored and STORED not in self.options.may_raise:
            yield STORED, before.stored, stored
        # What was taken apart of a norm is no operation of its own: the norm does it as it normalises.
        run = before.launches - sum(self.options.prices.cost(part).launches for part in within)
        if within and after.launches > run and OPERATIONS not in self.options.may_raise:
            yield OPERATIONS, run, after.launches

    def _moves_work(self, node: fx.Node, option: Option) -> bool:
        """Whether a layer before the value is among the members: one layer behind views stays as large as it is, even
        where sizes of which there is no example are taken to be others.
        """
        return any(self.options.prices.cost(member).launches for member in option.members - {node})

    # --- what a merge must respect -----------------------------------------------------------------

    def _check(self, node: fx.Node, candidate: Candidate) -> None:
        check_calls(self.captured, candidate.members)
        self._check_stored(node, candidate)
        self._check_raised(candidate)
        self._check_ranks(candidate.form)
        self._check_writes(node, candidate)

    def _check_stored(self, node: fx.Node, candidate: Candidate) -> None:
        stored = {self.captured.current(kept) for kept in self.captured.code.stored}
        if not stored.isdisjoint(candidate.members - {node}):
            raise NotFusable(
                "the forward of a module keeps a value inside the merge, as an attribute or in an argument", Kind.CODE
            )

    def _check_raised(self, candidate: Candidate) -> None:
        """What a scale is put back behind, if nothing absorbs it, stays."""
        raised = self.captured.raised.intersection(self.named[name] for name in candidate.form.terms)
        if any(not candidate.members.isdisjoint(scale.users) for scale in raised):
            raise NotFusable("the scale of a part keeps its place", Kind.SCALE)

    def _check_ranks(self, form: Form) -> None:
        """A rank that was only assumed: of a module that a run calls several times, all calls must have it."""
        ranks = [self.named[str(symbol.origin[0])] for symbol, _ in form.guards if symbol.stands_for_dims]
        assumed = [node for node in ranks if self.reading.shapes[node][1]]
        if assumed and self.captured.origin.times > 1:
            raise NotFusable("the rank of a tensor inside a module that is called several times is unknown", Kind.SIZES)

    def _check_writes(self, node: fx.Node, candidate: Candidate) -> None:
        for name in candidate.form.terms:
            # What was written before the first of them reads it, the merged layer reads as well.
            first = self.captured.aliases.first_reader(self.named[name], candidate.members)
            writers = self.captured.aliases.writes_between(self.named[name], first, node)
            # A write inside the merge goes with it, unless something else reads what was written.
            if any(w not in candidate.members or self._is_seen(w, node, candidate) for w in writers):
                raise NotFusable(OVERWRITTEN)

    def _check_memory(self, node: fx.Node, placed: Placed) -> None:
        """A value of which only a view of another is left is in its memory: nothing may be written into either."""
        (first, *others), aliases = placed.terms, self.captured.aliases
        source = self.named[first.source]
        if others or first.layer is not None or source in aliases.of(node):
            return
        names = aliases.of(node) | aliases.of(source)
        given = any(n.op == "placeholder" for n in aliases.of(source))
        if given and any(user.op == "output" for n in aliases.of(node) for user in n.users):
            raise NotFusable(
                "nothing would be left but the input of the model, which is overwritten if the result is", Kind.IN_PLACE
            )
        if any(w in names and aliases.order[w] > aliases.order[node] for w in aliases.writers):
            raise NotFusable(
                "it would be a view of a value, and is overwritten in place later, or the value is", Kind.IN_PLACE
            )

    def _is_seen(self, writer: fx.Node, node: fx.Node, candidate: Candidate) -> bool:
        """Whether anything but a merge reads what is written in it, under whatever name."""
        names = self.captured.aliases.since(writer) - {node}
        return any(not name.users.keys() <= candidate.members for name in names)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """A form among the others of a value. number: which of them it is. slower: whether it is than its members. price:
    what it costs, or that it is no layer.
    """

    candidate: Candidate
    number: int
    slower: bool
    price: float

    @property
    def form(self) -> Form:
        return self.candidate.form

    @property
    def is_layer(self) -> bool:
        return self.price != NO_LAYER

    @property
    def rank(self) -> tuple[bool, float, int]:
        """By which the cheapest comes first."""
        return self.slower, self.price, self.number


def _cheapest(ranked: Iterable[_Ranked]) -> list[_Ranked]:
    """Of the forms over the same sources one."""
    found: dict[frozenset[tuple[str, bool]], _Ranked] = {}
    for each in ranked:
        key = frozenset((name, term.op.resamples) for name, term in each.form.terms.items())
        if key not in found or each.rank < found[key].rank:
            found[key] = each
    return [*found.values()]


def _unguarded(kept: Sequence[_Ranked], all_of_them: Sequence[_Ranked]) -> list[_Ranked]:
    """The deepest that needs no guard, if some of those kept do; or else one that needs none of a size."""
    others = [each for each in all_of_them if each not in kept]
    free = [each for each in others if not each.form.guards] if any(each.form.guards for each in kept) else []
    sized = any(map(_guards_sizes, kept))
    return (free or [each for each in others if sized and not _guards_sizes(each)])[:1]


def _guards_sizes(each: _Ranked) -> bool:
    """Whether a form holds for some sizes only, and not just for a rank."""
    return not all(is_of_rank(symbol, pin) for symbol, pin in each.form.guards)


def _only_views(form: Form) -> bool:
    """Whether a form only regroups its source, and is no matrix; such a form costs nothing to keep."""
    matrix = any(term.op.has(Role.IN, Role.OUT) for term in form.terms.values())
    return not (matrix or any(step.is_layer for trail in _trails(form) for step in trail))


def _trails(form: Form) -> Iterator[Trail]:
    return (trail for term in form.terms.values() for trail in term.trails if trail)


def _is_uneven(form: Form) -> bool:
    """Whether a window of it is padded by more at one end than at the other."""
    return any(is_uneven(link) for term in form.terms.values() for link in term.op.links)


def _because(option: Option) -> Reason | None:
    """Why a merge adds its bias by a layer of its own, which is in its price."""
    layers = [term.layer for term in option.placed.terms] if option.placed else []
    return next((layer.beside for layer in layers if layer is not None and layer.beside is not None), None)


def _is_as_few(option: Option) -> bool:
    """Whether a merge stays one layer, or one for each part of a concatenation with no launch more. (A layer over a
    concatenation that becomes several, and their sum, must save launches.)
    """
    placed = option.placed
    if placed is None or placed.dim is None:
        return placed is not None and len(placed.terms) == 1
    return option.cost.launches <= option.before.launches


def _guesses(option: Option) -> bool:
    """Whether it was only assumed that a size is that of a constant: the constant may be spread over a size of 1."""
    guards = option.placed.guards if option.placed else ()
    return any(not (symbol.traced or is_of_rank(symbol, pin)) for symbol, pin in guards)
