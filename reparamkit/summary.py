"""Turn what was done into a `Report`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .capture.parts import Parts
from .engine.naming import place_of, shown_name
from .record import described, marked
from .reporting import Caution, Merge, Picture, Refusal, Report, Totals
from .request import Request
from .totals import Measured
from .trial import Trial
from .work import Work, prices
from .write.write import FURTHER, Done


@dataclass(frozen=True, eq=False)
class Fusion:
    """What was done to a model.

    works: with its parts. later: with the parts of what that wrote. parts: of it, and what was left. refusals: of
    layers that `works` left. before, after: the model. error: of the whole; None if it was not proved. cautions: of the
    model before.
    """

    request: Request
    works: Sequence[Work]
    later: Sequence[Work]
    parts: Parts
    refusals: Sequence[Refusal]
    before: Measured
    after: Measured
    error: float | None
    cautions: Sequence[Caution]

    @property
    def every(self) -> list[Work]:
        """All work."""
        return [*self.works, *self.later]

    @property
    def totals_after(self) -> Totals:
        """What the model costs. Where nothing is merged it computes what it did, also for nothing. Nominal sizes depend
        on how much of a rank is known, so without an example only the prices of the merges compare.
        """
        if not (self.request.as_graph or any(work.done for work in self.every)):
            return self.before.totals
        if self.request.example is not None:
            return self.after.totals
        saved = sum(work.captured.origin.times * done.site.saved for work in self.every for done in work.done)
        return replace(self.after.totals, flops=self.before.totals.flops - round(saved))


def summarize(fusion: Fusion) -> Report:
    """The report of one fusion, with both graphs."""
    equations = {rule.name: rule.equation for rule in fusion.request.rules}
    first, second = ([_merge(*each, equations) for each in _done(some)] for some in (fusion.works, fusion.later))
    gone = {member for merge in second for member in merge.members}
    described_parts = zip(fusion.parts.captured, fusion.before.sketches, strict=True)
    return Report(
        merges=(*(_merged_further(merge, gone) for merge in first), *second),
        refusals=tuple(refusal for refusal in fusion.refusals if refusal.path not in gone),
        before=fusion.before.totals,
        after=fusion.totals_after,
        tier=fusion.works[0].captured.origin.tier,
        error=fusion.error,
        model=type(fusion.works[0].model).__name__,
        warnings=(*fusion.cautions, *_cautions(fusion.every)),
        parts=tuple(described(part, drawn) for part, drawn in described_parts),
        graph_before=marked(fusion.before.sketches, _sites(fusion.every, lambda done: done.site.members)),
        graph_after=marked(fusion.after.sketches, _sites(fusion.every, lambda done: done.nodes)),
    )


def _sites(works: Sequence[Work], nodes: Callable[[Done], Iterable[fx.Node]]) -> dict[fx.Node, list[int]]:
    """For each node the numbers of its merges, in the order of the report."""
    found: dict[fx.Node, list[int]] = {}
    for number, done in enumerate(done for work in works for done in work.done):
        for node in nodes(done):
            found.setdefault(node, []).append(number)
    return found


def _done(works: Iterable[Work]) -> Iterator[tuple[Done, Trial | None, tuple[Picture, ...]]]:
    for work in works:
        for done, pictures in zip(work.done, work.pictures, strict=True):
            yield done, work.trials.get((done.site.value, done.site.members)), pictures


def _cautions(works: Sequence[Work]) -> tuple[Caution, ...]:
    """Of merged layers that are still there."""
    done = [each for work in works for each in work.done]
    return tuple(Caution(", ".join(each.paths), text) for each in done for text in each.warnings)


SPREAD = 1e4
"""Between the scales of one norm: beyond it a variance is nearly 0, and what it amplifies is rounding."""


def suspicious(model: nn.Module) -> tuple[Caution, ...]:
    """Batch norms with channels whose variance is nearly 0, compared with their other channels."""
    found = []
    for path, module in model.named_modules():
        variance = getattr(module, "running_var", None) if isinstance(module, _BatchNorm) else None
        if isinstance(variance, Tensor) and variance.numel():
            scale = (variance.double() + module.eps).rsqrt()
            spread = float(scale.max() / scale.min())
            if spread > SPREAD:
                channel = int(scale.argmax())
                text = f"scales differ by {spread:.0e}, the variance of channel {channel} is {variance[channel]:.0e}"
                found.append(Caution(path, f"{text}: a merge moves this into a weight; is the channel dead?"))
    return tuple(found)


def _merged_further(merge: Merge, members: Set[str]) -> Merge:
    """A merge of which some layers, at these paths, went into another one later."""
    paths = (FURTHER if path in members else path for path in merge.path.split(", "))
    return replace(merge, path=", ".join(paths))


def _merge(done: Done, trial: Trial | None, pictures: tuple[Picture, ...], equations: Mapping[str, str]) -> Merge:
    site = done.site
    members = tuple(dict.fromkeys(shown_name(m) for m in sorted(site.members, key=lambda n: (not place_of(n), n.name))))
    return Merge(
        ", ".join(done.paths) or "(no layer left)",
        " + ".join(type(layer).__name__ for layer in done.layers),
        site.rules,
        members,
        done.error,
        *prices(site, trial),
        tuple(equations.get(name, "") for name in site.rules),
        pictures=pictures,
    )
