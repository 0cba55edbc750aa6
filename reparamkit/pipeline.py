"""``fuse``: capture -> read -> choose -> write -> verify -> report."""

from __future__ import annotations

import copy
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .algebra.operator import Operator, identity
from .capture.capture import Captured, Inputs
from .capture.parts import Parts, capture_parts
from .capture.state import intact
from .engine.borders import join_borders
from .engine.choose import Plan, choose
from .engine.dead import drop_dead
from .engine.identities import drop_identities
from .engine.norms import take_apart
from .engine.parts import name_parts
from .engine.patterns import next_site
from .engine.reading import Candidate, Reading, read
from .engine.scope import Everything, Scope, matches
from .engine.sizes import read_early
from .errors import CaptureError, CoverageError, EquivalenceError, InvalidInputError
from .inputs import Example, checked_inputs, checked_model
from .layers.normalize import NORM_INTO_LINEAR
from .layers.price import OBJECTIVES
from .layers.registry import READERS
from .localize import first_difference
from .record import Sketch, described, marked, pictures, sketch
from .report import Picture, Report
from .rules.builtin import RULES
from .rules.rule import Registry, Rule
from .summary import Work, computing, summarize, suspicious, totals
from .trial import Trials
from .verify import AMPLIFIED, Piece, Verification, check, compare, sensitivity, undisturbed
from .write.splice import Written
from .write.write import Done, Prove, Writer

LOG = logging.getLogger("reparamkit")
REPORT = "_reparamkit_report"
ONE_AT_A_TIME = threading.RLock()
"""Held while a model is traced or tried: torch is patched for all threads then, and buffers are exchanged."""


@dataclass(frozen=True)
class Request:
    """The options of one `fuse`; see there."""

    example: Example | None
    rules: tuple[Rule, ...]
    only: tuple[str, ...] | None
    skip: tuple[str, ...]
    objective: str
    verify: bool
    inplace: bool
    as_graph: bool
    min_coverage: float

    @property
    def inputs(self) -> Inputs | None:
        """The example inputs, if there are any."""
        return None if self.example is None else self.example.inputs

    @property
    def measured(self) -> bool:
        """Whether the device has the last word on a merge."""
        return self.objective == "measured"

    def scope(self, captured: Captured) -> Scope:
        """What may be merged in this model."""
        calls = {} if self.example is None else self.example.calls
        return Scope(captured, frozenset(rule.name for rule in self.rules), self.only, self.skip, calls)


def fuse(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    rules: Iterable[Rule | str] | None = None,
    extra_rules: Iterable[Rule] = (),
    without: Iterable[Rule | str] = (),
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    objective: str = "default",
    verify: bool = True,
    inplace: bool = False,
    as_graph: bool = False,
    min_coverage: float = 0.0,
) -> nn.Module:
    """The same model with fewer operations and the same outputs.

    Linear pieces between two nonlinearities (convolutions, batch norms, linear layers, skips, average pools) are
    merged, where that is exact and neither FLOPs nor stored numbers rise. Every merge is proved by running the old
    and the new piece in float64. The result is an instance of the model's own class; `report` tells what was done.

    Args:
        model: in eval mode. It is left as it is, and shares no memory with the result.
        example_inputs: when sizes are needed: a tensor of any shape the model takes, or the tuple of positional
            arguments. The batch size, and every size no literal or weight fixes, stays free.
        example_kwargs: keyword arguments that go with `example_inputs`.
        rules: the complete set of rules to use, as rules or names; default: all that are registered.
        extra_rules: rules to use besides.
        without: rules not to use.
        only: module paths or patterns (as in fnmatch) to merge in; default: everywhere.
        skip: module paths or patterns to leave alone.
        objective: what to minimise: "default", "latency", "flops", "params", "launches" or "measured". "flops" may
            raise stored numbers, "launches" FLOPs too. With "measured", which needs `example_inputs`, merges are chosen
            as for "latency", each is timed against what it replaces, on the example's sizes, and kept if not slower.
        verify: run the proofs. Without them a merge is only as good as the algebra.
        inplace: change `model` itself, which saves the memory of a copy; if it fails, the model is put back.
        as_graph: return a flat torch.fx.GraphModule.
        min_coverage: the share of the mergeable layers, from 0 to 1, that has to be merged (`Report.coverage`).

    What was done is logged under "reparamkit": a line per call (INFO), a line per merge and refusal (DEBUG).

    Raises:
        InvalidInputError: the model or the inputs cannot be used.
        CaptureError: the model's forward cannot be traced; the message says what to do.
        CoverageError: less was merged than `min_coverage`; names the layers. (With `inplace`, the model is fused.)
        EquivalenceError: a merge is not equal to what it replaces; names the site. Nothing is returned.
        RuleError: an unknown rule, or a rule that returns no module.
    """
    with ONE_AT_A_TIME:
        request = _request(
            model,
            example_inputs,
            example_kwargs,
            rules,
            extra_rules,
            without,
            only,
            skip,
            objective,
            verify,
            inplace,
            as_graph,
            min_coverage,
        )
        # What is made under inference mode could not be trained, exported or changed later.
        with torch.inference_mode(False), torch.no_grad():
            return _fused(model, request)


def explain(model: nn.Module, example_inputs: Any = None, **options: Any) -> Report:
    """What `fuse` with the same arguments would do, as its report; the model is left as it is."""
    options["inplace"] = False
    fused = fuse(model, example_inputs, **options)
    return report(fused)


def report(fused: nn.Module) -> Report:
    """The report of a model that `fuse` returned.

    Raises `InvalidInputError` if the model was not fused.
    """
    found = vars(fused).get(REPORT) if isinstance(fused, nn.Module) else None
    if not isinstance(found, Report):
        raise InvalidInputError(f"{type(fused).__name__} has no report: pass what reparamkit.fuse returned")
    return found


def verify(
    a: nn.Module, b: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None
) -> Verification:
    """Compare two models on the same inputs, output tensor by output tensor.

    If they differ, the result tells where in the output, and the first module that is to blame.
    a: the model in question. b: the reference. example_inputs: as for `fuse`.
    """
    with ONE_AT_A_TIME:
        checked_model(a)
        example = checked_inputs(checked_model(b), example_inputs, example_kwargs)
        if example is None:
            raise InvalidInputError("verify needs example_inputs")
        found = compare(undisturbed(a, example.inputs), example.output, _through(b, example))
        return found if found.passed else replace(found, first=first_difference(a, b, example.inputs))


# --- options ------------------------------------------------------------------------------------------


def _request(
    model: Any,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None,
    rules: Iterable[Rule | str] | None,
    extra_rules: Iterable[Rule],
    without: Iterable[Rule | str],
    only: str | Sequence[str] | None,
    skip: str | Sequence[str] | None,
    objective: str,
    verify: bool,
    inplace: bool,
    as_graph: bool,
    min_coverage: float,
) -> Request:
    if not 0 <= min_coverage <= 1:
        raise InvalidInputError(f"min_coverage={min_coverage!r}: give a share from 0 to 1")
    if objective not in OBJECTIVES:
        raise InvalidInputError(f"objective={objective!r}: choose one of {', '.join(OBJECTIVES)}")
    chosen = _chosen(rules, extra_rules, without)
    example = checked_inputs(checked_model(model), example_inputs, example_kwargs)
    if example is None and objective == "measured":
        raise InvalidInputError('objective="measured" runs the merges: pass example_inputs of the size to be measured')
    return Request(
        example,
        chosen,
        None if only is None else _paths(model, "only", only),
        _paths(model, "skip", skip or ()),
        objective,
        verify,
        inplace,
        as_graph,
        min_coverage,
    )


def _paths(model: nn.Module, option: str, value: str | Sequence[str]) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else tuple(value)
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise InvalidInputError(f"{option}={pattern!r} names no module: see model.named_modules() for the paths")
    return patterns


def _chosen(
    rules: Iterable[Rule | str] | None, extra: Iterable[Rule], without: Iterable[Rule | str]
) -> tuple[Rule, ...]:
    """The rules of one call, those of the user before the built-in ones."""
    base = Registry(tuple(RULES) if rules is None else tuple(_rule(r) for r in rules))
    for rule in extra:
        base.add(rule)
    for unwanted in without:
        base.remove(_rule(unwanted).name)
    return tuple(sorted(base, key=lambda rule: rule.pattern is None))


def _rule(rule: Rule | str) -> Rule:
    return RULES[rule] if isinstance(rule, str) else rule


# --- the pipeline -------------------------------------------------------------------------------------


def _fused(model: nn.Module, request: Request) -> nn.Module:
    private = model if request.inplace else _sharing_copy(model)
    with intact(private):
        return _fused_privately(private, model, request)


def _fused_privately(private: nn.Module, model: nn.Module, request: Request) -> nn.Module:
    parts = capture_parts(private, request.inputs, _is_leaf, whole=request.as_graph)
    if request.as_graph and parts.opaque:
        path, reason = next(iter(parts.opaque.items()))
        raise CaptureError(f"as_graph=True needs the whole model as one graph: {reason}", path)
    readings = _readings(parts, request)
    before, original, suspects = totals(private, readings), _sketches(readings), suspicious(private)
    works = [_fused_part(part, request) for part in parts.captured]
    fused = works[0].model
    fused = fused if request.inplace else _owning(fused)
    error = _whole(fused, fused if request.inplace else model, request)
    readings = _readings(parts, request)
    after = totals(fused, readings)
    if request.example is None:
        # Nominal sizes depend on how much of a rank is known, so only the prices of the merges compare.
        saved = sum(plan.before.flops - plan.after.flops for work in works for plan in work.plans)
        after = replace(after, flops=before.flops - saved)
    made = summarize(works, parts, before, after, error, {rule.name: rule.equation for rule in request.rules})
    made = replace(
        made,
        parts=tuple(described(part, drawn) for part, drawn in zip(parts.captured, original, strict=True)),
        warnings=(*suspects, *made.warnings),
        graph_before=marked(original, _sites(works, lambda done: done.site.members)),
        graph_after=marked(_sketches(readings), _sites(works, lambda done: done.nodes)),
    )
    object.__setattr__(fused, REPORT, made)
    _tell(made)
    _check_coverage(made, request.min_coverage)
    return fused


def _tell(made: Report) -> None:
    LOG.info("%s: %s; merged %s", made.model, made.summary, made.coverage)
    for merge in made.merges:
        LOG.debug("merged %s into %s (%s)", ", ".join(merge.members), merge.path, ", ".join(merge.rules))
    for refusal in made.refusals:
        LOG.debug("left %s (%s): %s", refusal.path, refusal.layer, refusal.reason)


def _check_coverage(made: Report, wanted: float) -> None:
    if made.coverage.share < wanted:
        left = "\n".join(f"  {refusal.path} ({refusal.layer}): {refusal.reason}" for refusal in made.refusals)
        raise CoverageError(
            f"merged {made.coverage}, and min_coverage={wanted} asks for more; left as they are:\n{left}"
        )


def _readings(parts: Parts, request: Request) -> list[Reading]:
    """Of every part, as it is now."""
    for part in parts.captured:
        part.forget()
    return [_read(part) for part in parts.captured]


def _sketches(readings: Sequence[Reading]) -> list[Sketch]:
    return [sketch(reading, number, computing(reading)) for number, reading in enumerate(readings)]


def _sites(works: Sequence[Work], nodes: Callable[[Done], Iterable[fx.Node]]) -> dict[fx.Node, list[int]]:
    """For each node the numbers of its merges, in the order of the report."""
    found: dict[fx.Node, list[int]] = {}
    for number, done in enumerate(done for work in works for done in work.done):
        for node in nodes(done):
            found.setdefault(node, []).append(number)
    return found


def _fused_part(captured: Captured, request: Request) -> Work:
    """Read, choose, write and prove one captured part."""
    join_borders(captured)
    name_parts(captured)
    reading = _read(captured)
    drop_identities(captured, reading)
    drop_dead(captured, reading)
    read_early(captured, reading)
    trials = Trials()
    judge = trials.judge if request.measured else _unjudged
    writer = Writer(captured, request.as_graph, _unproved, _unheard, judge)
    writable = writer.attempt if request.measured else writer.check
    said = _apply_patterns(captured, request, writer)
    scope = request.scope(captured)
    if NORM_INTO_LINEAR in scope.permitted:
        take_apart(captured, scope, _read(captured), lambda n, why: said.setdefault(n, []).append(why))
    plans: list[Plan] = []
    shown: dict[int, tuple[Picture, ...]] = {}
    written: Sequence[Written] = ()
    while not plans or written:
        # A merged layer may merge again, now that there is less to choose from.
        writer.erase_dead()
        captured.forget()
        plan, reading = choose(captured, READERS, request.scope(captured), writable, request.objective)
        _prepare(writer, request, reading, plan.refusals)
        written = writer.write(plan.sites)
        shown.update((id(one), pictures(reading, one)) for one in written)
        plans.append(plan)
    seen = [shown.get(id(one), ()) for one, _ in writer.done]
    model, done = writer.finish()
    return Work(model, captured, plans, said, reading, done, seen, trials.found)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the tensors, so that nothing large is copied before it is needed."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    # The weight that a weight norm left behind has a history, and such tensors cannot be copied.
    memo |= {id(t): t.detach() for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InvalidInputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); pass inplace=True to fuse it in place"
        ) from error


def _owning(model: nn.Module) -> nn.Module:
    """Give the model its own tensors; ties between modules stay ties."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = copy.deepcopy(tensor, memo)  # type: ignore[assignment]
    return model


def _is_leaf(module: nn.Module) -> bool:
    """Modules the graph calls instead of tracing through: torch's own layers, and those with a reader."""
    if READERS.of_module(module) is not None or isinstance(module, torch.jit.ScriptModule):
        return True
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return False
    return str(type(module).forward.__module__).startswith(("torch.nn", "torch.ao"))


def _read(captured: Captured) -> Reading:
    """A reading for prices and sizes only: each node over its own inputs, whether it may be merged or not."""

    def none(node: fx.Node, found: list[Candidate]) -> list[Candidate]:
        return []

    return read(captured, READERS, Everything(captured, frozenset()), none, Reading(captured))


def _unproved(captured: Captured, written: Written) -> None:
    """No proof: `fuse` was called with verify=False."""


def _unjudged(captured: Captured, written: Written) -> None:
    """Every merge that was chosen is wanted."""


def _unheard(node: fx.Node, reason: str) -> None:
    """Nobody to tell: nothing has been read yet."""


def _prepare(writer: Writer, request: Request, reading: Reading, refusals: dict[fx.Node, list[str]]) -> None:
    """Tell the writer what is known of the graph as it is now."""
    writer.spare = {*reading.read, *reading.sizes, *reading.constants}
    writer.writes = reading.writes
    writer.prove = _prover(reading) if request.verify else _unproved
    writer.refuse = lambda node, reason: refusals.setdefault(node, []).insert(0, reason)


def _apply_patterns(captured: Captured, request: Request, writer: Writer) -> dict[fx.Node, list[str]]:
    """Graph rules first, one match at a time, on the graph as it is then; returns why some did not apply."""
    rules = [rule for rule in request.rules if rule.pattern is not None]
    said: dict[fx.Node, list[str]] = {}
    seen: set[tuple[str, str]] = set()
    while rules:
        scope = request.scope(captured)
        site = next_site(captured, scope, rules, seen, lambda n, why: said.setdefault(n, []).append(why))
        if site is None:
            break
        _prepare(writer, request, _read(captured), said)
        writer.write_pattern(site)
        writer.erase_dead()
        captured.forget()
    return said


def _prover(reading: Reading) -> Prove:
    def prove(captured: Captured, written: Written) -> float:
        site = written.site
        paths = sorted({captured.path(member) for member in site.members})
        where = f"'{captured.path(site.value)}' (rules={list(site.rules)}, only={paths})"
        return check(Piece(captured, _sources(reading, written), site.value, written.result, site.members), where)

    return prove


def _sources(reading: Reading, written: Written) -> dict[fx.Node, Operator]:
    """The values a merge reads, each with an operator that tells its sizes."""
    site = written.site
    named = reading.captured.named
    if site.replacement is not None:
        # The form of a single layer knows the sizes that its weights fix.
        form = reading.read.get(site.value)
        known = {} if form is None else {name: term.op for name, term in form.terms.items()}
        return {n: known.get(n.name, identity(*reading.shapes[n])) for n in site.replacement.inputs}
    assert site.placed is not None
    return {named[name]: term.op for name, term in site.placed.form.terms.items()}


def _through(model: nn.Module, example: Example) -> Iterator[Tensor]:
    """Every tensor whose dtype takes part in a run."""
    return itertools.chain(model.parameters(), model.buffers(), example.inputs.tensors)


def _whole(fused: nn.Module, original: nn.Module, request: Request) -> float | None:
    """Compare the whole model on the example inputs. Raises `EquivalenceError` if it differs by more than rounding."""
    if request.example is None or not request.verify:
        return None
    inputs = request.example.inputs
    try:
        output = undisturbed(fused, inputs)
    except Exception as error:
        raise EquivalenceError(
            f"the fused model fails on the example inputs ({type(error).__name__}: {error}); if a copy.deepcopy of the"
            " model does so too, pass inplace=True; otherwise please report it"
        ) from error
    found = compare(output, request.example.output, _through(fused, request.example))
    if not found.passed and found.error > AMPLIFIED * sensitivity(original, inputs):
        found = found if original is fused else replace(found, first=first_difference(fused, original, inputs))
        raise EquivalenceError(
            f"the fused model as a whole is {found}; every single merge was proved, please report it"
        )
    return found.error
