"""What was done with one captured part of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from .capture.captured import Captured
from .engine.reading import Reading
from .engine.site import Plan, Rejected, Site
from .layers.overwrite import overwrite_
from .reasons import Reason
from .reporting import Picture, Price
from .trial import Pair, Trial
from .write.write import Done


@dataclass(frozen=True, eq=False)
class Work:
    """What was done with one captured part of a model.

    plan: the last one that was chosen. said: why graph rules did not apply. reading: of the graph as it is now. done:
    the merges. pictures: of the weights, per merge. trials: how long merges took, if they were timed.
    """

    model: nn.Module
    captured: Captured
    plan: Plan
    said: Mapping[fx.Node, list[Reason]]
    reading: Reading
    done: Sequence[Done]
    pictures: Sequence[tuple[Picture, ...]]
    trials: Mapping[Pair, Trial]

    @property
    def may_go_on(self) -> bool:
        """Whether more may merge once this is captured anew: a merged layer is a row of several, which count as one
        until then; code that computed unused values, in the way of a merge, or made several merges of one, was written
        again; or a tensor is no longer written in place.
        """
        rows = any(isinstance(layer, nn.Sequential) for done in self.done for layer in done.layers)
        merged = (member for done in self.done for member in done.site.members)
        clearer = self.captured.is_hindered or self.plan.parted
        return rows or (clearer and bool(self.done)) or any(n.target is overwrite_ for n in merged)


def prices(merge: Site | Rejected, trial: Trial | None) -> tuple[Price, Price]:
    """Of the members, and of what is or would be written for them."""
    before, after = (None, None) if trial is None else (trial.before, trial.after)
    old, new = merge.before, merge.after
    return Price(old.flops, old.stored, old.launches, before), Price(new.flops, new.stored, new.launches, after)
