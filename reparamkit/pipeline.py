"""``fuse``: capture -> read -> choose -> write -> verify -> report."""

from __future__ import annotations

import copy
import itertools
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from .algebra.operator import Operator, identity
from .capture.caches import caches_left
from .capture.capture import Captured
from .capture.parts import Parts, capture_parts
from .capture.scripts import compiled_opened
from .capture.state import intact, kept
from .capture.trees import leaves
from .compare import AMPLIFIED, Verification, compare, compare_wide, sensitivity, undisturbed
from .engine.borders import join_borders
from .engine.choose import choose
from .engine.dead import drop_dead
from .engine.identities import drop_identities
from .engine.literals import fold_sizes
from .engine.norms import has_norms, take_apart
from .engine.outside import look_outside
from .engine.parts import name_parts
from .engine.patterns import next_site
from .engine.raising import Raised, lower_scales, raise_scales, scaled_parts, without
from .engine.reading import Candidate, Reading, read
from .engine.scope import Everything
from .engine.site import Plan
from .engine.sizes import read_early
from .engine.stacking import stack, unstack
from .errors import CaptureError, CoverageError, EquivalenceError, InvalidInputError, RecipeError
from .exported import graph_of, tensors_in
from .garbage import rarely_collected
from .inputs import Example, checked_inputs, checked_model, tried
from .layers.hooks import has_hooks
from .layers.normalize import NORM_INTO_LINEAR
from .layers.parts import STACK_LAYERS
from .layers.price import OBJECTIVES
from .layers.registry import READERS
from .localize import first_difference
from .proof import Piece, check
from .recipes.convert import convert, refuse_original
from .recipes.recipe import Recipe
from .recipes.tape import Tape
from .record import Sketch, described, marked, pictures, sketch
from .reporting import Picture, Report, Totals
from .request import Request, requested
from .rulebook.rule import Rule
from .summary import Work, computing, summarize, suspicious, totals
from .trial import Trials
from .write.splice import Written
from .write.write import Done, Prove, Writer

LOG = logging.getLogger("reparamkit")
REPORT, RECIPE = "_reparamkit_report", "_reparamkit_recipe"
Measured = tuple[Totals, list[Sketch]]
"""What a model costs, and a sketch of each of its parts."""
ONE_AT_A_TIME = threading.RLock()
"""Held while a model is traced or tried: torch is patched for all threads then, and buffers are exchanged."""


def fuse(
    model: nn.Module | ExportedProgram,
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
        model: in eval mode. It is left as it is, and shares no memory with the result. A GraphModule stays one. A
            program of torch.export becomes one that takes its tensors one after the other, and brings its inputs along.
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
        inplace: change `model` itself, merge by merge, which saves the memory of a copy. If one fails, those before
            it stay; the model computes what it did, and a note of the error lists them.
        as_graph: return a flat torch.fx.GraphModule.
        min_coverage: the share of the mergeable layers, from 0 to 1, that has to be merged (`Report.coverage`).

    What was done is logged under "reparamkit": a line per call (INFO), a line per merge and refusal (DEBUG).

    Raises:
        InvalidInputError: the model or the inputs cannot be used.
        CaptureError: the model's forward cannot be traced; the message says what to do.
        CoverageError: less was merged than `min_coverage`; names the layers. (With `inplace`, the model is fused.)
        EquivalenceError: a merge is not equal to what it replaces; names the site. Nothing is returned.
        RuleError: an unknown rule, a rule that returns no module, or a rule or reader that fails.
    """
    if isinstance(model, ExportedProgram):
        example_inputs = tensors_in((example_inputs, example_kwargs)) or tensors_in(model.example_inputs)
        model, example_kwargs = graph_of(model), None
    as_graph = as_graph or (isinstance(model, fx.GraphModule) and not inplace)
    own = [model] if isinstance(model, nn.Module) and not inplace else []
    with ONE_AT_A_TIME, rarely_collected(), compiled_opened(), kept(*own):
        request = requested(
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


def explain(model: nn.Module | ExportedProgram, example_inputs: Any = None, **options: Any) -> Report:
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


def recipe(fused: nn.Module) -> Recipe:
    """How the tensors of a model that `fuse` returned are computed from those of the original; see
    `convert_state_dict`.

    Raises `InvalidInputError` if the model was not fused, `RecipeError` if there is no recipe, with the reason.
    """
    report(fused)
    found = vars(fused)[RECIPE]
    if isinstance(found, RecipeError):
        raise RecipeError(str(found))
    assert isinstance(found, Recipe)
    return found


@overload
def convert_state_dict(
    recipe_or_fused: Recipe | nn.Module, source: Mapping[str, Any] | str | Path, target: None = None
) -> dict[str, Tensor]: ...


@overload
def convert_state_dict(
    recipe_or_fused: Recipe | nn.Module, source: Mapping[str, Any] | str | Path, target: str | Path
) -> None: ...


def convert_state_dict(
    recipe_or_fused: Recipe | nn.Module,
    source: Mapping[str, Any] | str | Path,
    target: str | Path | None = None,
) -> dict[str, Tensor] | None:
    """The state dict of the fused model for other weights of the original; the model is neither run nor traced.

    Args:
        recipe_or_fused: what `recipe` gave, or a model that `fuse` returned.
        source: a checkpoint of the original: a dict of tensors, a ``.safetensors`` file, or the ``.json`` index of
            several. Nothing is unpickled.
        target: a file to write to, tensor by tensor, in place of returning a dict: ``.safetensors``, or ``.json`` for
            an index and as many files as the source has.

    Raises:
        RecipeError: there is no recipe, the checkpoint is of another model or damaged, or what was merged depends on
            numbers that are others in this checkpoint.
        InvalidInputError: the model was not fused.
    """
    found = recipe_or_fused if isinstance(recipe_or_fused, Recipe) else recipe(recipe_or_fused)
    return convert(found, source, target)


def verify(
    a: nn.Module, b: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None
) -> Verification:
    """Compare two models on the same inputs, output tensor by output tensor.

    If they differ, the result tells where in the output, and the first module that is to blame.
    a: the model in question. b: the reference. example_inputs: as for `fuse`.
    """
    checked_model(a), checked_model(b)
    with ONE_AT_A_TIME, compiled_opened(), kept(a, b):
        example = checked_inputs(b, example_inputs, example_kwargs)
        if example is None:
            raise InvalidInputError("verify needs example_inputs")
        found = compare(tried(a, example.inputs), example.output, _through(b, example))
        return found if found.passed else replace(found, first=first_difference(a, b, example.inputs))


# --- the pipeline -------------------------------------------------------------------------------------


def _fused(model: nn.Module, request: Request) -> nn.Module:
    swapped: list[str] = []
    try:
        return _fused_whole(model, request, swapped)
    except BaseException as error:
        if swapped:
            error.add_note(f"merged in place before this: {', '.join(swapped)}; the model computes what it computed")
        raise


def _fused_whole(model: nn.Module, request: Request, swapped: list[str]) -> nn.Module:
    """swapped: receives the paths of layers that are merged in `model` itself."""
    at_once = request.inplace and not request.as_graph
    private = model if at_once else _sharing_copy(model)
    with intact(private), caches_left(private):
        parts = _captured(private, request)
        before = _begun(private, parts)
    suspects, tape = suspicious(private), Tape(private)
    works = [_fused_part(part, request, tape, swapped if at_once else None) for part in parts.captured]
    fused = works[0].model
    kept = _recipe(tape, fused)
    fused = fused if request.inplace else _owning(fused)
    error = _whole(fused, fused if at_once else model, request)
    made = _reported(request, works, parts, before, _measured(fused, _readings(parts)), error)
    made = replace(made, warnings=(*suspects, *made.warnings))
    vars(fused).update({REPORT: made, RECIPE: kept})
    refuse_original(fused, tape.inputs)
    _tell(made)
    _check_coverage(made, request.min_coverage)
    return fused


def _captured(model: nn.Module, request: Request) -> Parts:
    """What could be traced of a model, with the parts of its tensors named."""
    parts = capture_parts(model, request.inputs, _is_leaf, has_hooks, whole=request.as_graph)
    if request.as_graph and parts.opaque:
        path, reason = next(iter(parts.opaque.items()))
        raise CaptureError(f"as_graph=True needs the whole model as one graph: {reason}", path)
    for part in parts.captured:
        name_parts(part)
        part.absent = {} if request.example is None else request.example.absent
    look_outside(parts.captured, _is_leaf, None if request.example is None else request.example.calls)
    return parts


def _reported(
    request: Request, works: list[Work], parts: Parts, before: Measured, after: Measured, error: float | None
) -> Report:
    """The report, with both graphs. before, after: what was measured of the model."""
    (price, original), (final, result) = before, after
    if request.example is None:
        # Nominal sizes depend on how much of a rank is known, so only the prices of the merges compare.
        saved = sum(done.site.saved for work in works for done in work.done)
        final = replace(final, flops=price.flops - round(saved))
    made = summarize(works, parts, price, final, error, {rule.name: rule.equation for rule in request.rules})
    return replace(
        made,
        parts=tuple(described(part, drawn) for part, drawn in zip(parts.captured, original, strict=True)),
        graph_before=marked(original, _sites(works, lambda done: done.site.members)),
        graph_after=marked(result, _sites(works, lambda done: done.nodes)),
    )


def _recipe(tape: Tape, fused: nn.Module) -> Recipe | RecipeError:
    """The recipe, or why there is none."""
    try:
        return tape.recipe(fused)
    except RecipeError as error:
        return error.with_traceback(None)


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


def _begun(model: nn.Module, parts: Parts) -> Measured:
    """What the model costs as it is; what computes nothing is then taken out of the graphs."""
    readings = _readings(parts)
    before = _measured(model, readings)
    for reading in readings:
        _simplify(reading)
    return before


def _readings(parts: Parts) -> list[Reading]:
    """A reading of every part as it is now."""
    for part in parts.captured:
        part.forget()
    return [_read(part) for part in parts.captured]


def _measured(model: nn.Module, readings: Sequence[Reading]) -> Measured:
    """What the model costs, and a sketch of every part."""
    sketches = [sketch(reading, number, computing(reading)) for number, reading in enumerate(readings)]
    return totals(model, readings), sketches


def _sites(works: Sequence[Work], nodes: Callable[[Done], Iterable[fx.Node]]) -> dict[fx.Node, list[int]]:
    """For each node the numbers of its merges, in the order of the report."""
    found: dict[fx.Node, list[int]] = {}
    for number, done in enumerate(done for work in works for done in work.done):
        for node in nodes(done):
            found.setdefault(node, []).append(number)
    return found


def _fused_part(captured: Captured, request: Request, tape: Tape, swapped: list[str] | None) -> Work:
    """Choose, write and prove in one captured part."""
    tape.know(value for value in captured.held.values() if isinstance(value, Tensor))
    trials = Trials()
    judge = trials.judge if request.measured else _unjudged
    writer = Writer(captured, request.as_graph, _unproved, _unheard, judge, tape, swapped)
    said = _apply_patterns(captured, request, writer)
    shown: dict[int, tuple[Picture, ...]] = {}
    if swapped is not None:
        # Norms are joined at the end only, so what needs none taken apart comes first.
        _merged(captured, request, writer, shown)
    scope = request.scope(captured)
    if NORM_INTO_LINEAR in scope.permitted and has_norms(captured):
        with tape:
            take_apart(captured, scope, _read(captured), lambda n, why: said.setdefault(n, []).append(why))
    plan, reading = _merged(captured, request, writer, shown)
    if request.objective == "launches" and STACK_LAYERS in scope.permitted:
        stacks = stack(captured, request.scope(captured), _read(captured))
        _, reading = _merged(captured, request, writer, shown)
        unstack(captured, stacks)
    plan, reading = _with_raised(captured, request, writer, shown, plan, reading)
    seen = [shown.get(id(one), ()) for one, _ in writer.done]
    model, done = writer.finish()
    return Work(model, captured, plan, said, reading, done, seen, trials.found)


def _with_raised(
    captured: Captured,
    request: Request,
    writer: Writer,
    shown: dict[int, tuple[Picture, ...]],
    plan: Plan,
    reading: Reading,
) -> tuple[Plan, Reading]:
    """Scales of a part that are left: let the layer before the split absorb them, as long as there are any."""
    raised: list[Raised] = []
    while True:
        with writer.tape:
            own = _read(captured)
            ways = scaled_parts(captured, request.scope(captured), own)
        made = raise_scales(captured, own, ways, partial(_prove_raised, own) if request.verify else _trusted)
        if not made:
            break
        raised += made
        again = {node for way in ways for node in (way.scale, *way.layer)}
        plan, reading = _merged(captured, request, writer, shown, without(plan, again))
    lower_scales(captured, raised)
    return plan, reading


def _prove_raised(reading: Reading, old: fx.Node, new: fx.Node, over: Collection[fx.Node]) -> None:
    captured = reading.captured
    sources = {node: identity(*reading.shapes[node]) for node in over}
    check(Piece(captured, sources, old, new), f"'{captured.path(old)}'")


def _trusted(old: fx.Node, new: fx.Node, over: Collection[fx.Node]) -> None:
    """No proof: `fuse` was called with verify=False."""


def _simplify(reading: Reading) -> None:
    """Take out of the graph what stands between layers and computes nothing."""
    captured = reading.captured
    if join_borders(captured):
        reading = _read(captured)
    fold_sizes(captured, reading)
    drop_identities(captured, reading)
    drop_dead(captured, reading)
    read_early(captured, reading)


def _merged(
    captured: Captured,
    request: Request,
    writer: Writer,
    shown: dict[int, tuple[Picture, ...]],
    plan: Plan | None = None,
) -> tuple[Plan, Reading]:
    """Choose and write until there is nothing left; `shown` receives the pictures, by merge. plan: what was chosen
    before, on the graph as it was then.
    """
    writable = writer.attempt if request.measured else writer.check
    prices: set[float] = set()
    while True:
        # A merged layer may merge again, now that there is less to choose from.
        plan = None if writer.erase_dead() else plan
        captured.forget()
        scope = request.scope(captured)
        plan, reading = choose(captured, READERS, scope, writable, request.objective, writer.tape, plan)
        _prepare(writer, request, reading, plan.refusals)
        writer.see = partial(_see, reading, shown)
        reading.spend()
        # The price of unknown sizes is a guess, and may rise once a merge is written: the end is where one comes again.
        price = OBJECTIVES[request.objective](plan.before)
        if price in prices or not writer.write(plan.sites):
            return plan, reading
        prices.add(price)


def _see(reading: Reading, shown: dict[int, tuple[Picture, ...]], written: Written) -> None:
    """Draw the weights of a merge."""
    shown[id(written)] = pictures(reading, written)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the tensors, so that nothing large is copied before it is needed."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    # The weight that a weight norm left behind has a history, and such tensors cannot be copied.
    memo |= {id(t): t.detach() for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    # So has what a forward remembers of its parameters, in a dictionary by device or size.
    remembered = leaves([list(vars(m).values()) for m in model.modules()])
    memo |= {id(t): t.detach() for t in remembered if isinstance(t, Tensor) and not t.is_leaf}
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:
        raise InvalidInputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); pass inplace=True to fuse it in place"
        ) from error
    if not _is_copy(made, model):
        raise InvalidInputError(
            "copy.deepcopy of the model gives no copy of it, with the same weights and other modules (has it a"
            " __deepcopy__ or __reduce__ of its own?); pass inplace=True to fuse it in place"
        )
    _take_modes(made, model)
    return made


def _take_modes(made: nn.Module, model: nn.Module) -> None:
    """Let a copy be in the mode of the original: it may have been made anew, and have another graph for each mode."""
    pairs = [(a, b) for a, b in zip(made.modules(), model.modules(), strict=False) if a.training != b.training]
    if pairs:
        made.train(model.training)
    for a, b in pairs:
        a.training = b.training


def _is_copy(made: nn.Module, model: nn.Module) -> bool:
    """Whether two models have the same tensors, and no module in common."""
    pairs = list(itertools.zip_longest(made.modules(), model.modules()))
    pairs = [(a, b) for a, b in pairs if not isinstance(b, torch.jit.ScriptModule)]
    return all(a is not None and a is not b and _own_tensors(a) == _own_tensors(b) for a, b in pairs)


def _own_tensors(module: nn.Module | None) -> dict[str, int]:
    """The parameters and buffers of a module itself, by identity."""
    tables = () if module is None else (module._parameters, module._buffers)
    return {name: id(tensor) for table in tables for name, tensor in table.items()}


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
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) or type(module).forward is nn.Module.forward:
        # What has no forward of its class has one of its own, as what torch.compile makes of a module.
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
        with writer.tape:
            site = next_site(captured, scope, rules, seen, lambda n, why: said.setdefault(n, []).append(why))
        if site is None:
            break
        _prepare(writer, request, _read(captured), said)
        writer.write_pattern(site)
        writer.erase_dead()
        captured.forget()
    return said


def _prover(reading: Reading) -> Prove:
    # Of the graph as it was read: merges that are written first take nodes out of it.
    named = {node.name: node for node in reading.captured.graph.nodes}

    def prove(captured: Captured, written: Written) -> float:
        site = written.site
        paths = sorted({captured.path(member) for member in site.members})
        where = f"'{captured.path(site.value)}' (rules={list(site.rules)}, only={paths})"
        return check(
            Piece(captured, _sources(reading, named, written), site.value, written.result, site.members), where
        )

    return prove


def _sources(reading: Reading, named: Mapping[str, fx.Node], written: Written) -> dict[fx.Node, Operator]:
    """The values a merge reads, each with an operator that tells its sizes."""
    site = written.site
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
        if request.as_graph and not all(isinstance(each, Tensor) for each in (*inputs.args, *inputs.kwargs.values())):
            raise InvalidInputError(
                "as_graph=True makes a graph that takes tensors, one after the other, and the example inputs have"
                " others, or tensors in containers: fuse without it"
            ) from error
        raise EquivalenceError(
            f"the fused model fails on the example inputs ({type(error).__name__}: {error}); if a copy.deepcopy of the"
            " model does so too, pass inplace=True; otherwise please report it"
        ) from error
    found = compare(output, request.example.output, _through(fused, request.example))
    if not found.passed and found.error > AMPLIFIED * (allowed := sensitivity(original, inputs)):
        _check_copies(original, request.example, allowed)
        widened = None if original is fused else compare_wide(fused, original, inputs)
        if widened is not None and widened.passed:
            return widened.error
        found = found if original is fused else replace(found, first=first_difference(fused, original, inputs))
        raise EquivalenceError(
            f"the fused model as a whole is {found}; every single merge was proved, please report it"
        )
    return found.error


def _check_copies(model: nn.Module, example: Example, allowed: float) -> None:
    """Raises `InvalidInputError` if a copy computes something else, as of a model that finds its parts by identity."""
    found = compare(undisturbed(copy.deepcopy(model), example.inputs), example.output, model.parameters())
    if not found.passed and found.error > AMPLIFIED * allowed:
        raise InvalidInputError(
            f"a copy.deepcopy of the model computes something else than the model ({found}): pass inplace=True to fuse"
            " it in place"
        )
