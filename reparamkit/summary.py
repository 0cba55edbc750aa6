"""Turn what was done into a `Report`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .algebra.operator import Role
from .capture.aliases import target_name, target_of
from .capture.captured import Captured
from .capture.parts import Parts
from .capture.paths import module_at
from .engine.keep import DEARER
from .engine.naming import matches, name_of, place_of
from .engine.norms import second_flops
from .engine.placing import layer_cost, node_cost
from .engine.plan import beside
from .engine.reader import WRITTEN
from .engine.reading import Reading
from .engine.site import Plan, Rejected, Site
from .layers.hooks import has_hooks
from .layers.normalize import NORM_INTO_LINEAR
from .layers.overwrite import overwrite_
from .layers.price import Cost, numel
from .reporting import FACTOR, Caution, Merge, Picture, Price, Refusal, Report, Totals, factors
from .trial import Pair, Trial
from .write.write import FURTHER, Done


@dataclass(frozen=True, eq=False)
class Work:
    """What was done with one captured part of a model.

    plan: the last one that was chosen. said: why graph rules did not apply. reading: of the graph as it is now. done:
    the merges. pictures: of the weights, per merge. trials: how long merges took, if they were timed.
    """

    model: nn.Module
    captured: Captured
    plan: Plan
    said: Mapping[fx.Node, list[str]]
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


def totals(model: nn.Module, readings: Sequence[Reading]) -> Totals:
    """Count a model from the graphs of its parts."""
    parameters = sum(p.numel() for p in model.parameters())
    paths = [{*reading.captured.names(reading.captured.frames[0].path)} for reading in readings]
    parts = set().union(*paths)
    counts = [_counted(reading, parts - own) for reading, own in zip(readings, paths, strict=True)]
    launches, flops = map(sum, zip(*counts, strict=True))
    return Totals(parameters, numbers(model), launches, flops)


def _counted(reading: Reading, parts: Set[str]) -> tuple[int, int]:
    """The operations and FLOPs of a part, in all its runs. parts: paths of others, whose calls are counted there."""
    own = [node for node in reading.captured.graph.nodes if node.op != "call_module" or node.target not in parts]
    affine = sum((node_cost(reading, node) for node in own if node in reading.read), Cost())
    opaque = [node for node in own if _is_opaque(node, reading)]
    flops = affine.flops + second_flops(reading) + _sums(reading, opaque)
    times = reading.captured.origin.times
    return times * (affine.launches + len(opaque)), times * flops


def numbers(model: nn.Module) -> int:
    """Floating-point numbers in parameters and buffers (counters are not weights)."""
    return sum(t.numel() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())


def counted(reading: Reading) -> set[fx.Node]:
    """The nodes that compute something: the operations that are counted."""
    affine = {n for n in reading.read if node_cost(reading, n).launches}
    return affine | {node for node in reading.captured.graph.nodes if _is_opaque(node, reading)}


def _sums(reading: Reading, opaque: Iterable[fx.Node]) -> int:
    """FLOPs of sums that were not read as affine by themselves, one per element; nominal sizes where the rank is open.

    A merge over earlier values counts such sums in its price, so the totals have to.
    """
    names = ((node, target_name(node, reading.captured.module)) for node in opaque if node in reading.shapes)
    passes = [node for node, name in names if name.rstrip("_") in PASSES]
    summed = sum((layer_cost(reading.sums[node], 0) for node in passes if node in reading.sums), Cost())
    others = [node for node in passes if node not in reading.sums]
    return summed.flops + sum(numel(reading.sizes_of(node) or reading.shapes[node][0]) for node in others)


PASSES = frozenset(["add", "iadd", "sub", "isub", "sum", "mean", "stack", "cat", "concat"])
"""Sums, and what puts values side by side."""


def _is_opaque(node: fx.Node, reading: Reading) -> bool:
    """Whether a node computes a tensor and is not affine: activations, gates, attention."""
    known = node in reading.read or node in reading.sizes or node in reading.constants
    return node.op.startswith("call") and not known and _computes(node)


VIEWS = frozenset(
    str.split("""
    chunk diagonal dsplit even_part expand expand_as flatten getitem hsplit mT movedim moveaxis narrow
    part permute reshape reshape_as section select split squeeze swapaxes swapdims T t taken tensor_split transpose
    unbind unflatten unsqueeze view view_as vsplit
    """)
)
IDLE = VIEWS | {"getattr", "size", "_assert"}
"""Calls that compute no numbers: views, questions and checks."""


def _computes(node: fx.Node) -> bool:
    value = node.meta.get("val")
    name = target_of(node)
    return name not in IDLE and not name.startswith("expect") and (value is None or isinstance(value, Tensor))


def left(works: Sequence[Work], parts: Parts) -> list[Refusal]:
    """Why layers were left, as long as the model is as this was written."""
    root = works[0].captured.root
    # A layer may have merged all the same, where the code around it was traced otherwise.
    found = ((path, module_at(root, path), reason) for path, reason in parts.opaque.items())
    opaque = [Refusal(path or "(root)", type(at).__name__, reason) for path, at, reason in found if at is not None]
    refusals = [*opaque, *(refusal for work in works for refusal in _refusals(work, _of_layers(work.plan)))]
    told = {refusal.path for refusal in refusals}
    return [*refusals, *(refusal for refusal in _closed(works) if refusal.path not in told)]


def summarize(
    works: Sequence[Work],
    later: Sequence[Work],
    refusals: Iterable[Refusal],
    before: Totals,
    after: Totals,
    error: float | None,
    equations: Mapping[str, str],
) -> Report:
    """The report of one fusion. later: what was done to what `works` wrote. refusals: of layers that `works` left.
    equations: of each rule, by its name.
    """
    first, second = ([_merge(*each, equations) for each in _done(some)] for some in (works, later))
    gone = {member for merge in second for member in merge.members}
    return Report(
        (*(_merged_further(merge, gone) for merge in first), *second),
        tuple(refusal for refusal in refusals if refusal.path not in gone),
        before,
        after,
        works[0].captured.origin.tier,
        error,
        type(works[0].model).__name__,
        _cautions([*works, *later]),
    )


def _done(works: Iterable[Work]) -> Iterator[tuple[Done, Trial | None, tuple[Picture, ...]]]:
    for work in works:
        for done, pictures in zip(work.done, work.pictures, strict=True):
            yield done, work.trials.get((done.site.value, done.site.members)), pictures


CLOSED = "torch computes it in one call: the layers inside it are not looked into"
QUANTISED = "its weights are quantised: fuse before quantising"


def _closed(works: Sequence[Work]) -> Iterator[Refusal]:
    """The modules of torch that are one node of a graph though they have layers inside, such as attention, and those
    with quantised weights; and why they stay.
    """
    traced = [work.captured.frames[0].path for work in works]
    for path, module in (called for work in works for called in _called(work).items()):
        home = type(module).__module__
        if not home.startswith("torch.") or any(matches(part, path) for part in traced):
            continue
        if ".quantized" in home:
            yield Refusal(path, type(module).__name__, QUANTISED)
        elif any(True for child in module.children() for _ in child.parameters()):
            yield Refusal(path, type(module).__name__, CLOSED)


def _called(work: Work) -> dict[str, nn.Module]:
    """The modules that are called and were not read, by path."""
    nodes = [n for n in work.captured.graph.nodes if n.op == "call_module" and n not in work.reading.read]
    return {place_of(node): work.captured.module(node) for node in nodes}


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
    members = tuple(dict.fromkeys(_member(m) for m in sorted(site.members, key=lambda n: (not place_of(n), n.name))))
    return Merge(
        ", ".join(done.paths) or "(no layer left)",
        " + ".join(type(layer).__name__ for layer in done.layers),
        site.rules,
        members,
        done.error,
        *_prices(site, trial),
        tuple(equations.get(name, "") for name in site.rules),
        pictures=pictures,
    )


def _prices(merge: Site | Rejected, trial: Trial | None) -> tuple[Price, Price]:
    """Of the members, and of what is or would be written for them."""
    before, after = (None, None) if trial is None else (trial.before, trial.after)
    old, new = merge.before, merge.after
    return Price(old.flops, old.stored, old.launches, before), Price(new.flops, new.stored, new.launches, after)


def _member(node: fx.Node) -> str:
    return place_of(node) or name_of(node)


def _of_layers(plan: Plan) -> Plan:
    """The plan without what stood in the way of merging a merged layer once more: no layer of the user's was left."""
    own = {node: reasons for node, reasons in plan.refusals.items() if WRITTEN not in node.meta}
    return replace(plan, refusals=own)


def _refusals(work: Work, plan: Plan) -> tuple[Refusal, ...]:
    """Layers that were left though they look mergeable: with their own reason, or that of what reads them."""
    found: list[Refusal] = []
    said, reading = work.said, work.reading
    left = set(work.captured.graph.nodes)
    for node in reading.read:
        is_told = node in left and _worth_telling(node, reading)
        reasons = (_reasons(plan, said, node, reading) or _of_merged(work, node)) if is_told else []
        if reasons:
            found.append(_refusal(work, plan, node, reasons))
    unread = [n for n in {**plan.refusals, **said} if n not in reading.read and n in left]
    told = [n for n in unread if _is_layer(n) or n in said or _of_parameters(n, reading)]
    found += [_refusal(work, plan, node, _own_reasons(plan, said, node)) for node in told]
    return (*found, *_dearer(work))


def _reasons(plan: Plan, said: Mapping[fx.Node, list[str]], node: fx.Node, reading: Reading) -> list[str]:
    own = _own_reasons(plan, said, node)
    if NORM_INTO_LINEAR in reading.read[node].used:
        return own
    # A layer that was read and may not be merged all the same says so of itself.
    refused = [n for n in node.all_input_nodes if any(map(_of_itself, plan.refusals.get(n, [])))]
    unread = [n for n in node.all_input_nodes if n not in reading.read or (n in refused and _is_layer(node))]
    behind, before = (
        [_of_other(n, why, reading) for n in some for why in plan.refusals.get(n, [])] for some in (node.users, unread)
    )
    # That a merged layer gains nothing from yet another merge is no news.
    is_idle = WRITTEN not in node.meta and not plan.idle.isdisjoint((node, *node.users))
    idle = ["the merge would save nothing"] * is_idle
    # A layer before it that may not be merged is one all the same.
    kept = [why for why in before if why.startswith("'")]
    return own or behind or kept or _alone(node, reading) or before or idle


def _of_merged(work: Work, node: fx.Node) -> list[str]:
    """Why the merged layers that read a layer of the user's do not take it in as well: an element-wise one, or one for
    which they would cost more.
    """
    merged = [user for user in node.users if WRITTEN not in node.meta and WRITTEN in user.meta]
    linear = _is_linear(node, work.reading)
    return [why for user in merged for why in work.plan.refusals.get(user, []) if not linear or DEARER in why]


def _dearer(work: Work) -> Iterator[Refusal]:
    """Merged layers that would become one with others at a price that is not paid."""
    left = set(work.captured.graph.nodes)
    for node, rejected in work.plan.rejected.items():
        reasons = [why for why in work.plan.refusals.get(node, []) if DEARER in why]
        linear = {member for member in rejected.members & left if _is_linear(member, work.reading)}
        if reasons and node in linear and len(linear) > 1 and WRITTEN in node.meta:
            yield _refusal(work, work.plan, node, reasons)


def _of_other(node: fx.Node, why: str, reading: Reading) -> str:
    """A reason of what stands beside a layer, by name where it speaks of itself."""
    name = place_of(node) or reading.captured.path(node)
    return beside(name, why) if _of_itself(why) else why


def _of_itself(why: str) -> bool:
    """Whether a layer gives a reason that speaks of nothing but the layer."""
    return why.startswith(("it ", "its "))


def _own_reasons(plan: Plan, said: Mapping[fx.Node, list[str]], node: fx.Node) -> list[str]:
    return [*said.get(node, []), *plan.refusals.get(node, [])]


def _of_parameters(node: fx.Node, reading: Reading) -> bool:
    """Arithmetic on parameters only."""
    return bool(node.all_input_nodes) and all(n in reading.constants for n in node.all_input_nodes)


def _is_layer(node: fx.Node) -> bool:
    """A module, or a function that stands for one; not a sum, a product or a view."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_module" or (node.op == "call_function" and hasattr(nn.functional, name))


def _alone(node: fx.Node, reading: Reading) -> list[str]:
    """For an element-wise layer: it has no linear neighbour at all."""
    around = [n for n in (*node.all_input_nodes, *node.users) if n not in reading.constants]
    if not _is_layer(node) or any(_is_linear(n, reading) for n in (node, *around)):
        return []
    unread = [n for n in around if n not in reading.read]
    names = dict.fromkeys(n.op if n.op == "placeholder" else _named(n, reading) for n in unread or around)
    what = "are not affine, or not known to be" if unread else "only move numbers, or stay"
    return [f"nothing linear beside it to merge with: its neighbours {what} ({', '.join(names)})"]


def _is_linear(node: fx.Node, reading: Reading) -> bool:
    """Whether a node is a window, or a full matrix."""
    form = reading.read.get(node)
    return form is not None and form.sample.has(Role.IN, Role.OUT, Role.STENCIL)


def _named(node: fx.Node, reading: Reading) -> str:
    if node.op == "call_module":
        module = reading.captured.module(node)
        return type(module).__name__ + " with hooks" * has_hooks(module)
    return target_of(node)


def _worth_telling(node: fx.Node, reading: Reading) -> bool:
    """Scales and windows and matrices; not sums of values, views, or means."""
    form = reading.read[node]
    op = form.sample
    if node in reading.moves:
        return False
    legs = op.has(Role.DIAGONAL, Role.IN, Role.OUT, Role.STENCIL)
    return len(form.terms) == 1 and (legs or form.bias is not None)


def _refusal(work: Work, plan: Plan, node: fx.Node, reasons: Sequence[str]) -> Refusal:
    captured = work.captured
    layer = type(captured.module(node)).__name__ if node.op == "call_module" else _member(node)
    refusal = Refusal(place_of(node) or captured.path(node), layer, "; ".join(_distinct(reasons)))
    for value in (node, *node.users):
        rejected = plan.rejected.get(value)
        if rejected is not None and node in rejected.members:
            before, after = _prices(rejected, work.trials.get((value, rejected.members)))
            return replace(refusal, before=before, after=after)
    return refusal


def _distinct(reasons: Sequence[str]) -> Sequence[str]:
    """Of reasons that differ in their factors only, the one with the smallest; what a rule says, with its name."""
    found: dict[str, str] = {}
    reasons = [each for each in reasons if not any(other.endswith(f"': {each}") for other in reasons)]
    for reason in sorted(reasons, key=factors):
        found.setdefault(FACTOR.sub("", reason), reason)
    return sorted(found.values(), key=reasons.index)
