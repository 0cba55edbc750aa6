"""One captured part of a model: simplify its graph, then choose, write and prove merges until none is left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, fx

from .algebra.size import Symbol
from .capture.captured import Captured
from .engine.apart import may_be_apart, name_apart, name_together, partings
from .engine.borders import join_borders
from .engine.choose import choose
from .engine.dead import computing, drop_dead
from .engine.identities import drop_identities
from .engine.literals import fold_sizes
from .engine.memo import Memo
from .engine.norms import has_norms, take_apart
from .engine.overwrites import follow_overwrites
from .engine.patterns import next_site
from .engine.raising import Raised, lower_scales, may_be_scaled, raise_scales, scaled_parts, takes_parts
from .engine.ranks import tell_ranks
from .engine.reader import read
from .engine.reading import Candidate, Reading
from .engine.regrouped import sum_before_regrouping
from .engine.scope import Everything, Scope
from .engine.site import Plan
from .engine.sizes import read_early
from .engine.stacking import stack, unstack
from .layers.normalize import NORM_INTO_LINEAR
from .layers.parts import STACK_LAYERS
from .layers.price import OBJECTIVES
from .layers.registry import READERS
from .pieces import prove_raised, prover
from .reasons import Reason
from .recipes.tape import Tape
from .record import pictures
from .reporting import Picture
from .request import Request
from .trial import Trials
from .work import Work
from .write.round import Round, unproved
from .write.splice import Written
from .write.write import Writer


def read_as_it_is(captured: Captured, memo: Memo | None = None) -> Reading:
    """A reading for prices and sizes only: each node over its own inputs, whether it may be merged or not."""

    def none(node: fx.Node, found: list[Candidate]) -> list[Candidate]:
        return []

    return read(captured, READERS, Everything(captured, frozenset()), none, Reading(captured, memo=memo or Memo()))


def follow_assignments(captured: Captured) -> None:
    """Make values of what code assigns to parts of a tensor."""
    join_borders(captured)
    follow_overwrites(captured)


def simplify(reading: Reading) -> None:
    """Take out of the graph what stands between layers and computes nothing."""
    captured = reading.captured
    fold_sizes(captured, reading)
    drop_identities(captured, reading)
    drop_dead(captured, READERS, reading)
    read_early(captured, reading)
    sum_before_regrouping(captured, reading)


@dataclass(eq=False)
class Merging:
    """Finds, writes and proves the merges of one captured part.

    assumed: the sizes that the last reading had to assume. tape: records how the new weights are computed. swapped:
    receives the paths of layers merged in the user's model; None if the part is of a copy. as_it_is: a reading of the
    graph that is still up to date, if there is one. shown: the pictures of each merge, by its identity. memo: what all
    readings found out.
    """

    captured: Captured
    request: Request
    assumed: Mapping[Symbol, int]
    tape: Tape
    swapped: list[str] | None
    as_it_is: Reading | None = None
    trials: Trials = field(default_factory=Trials)
    shown: dict[int, tuple[Picture, ...]] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo)

    def __post_init__(self) -> None:
        judge = self.trials.judge if self.request.measured else _unjudged
        as_graph = self.request.as_graph
        self.writer = Writer(self.captured, as_graph, judge, self.tape, self.swapped)

    def run(self) -> Work:
        """Graph rules first, then merges. Around these, norms are split into a normalisation and a scale, layers that
        read one value are stacked (`objective="launches"`), and scales of parts go to where a layer absorbs them.
        """
        self.tape.know(value for value in self.captured.held.values() if isinstance(value, Tensor))
        said = self._apply_patterns()
        if takes_parts(self.captured):
            # A layer would be split into one per part, if each part has a scale.
            self._merge_raised(None)
        if self.swapped is not None:
            # Norms are joined at the end only, so what needs none taken apart comes first.
            self._merge()
        self._take_norms_apart(said)
        plan, reading = self._merge(self._merge_apart())
        if self.request.objective == "launches" and STACK_LAYERS in self._scope.permitted:
            stacks = stack(self.captured, self._scope, self._read())
            _, reading = self._merge()
            unstack(self.captured, stacks)
        plan, reading = self._merge_raised((plan, reading)) or (plan, reading)
        seen = [self.shown.get(id(one), ()) for one, _ in self.writer.done]
        model, done = self.writer.finish()
        return Work(model, self.captured, plan, said, reading, done, seen, self.trials.found)

    @property
    def _scope(self) -> Scope:
        """What may be merged of the graph as it is now."""
        return self.request.scope(self.captured)

    def _read(self) -> Reading:
        """A reading of the graph as it is. What readers ask of the weights is recorded: what they say is kept."""
        with self.tape:
            return read_as_it_is(self.captured, self.memo)

    def _take_norms_apart(self, said: dict[fx.Node, list[Reason]]) -> None:
        scope = self._scope
        if NORM_INTO_LINEAR in scope.permitted and has_norms(self.captured):
            reading = self.as_it_is or self._read()
            with self.tape:
                take_apart(self.captured, scope, reading, lambda n, why: said.setdefault(n, []).append(why))

    def _apply_patterns(self) -> dict[fx.Node, list[Reason]]:
        """Graph rules, one match at a time, on the graph as it is then; returns why some did not apply."""
        rules = [rule for rule in self.request.rules if rule.pattern is not None]
        said: dict[fx.Node, list[Reason]] = {}
        seen: set[tuple[str, str]] = set()
        while rules:
            scope = self._scope
            with self.tape:
                site = next_site(self.captured, scope, rules, seen, lambda n, why: said.setdefault(n, []).append(why))
            if site is None:
                break
            self.writer.round = self._round(self._read(), said)
            self.writer.write_pattern(site)
            self.writer.erase_dead()
            self.captured.forget()
        return said

    def _choose(self) -> tuple[Plan, Reading]:
        """The best merges of the graph as it is."""
        writable = self.writer.attempt if self.request.measured else self.writer.check
        self.writer.erase_dead()
        tell_ranks(self.captured)
        self.captured.forget()
        scope, objective = self._scope, self.request.objective
        found = choose(self.captured, READERS, scope, writable, objective, self.tape, self.assumed, self.memo)
        self.assumed = found[1].assumed
        return found

    def _merge(self, chosen: tuple[Plan, Reading] | None = None) -> tuple[Plan, Reading]:
        """Choose and write until there is nothing left. chosen: what to begin with."""
        writer, objective = self.writer, self.request.objective
        prices, parted = set[float](), False
        self.as_it_is = None
        while True:
            # A merged layer may merge again, now that there is less to choose from.
            (plan, reading), chosen = chosen or self._choose(), None
            parted |= plan.parted
            writer.round = replace(self._round(reading, plan.refusals), see=partial(self._see, reading))
            reading.spend()
            if self.swapped is not None:
                # What is known refers to layers that are freed one by one.
                self.memo.found.clear()
            # The price of unknown sizes is a guess, and may rise once a merge is written. So the loop ends when a price
            # comes a second time.
            price, failed = OBJECTIVES[objective](plan.before), len(writer.failed)
            done = price in prices or not writer.write(plan.sites)
            if len(writer.failed) > failed:
                # Some of its layers may merge without the others.
                prices = set()
            elif done:
                return replace(plan, parted=parted), reading
            else:
                prices.add(price)

    def _merge_apart(self) -> tuple[Plan, Reading] | None:
        """Norms behind a concatenation or a sum whose parts are computed from one value, and are not one layer, go into
        each part, before another merge takes a part away. If there are none, what was chosen to see that, if anything.
        """
        found = partings(self.captured, self._read()) if may_be_apart(self.captured) else []
        if not found:
            return None
        plan, reading = self._choose()
        found = [each for each in found if not any(each.members <= site.members for site in plan.sites)]
        if not found:
            return plan, reading
        names = name_apart(self.captured, found)
        self._merge()
        name_together(self.captured, names)
        return None

    def _merge_raised(self, merged: tuple[Plan, Reading] | None) -> tuple[Plan, Reading] | None:
        """Scales of a part: let the layer before the split absorb them, as long as there are any. merged: what was
        chosen before, if anything was.
        """
        raised: list[Raised] = []
        while merged is None or may_be_scaled(merged[1]):
            made, own = self._raise()
            if not made:
                self.as_it_is = own if merged is None else None
                break
            raised += made
            merged = self._merge()
        lower_scales(self.captured, raised)
        return merged

    def _raise(self) -> tuple[list[Raised], Reading]:
        """Scales of parts, each made one of the whole: all of one whole, one after the other. Returns these, and the
        last reading before.
        """
        raised, more = list[Raised](), True
        while more:
            own = self._read()
            with self.tape:
                ways, more = scaled_parts(self.captured, self._scope, own)
            prove = partial(prove_raised, own) if self.request.verify else _trusted
            made = raise_scales(self.captured, own, ways, prove)
            if not made:
                break
            raised += made
        return raised, own

    def _round(self, reading: Reading, refusals: dict[fx.Node, list[Reason]]) -> Round:
        """What the writer has to know of the graph as it is now. refusals: receives why sites could not be written."""
        return Round(
            prove=prover(reading, self.writer.is_checked) if self.request.verify else unproved,
            refuse=lambda node, reason: refusals.setdefault(node, []).insert(0, reason),
            spare={*reading.sizes, *reading.constants},
            computing=computing(self.captured, READERS, reading),
            writes=reading.writes,
        )

    def _see(self, reading: Reading, written: Written) -> None:
        """Draw the weights of a merge."""
        self.shown[id(written)] = pictures(reading, written)


def _trusted(old: fx.Node, new: fx.Node, over: Collection[fx.Node]) -> None:
    """No proof: `fuse` was called with verify=False."""


def _unjudged(captured: Captured, written: Written) -> None:
    """Every merge that was chosen is wanted."""
