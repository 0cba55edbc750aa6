"""Why layers were left: with their own reason, or that of what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from .algebra.operator import Role
from .capture.aliases import target_of
from .capture.parts import Parts
from .capture.paths import module_at
from .engine.naming import matches, place_of, shown_name
from .engine.reader import WRITTEN
from .engine.reading import Reading
from .engine.site import Plan
from .layers.hooks import has_hooks
from .layers.normalize import NORM_INTO_LINEAR
from .reasons import Kind, Reason, joined
from .reporting import FACTOR, Refusal, factors
from .work import Work, prices


def left(works: Sequence[Work], parts: Parts) -> list[Refusal]:
    """Why layers were left, as long as the model is as this was written."""
    root = works[0].captured.root
    # A layer may have merged all the same, where the code around it was traced otherwise.
    found = ((path, module_at(root, path), why) for path, why in parts.opaque.items())
    opaque = [_refused(path or "(root)", type(at).__name__, why) for path, at, why in found if at is not None]
    refusals = [*opaque, *(refusal for work in works for refusal in _refusals(work, _of_layers(work.plan)))]
    told = {refusal.path for refusal in refusals}
    return [*refusals, *(refusal for refusal in _closed(works) if refusal.path not in told)]


CLOSED = Reason("torch computes it in one call: the layers inside it are not looked into", Kind.CLOSED)
SCRIPTED = Reason("it is compiled: the layers inside it are not looked into", Kind.COMPILED)
QUANTISED = Reason("its weights are quantised: fuse before quantising", Kind.DTYPE)
NO_GAIN = Reason("the merge would save nothing", Kind.COST)


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
            yield _refused(path, type(module).__name__, QUANTISED)
        elif any(True for child in module.children() for _ in child.parameters()):
            closed = SCRIPTED if isinstance(module, torch.jit.ScriptModule) else CLOSED
            yield _refused(path, type(module).__name__, closed)


def _called(work: Work) -> dict[str, nn.Module]:
    """The modules that are called and were not read, by path."""
    nodes = [n for n in work.captured.graph.nodes if n.op == "call_module" and n not in work.reading.read]
    return {place_of(node): work.captured.module(node) for node in nodes}


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


def _reasons(plan: Plan, said: Mapping[fx.Node, list[Reason]], node: fx.Node, reading: Reading) -> list[Reason]:
    own = _own_reasons(plan, said, node)
    if NORM_INTO_LINEAR in reading.read[node].used:
        return own
    # A layer that was read and may not be merged all the same says so of itself.
    refused = [n for n in node.all_input_nodes if any(why.is_of_itself for why in plan.refusals.get(n, []))]
    unread = [n for n in node.all_input_nodes if n not in reading.read or (n in refused and _is_layer(node))]
    # What is no layer by itself merges with what is behind views.
    beside = node.users if _is_linear(node, reading) else _readers(node, reading), unread
    behind, before = ([_of_other(n, why, reading) for n in some for why in plan.refusals.get(n, [])] for some in beside)
    # That a merged layer gains nothing from yet another merge is no news.
    is_idle = WRITTEN not in node.meta and not plan.idle.isdisjoint((node, *node.users))
    idle = [NO_GAIN] * is_idle
    # A layer before it that may not be merged is one all the same.
    kept = [why for why in before if why.text.startswith("'")]
    return own or behind or kept or _alone(node, reading) or before or idle


def _readers(node: fx.Node, reading: Reading) -> list[fx.Node]:
    """What reads a value, or views of it."""
    found: list[fx.Node] = []
    for user in node.users:
        form = reading.read.get(user)
        ops = [] if form is None else [term.op for term in form.terms.values()]
        is_view = len(ops) == 1 and not (ops[0].legs or ops[0].has(Role.MEAN))
        found += [user, *(_readers(user, reading) if is_view else [])]
    return found


def _of_merged(work: Work, node: fx.Node) -> list[Reason]:
    """Why the merged layers that read a layer of the user's do not take it in as well: an element-wise one, or one for
    which they would cost more.
    """
    merged = [user for user in node.users if WRITTEN not in node.meta and WRITTEN in user.meta]
    linear = _is_linear(node, work.reading)
    return [why for user in merged for why in work.plan.refusals.get(user, []) if not linear or why.dearer]


def _dearer(work: Work) -> Iterator[Refusal]:
    """Merged layers that would become one with others at a price that is not paid."""
    left = set(work.captured.graph.nodes)
    for node, rejected in work.plan.rejected.items():
        reasons = [why for why in work.plan.refusals.get(node, []) if why.dearer]
        linear = {member for member in rejected.members & left if _is_linear(member, work.reading)}
        if reasons and node in linear and len(linear) > 1 and WRITTEN in node.meta:
            yield _refusal(work, work.plan, node, reasons)


def _of_other(node: fx.Node, why: Reason, reading: Reading) -> Reason:
    """A reason of what stands beside a layer, by name where it speaks of itself."""
    name = place_of(node) or reading.captured.path(node)
    return why.beside(name) if why.is_of_itself else why


def _own_reasons(plan: Plan, said: Mapping[fx.Node, list[Reason]], node: fx.Node) -> list[Reason]:
    return [*said.get(node, []), *plan.refusals.get(node, [])]


def _of_parameters(node: fx.Node, reading: Reading) -> bool:
    """Arithmetic on parameters only."""
    return bool(node.all_input_nodes) and all(n in reading.constants for n in node.all_input_nodes)


def _is_layer(node: fx.Node) -> bool:
    """A module, or a function that stands for one; not a sum, a product or a view."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_module" or (node.op == "call_function" and hasattr(nn.functional, name))


def _alone(node: fx.Node, reading: Reading) -> list[Reason]:
    """For an element-wise layer: it has no linear neighbour at all."""
    around = [n for n in (*node.all_input_nodes, *node.users) if n not in reading.constants]
    if not _is_layer(node) or any(_is_linear(n, reading) for n in (node, *around)):
        return []
    unread = [n for n in around if n not in reading.read]
    names = dict.fromkeys(n.op if n.op == "placeholder" else _named(n, reading) for n in unread or around)
    what = "are not affine, or not known to be" if unread else "only move numbers, or stay"
    alone = f"nothing linear beside it to merge with: its neighbours {what} ({', '.join(names)})"
    # What might be linear, if sizes were known, is no nonlinearity.
    unsized = [why for n in unread for why in reading.reasons.get(n, ()) if why.kind is Kind.SIZES]
    return [why.within(f"{alone}: ") for why in unsized[:1]] or [Reason(alone, Kind.ALONE)]


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


def _refusal(work: Work, plan: Plan, node: fx.Node, reasons: Sequence[Reason]) -> Refusal:
    captured = work.captured
    layer = type(captured.module(node)).__name__ if node.op == "call_module" else shown_name(node)
    refusal = _refused(place_of(node) or captured.path(node), layer, joined(_distinct(reasons)))
    for value in (node, *node.users):
        rejected = plan.rejected.get(value)
        if rejected is not None and node in rejected.members:
            before, after = prices(rejected, work.trials.get((value, rejected.members)))
            return replace(refusal, before=before, after=after)
    return refusal


def _refused(path: str, layer: str, why: Reason) -> Refusal:
    return Refusal(path, layer, why.text, why.kind.value)


def _distinct(reasons: Sequence[Reason]) -> Sequence[Reason]:
    """Of reasons that differ in their factors only, the one with the smallest; what a rule says, with its name."""
    found: dict[str, Reason] = {}
    reasons = [each for each in reasons if not any(other.text.endswith(f"': {each}") for other in reasons)]
    for reason in sorted(reasons, key=lambda why: factors(why.text)):
        found.setdefault(FACTOR.sub("", reason.text), reason)
    return sorted(found.values(), key=reasons.index)
