"""``fuse``: capture -> read -> choose -> write -> verify -> report."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from .algebra.size import Symbol
from .as_graph import check_graph
from .capture.parts import Parts, capture_parts
from .capture.ranks import takes_other_ranks
from .carried import carry, recorded, report
from .compare import Verification, compare, outputs
from .copies import owning, sharing_copy
from .engine.outside import look_outside
from .engine.overwrites import note_overwrites
from .engine.parts import name_parts
from .engine.ranks import tell_ranks
from .engine.reading import Reading
from .errors import CoverageError, InvalidInputError, Unwritable
from .exported import graph_of, tensors_in
from .garbage import rarely_collected
from .inputs import checked_inputs, checked_model, tried
from .layers.hooks import has_hooks
from .layers.leaves import is_leaf
from .localize import first_difference
from .merging import Merging, follow_assignments, read_as_it_is, simplify
from .recipes.convert import refuse_original
from .recipes.tape import Tape
from .refusals import left
from .reporting import Report
from .request import Request, requested
from .rulebook.rule import Rule
from .running.caches import caches_left, empty_tables
from .running.draws import random_state_kept
from .running.iterators import iterators_left
from .running.state import intact, kept
from .running.undone import undone
from .summary import Fusion, summarize, suspicious
from .totals import Measured, measured
from .tracing.constants import decide_again
from .tracing.scripts import compiled_opened
from .whole import check_whole, through
from .work import Work

LOG = logging.getLogger("reparamkit")
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
    with ONE_AT_A_TIME, rarely_collected(), compiled_opened(), random_state_kept(), kept(*own):
        request = requested(
            model,
            example_inputs,
            example_kwargs,
            rules=rules,
            extra_rules=extra_rules,
            without=without,
            only=only,
            skip=skip,
            objective=objective,
            verify=verify,
            inplace=inplace,
            as_graph=as_graph,
            min_coverage=min_coverage,
        )
        # What is made under inference mode could not be trained, exported or changed later.
        with torch.inference_mode(False), torch.no_grad():
            return _fused(model, request)


def explain(model: nn.Module | ExportedProgram, example_inputs: Any = None, **options: Any) -> Report:
    """The report that `fuse` would give with the same arguments; the model is left as it is.

    Args:
        model: as for `fuse`.
        example_inputs: as for `fuse`.
        options: the other arguments of `fuse`; `inplace` is ignored.

    Raises what `fuse` raises.
    """
    options["inplace"] = False
    fused = fuse(model, example_inputs, **options)
    return report(fused)


def verify(
    a: nn.Module, b: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None
) -> Verification:
    """Compare two models on the same inputs, output tensor by output tensor.

    If they differ, the result tells where in the output, and the first module that is to blame.

    Args:
        a: the model in question, in eval mode; left as it is.
        b: the reference, in eval mode; left as it is.
        example_inputs: as for `fuse`.
        example_kwargs: as for `fuse`.

    Raises:
        InvalidInputError: a model is in training mode or rejects the inputs, or there are none.
    """
    checked_model(a), checked_model(b)
    with ONE_AT_A_TIME, compiled_opened(), random_state_kept():
        example = checked_inputs(b, example_inputs, example_kwargs, "the reference b")
        if example is None:
            raise InvalidInputError("verify runs both models: pass example_inputs that they take")
        with undone(a):
            output = [tensor for _ in range(example.runs) for tensor in tried(a, example.inputs, "model a")]
        found = compare(output, example.output, through(b, example))
        return found if found.passed else replace(found, first=first_difference(a, b, example.inputs))


# --- the pipeline -------------------------------------------------------------------------------------


def _fused(model: nn.Module, request: Request) -> nn.Module:
    swapped: list[str] = []
    try:
        return _fused_as_written(model, request, swapped)
    except BaseException as error:
        if swapped:
            error.add_note(f"merged in place before this: {', '.join(swapped)}; the model computes what it computed")
        raise


def _fused_as_written(model: nn.Module, request: Request, swapped: list[str]) -> nn.Module:
    """Fuse, and once more without the merges that cannot be written into one method together: that shows only when all
    merges are chosen, before anything is changed.
    """
    while True:
        try:
            return _fused_whole(model, request, swapped)
        except Unwritable as no:
            if no.reasons.keys() <= request.unwritable.keys():
                raise
            request = replace(request, unwritable={**request.unwritable, **no.reasons})


def _fused_whole(model: nn.Module, request: Request, swapped: list[str]) -> nn.Module:
    """The fused model, with its report and recipe. swapped: receives the paths of layers merged in `model` itself."""
    at_once = request.inplace and not request.as_graph
    private = model if at_once else sharing_copy(model)
    with _left_alone(private):
        if request.inputs is not None:
            empty_tables(private, partial(outputs, private, request.inputs), lambda a, b: compare(a, b).passed)
        parts, tape = _captured(private, request), Tape(private)
        before, assumed = _begun(private, parts, tape)
    cautions = suspicious(private)
    merge = partial(_merged, tape=tape, swapped=swapped if at_once else None)
    works = merge(parts, request, assumed)
    refusals, fused = left(works, parts), works[0].model
    later, last = _merged_again(fused, works, parts, request, tape, merge)
    how = recorded(tape, fused)
    fused = fused if request.inplace else owning(fused, model)
    error = check_whole(fused, fused if at_once else model, request)
    after = measured(fused, _readings(last))
    found = summarize(Fusion(request, works, later, parts, refusals, before, after, error, cautions))
    carry(fused, found, how)
    refuse_original(fused, tape.inputs)
    _tell(found)
    _check_coverage(found, request.min_coverage)
    return fused


def _merged(
    parts: Parts, request: Request, assumed: Sequence[Mapping[Symbol, int]], *, tape: Tape, swapped: list[str] | None
) -> list[Work]:
    """Make the merges of each part. assumed: the sizes that its reading had to assume."""
    given = zip(parts.captured, assumed, strict=True)
    return [Merging(part, request, sizes, tape, swapped).run() for part, sizes in given]


def _merged_again(
    fused: nn.Module,
    works: list[Work],
    parts: Parts,
    request: Request,
    tape: Tape,
    merge: Callable[[Parts, Request, Sequence[Mapping[Symbol, int]]], list[Work]],
) -> tuple[list[Work], Parts]:
    """Capture what was written and merge it too, as long as more may merge; returns that work, and the last parts."""
    later: list[Work] = []
    while (found := _captured_again(fused, works, request, tape)) is not None:
        parts, works = found[0], merge(*found)
        later += works
    return later, parts


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Inside, code of the model may run: its caches and iterators are put back, and after an error the whole model."""
    with intact(model), caches_left(model), iterators_left(model):
        yield


def _captured_again(
    model: nn.Module, works: Sequence[Work], request: Request, tape: Tape
) -> tuple[Parts, Request, list[Mapping[Symbol, int]]] | None:
    """The parts of what was written, with the request and the sizes to merge them under; None if no more can merge, or
    the model does not run.
    """
    if request.as_graph or not any(work.may_go_on for work in works):
        return None
    with suppress(InvalidInputError), _left_alone(model):
        if request.inputs is not None:
            request = replace(request, example=checked_inputs(model, request.inputs.args, request.inputs.kwargs))
        parts = _captured(model, request)
        return parts, request, _begun(model, parts, tape)[1]
    return None


def _captured(model: nn.Module, request: Request) -> Parts:
    """What could be traced of a model, with the parts of its tensors named."""
    calls = {} if request.example is None else request.example.calls
    parts = capture_parts(model, request.inputs, is_leaf, has_hooks, whole=request.as_graph, calls=calls)
    if request.as_graph:
        check_graph(model, parts, request)
    ranks_vary = request.inputs is not None and takes_other_ranks(model, request.inputs)
    for part in parts.captured:
        name_parts(part)
        note_overwrites(part)
        tell_ranks(part)
        part.origin.absent = {} if request.example is None else request.example.absent
        part.code.overwritten = set() if request.example is None else request.example.written
        part.opened = set(map(id, part.frames)) if request.as_graph else set()
        part.origin.ranks_vary = ranks_vary
    look_outside(parts.captured, is_leaf, None if request.example is None else request.example.calls)
    return parts


def _tell(found: Report) -> None:
    LOG.info("%s: %s; merged %s", found.model, found.summary, found.coverage)
    for merge in found.merges:
        LOG.debug("merged %s into %s (%s)", ", ".join(merge.members), merge.path, ", ".join(merge.rules))
    for refusal in found.refusals:
        LOG.debug("left %s (%s): %s", refusal.path, refusal.layer, refusal.reason)


def _check_coverage(found: Report, wanted: float) -> None:
    if found.coverage.share < wanted:
        left = "\n".join(f"  {refusal.path} ({refusal.layer}): {refusal.reason}" for refusal in found.refusals)
        raise CoverageError(
            f"merged {found.coverage}, and min_coverage={wanted} asks for more; left as they are:\n{left}"
        )


def _begun(model: nn.Module, parts: Parts, tape: Tape) -> tuple[Measured, list[Mapping[Symbol, int]]]:
    """What the model costs as it is, and the sizes to assume for each part.

    Nodes that compute nothing are then removed from the graphs, after the tape has recorded which numbers the model's
    code took branches by.
    """
    for part in parts.captured:
        with tape:
            decide_again(part.graph, part.attribute)
        follow_assignments(part)
    readings = _readings(parts)
    before = measured(model, readings)
    for reading in readings:
        simplify(reading)
    return before, [reading.to_assume for reading in readings]


def _readings(parts: Parts) -> list[Reading]:
    """A reading of every part as it is now."""
    for part in parts.captured:
        part.forget()
    return [read_as_it_is(part) for part in parts.captured]
