"""What must hold for every model: `check` returns the first promise that is broken, or None."""

from __future__ import annotations

import copy
import math
import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import reparamkit
from reparamkit import CaptureError, GuardError, RecipeError, Report

from .program import Program, build, inputs

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Of a result, relative to the larger of the outputs and 0.01 (a difference of equal values is 0 up to rounding)."""
UNTRACEABLE = {"deciding"}
"""Kinds of steps that no tracer can follow."""
NO_WORK = """
    view _unsafe_view _reshape_alias t permute transpose expand unsqueeze squeeze alias detach slice select as_strided
    split split_with_sizes lift_fresh empty empty_like unbind clone _to_copy new_zeros zeros_like flip unfold
    view_as_complex diagonal squeeze_ unsqueeze_
"""
PRODUCTS = frozenset(["convolution", "mm", "addmm", "bmm", "baddbmm"])
NEIGHBOURS = 8
"""Inputs beside the given ones that tell whether a model is well posed."""
LAUNCH = 40_000
"""FLOPs that an operation is worth."""
FREE = ("flops", "params")
"""Objectives for which operations are all but free."""
REFUSED = ("cannot be multiplied", "to have", "must match the size")
"""What torch says where a size is not the one that a layer takes."""
VIEWS = frozenset(NO_WORK.split())
"""Operations that compute nothing."""


@dataclass(frozen=True)
class Failure:
    """A broken promise. kind: which, in a few words; where: of an exception, the innermost line of reparamkit."""

    kind: str
    detail: str
    where: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Two failures with one key are taken for the same."""
        return self.kind, self.where


class Skip(Exception):
    """The program itself cannot be run."""


@dataclass(frozen=True)
class Trial:
    """One way to fuse the model of a program. given: with example inputs."""

    given: bool
    options: dict[str, Any]

    def __str__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"reparamkit.fuse(model{', inputs' if self.given else ''}{options})"


def trials(program: Program) -> Iterator[Trial]:
    """The ways a program is fused: one with default options, sometimes another."""
    draw = random.Random(program.seed)
    given = draw.random() < 0.65
    yield Trial(given, {})
    other = draw.random()
    if other < 0.15:
        yield Trial(not given, {})
    elif other < 0.3:
        yield Trial(given, {"verify": False})
    elif other < 0.36:
        names = [rule.name for rule in reparamkit.rules]
        yield Trial(given, {"rules": draw.sample(names, draw.randint(0, len(names)))})
    elif other < 0.42:
        yield Trial(given, {"objective": draw.choice(["latency", "flops", "params", "launches"])})
    elif other < 0.46:
        yield Trial(given, {"inplace": True})
    elif other < 0.5:
        yield Trial(given, {"as_graph": True})


def check(program: Program) -> tuple[Failure, Trial] | None:
    """The first broken promise of a program. Raises `Skip` if the model itself cannot be run."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        original = _runnable(program)
        for trial in trials(program):
            found = check_trial(program, trial, original)
            if found is not None:
                return found, trial
    return None


def _runnable(program: Program) -> nn.Module:
    try:
        model = build(program)
        outputs = _tensors(_run(model, inputs(program)))
        again = _tensors(_run(model, inputs(program)))
    except Exception as error:
        raise Skip(repr(error)) from error
    if not all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True)):
        raise Skip("two runs differ")
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes and getattr(torch, program.dtype) not in dtypes:
        raise Skip("the dtype of the inputs is none of the model's")
    if not outputs or not all(t.isfinite().all() and t.abs().max() < 1e12 for t in outputs if t.numel()):
        raise Skip("not finite")
    return model


def check_trial(program: Program, trial: Trial, original: nn.Module) -> Failure | None:
    """The first promise that is broken when the model is fused in one way."""
    model = copy.deepcopy(original) if trial.options.get("inplace") else original
    before = {name: t.clone() for name, t in original.state_dict().items()}
    given = inputs(program)
    example = tuple(t.clone() for t in given) if trial.given else None
    try:
        fused = reparamkit.fuse(model, example, **trial.options)
    except CaptureError as error:
        fair = not trial.given or "as_graph" in trial.options or program.kinds & UNTRACEABLE
        return None if fair else _raised("CaptureError", error)
    except Exception as error:
        return _raised(type(error).__name__, error)
    promises: list[Callable[[], Failure | None]] = [
        partial(_untouched, original, before, example, given),
        partial(_outputs, program, original, fused, trial),
    ]
    if not trial.options.get("inplace"):
        promises.append(partial(_no_shared_memory, original, fused))
    if not trial.options.get("as_graph"):
        promises.append(partial(_same_class, original, fused))
        promises.append(partial(_report, reparamkit.report(fused), original, fused, trial))
        promises.append(partial(_work, program, original, fused, trial))
    draw = random.Random(program.seed + 1).random()
    if draw < 0.25:
        promises.append(partial(_twice, program, fused, trial))
    elif draw < 0.3 and not trial.options:
        promises.append(partial(_order, original, fused, example))
    elif draw < 0.35:
        promises.append(partial(_copied, program, fused))
    elif draw < 0.5 and "as_graph" not in trial.options:
        promises.append(partial(_converted, program, original, fused, trial))
    return next((failure for promise in promises if (failure := promise()) is not None), None)


def _raised(kind: str, error: BaseException) -> Failure:
    lines = [f for f in traceback.extract_tb(error.__traceback__) if "/reparamkit/" in f.filename]
    where = f"{lines[-1].filename.rpartition('/reparamkit/')[2]}:{lines[-1].name}" if lines else ""
    return Failure(f"raises {kind}", f"{type(error).__name__}: {error}", where)


# --- promises -----------------------------------------------------------------------------------------


def _run(model: nn.Module, given: tuple[Tensor, ...]) -> Any:
    """The output on copies of the inputs, buffers left as they are."""
    kept = {name: t.clone() for name, t in model.named_buffers()}
    try:
        return tree_map(_own, model(*(t.clone() for t in given)))
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])


def _own(leaf: Any) -> Any:
    """An output may be a buffer, or a view of one."""
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor)]


def _other_shapes(program: Program) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
    yield "another batch", tuple((3, *s[1:]) for s in program.shapes)
    yield "a single sample", tuple((1, *s[1:]) for s in program.shapes)
    if len(program.shapes[0]) > 2:
        yield "another size", tuple((2, s[1], *(n + 1 + k for k, n in enumerate(s[2:]))) for s in program.shapes)
        yield "a smaller size", tuple((2, s[1], *(max(1, n - 2) for n in s[2:])) for s in program.shapes)


def _outputs(program: Program, original: nn.Module, fused: nn.Module, trial: Trial) -> Failure | None:
    """Equal outputs on the example inputs and on other sizes; there a guard may refuse."""
    found = _differs(program, original, fused, program.shapes, guarded=not trial.given)
    if found is not None:
        return Failure(f"{found.partition(':')[0]} on the inputs", found)
    for name, shapes in _other_shapes(program):
        found = _differs(program, original, fused, shapes, guarded=True)
        if found is not None:
            return Failure(f"{found.partition(':')[0]} on {name}", f"{found} {shapes}")
    return None


def _differs(
    program: Program, original: nn.Module, fused: nn.Module, shapes: tuple[tuple[int, ...], ...], guarded: bool
) -> str | None:
    given = inputs(program, shapes)
    try:
        output = _run(original, given)
    except Exception:
        return None
    wanted = _tensors(output)
    if not all(t.isfinite().all() for t in wanted):
        return None
    try:
        mine = _run(fused, given)
    except GuardError as error:
        return None if guarded else f"GuardError: {error}"
    except Exception as error:
        # A size of 1 may have been broadcast, which a merged layer refuses by itself; so may it a map of no numbers.
        empty = not all(t.numel() for t in wanted)
        refused = guarded and (empty or any(words in str(error) for words in REFUSED))
        return None if refused else f"{type(error).__name__} in the fused model: {error}"
    found = _tensors(mine)
    if type(mine) is not type(output) or [t.dtype for t in found] != [t.dtype for t in wanted]:
        return "another type of output"
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return f"another shape: {[tuple(t.shape) for t in found]}, not {[tuple(t.shape) for t in wanted]}"
    worst, allowed = _worst(found, wanted), TOLERANCE[program.rounding]
    same = worst <= allowed or _decided_by_rounding(original, given, wanted, allowed)
    return None if same else f"wrong: error {worst:.1e}"


def _decided_by_rounding(original: nn.Module, given: tuple[Tensor, ...], wanted: list[Tensor], allowed: float) -> bool:
    """Whether the model itself gives other numbers for inputs that differ from these by a few roundings: it branches on
    a sum that is 0 but for them.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(NEIGHBOURS):
        noise = (4 * torch.finfo(t.dtype).eps * torch.randn(t.shape, generator=generator).to(t) for t in given)
        found = _tensors(_run(original, tuple(t + t * e for t, e in zip(given, noise, strict=True))))
        if [t.shape for t in found] != [t.shape for t in wanted] or _worst(found, wanted) > allowed:
            return True
    return False


def _worst(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max((_error(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    if not b.numel():
        return 0.0
    if not b.is_floating_point():
        return float(not torch.equal(a, b))
    difference = float((a.double() - b.double()).abs().max())
    return difference / max(float(b.double().abs().max()), 0.01) if difference == difference else float("inf")


def _untouched(
    original: nn.Module, before: dict[str, Tensor], example: tuple[Tensor, ...] | None, given: tuple[Tensor, ...]
) -> Failure | None:
    after = original.state_dict()
    if after.keys() != before.keys() or not all(torch.equal(before[n], t) for n, t in after.items()):
        return Failure("the original is changed", "its state_dict differs")
    if example is not None and not all(torch.equal(a, b) for a, b in zip(example, given, strict=True)):
        return Failure("the example inputs are changed", "")
    return None


def _no_shared_memory(original: nn.Module, fused: nn.Module) -> Failure | None:
    mine, theirs = ({id(m) for m in model.modules()} for model in (original, fused))
    if mine & theirs:
        return Failure("a module is shared with the original", "")
    mine, theirs = ({t.untyped_storage().data_ptr() for t in _state(m) if t.numel()} for m in (original, fused))
    return Failure("memory is shared with the original", "") if mine & theirs else None


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _same_class(original: nn.Module, fused: nn.Module) -> Failure | None:
    if not isinstance(fused, type(original)) or type(fused).__name__ != type(original).__name__:
        return Failure("another class", f"{type(fused)}")
    return Failure("another mode", "") if fused.training else None


def _report(report: Report, original: nn.Module, fused: nn.Module, trial: Trial) -> Failure | None:
    if any(not r.reason.strip() for r in report.refusals):
        return Failure("a refusal without reason", str(report))
    str(report)
    before, after = report.before, report.after
    free = trial.options.get("objective") == "launches"
    if not free and after.flops > before.flops:
        return Failure("FLOPs rise", f"{before.flops} -> {after.flops}\n{report}")
    numbers = [sum(t.numel() for t in _state(m) if t.is_floating_point()) for m in (original, fused)]
    biases = sum(m.numel() for n, m in fused.named_parameters() if n.rpartition(".")[2] == "bias")
    free |= trial.options.get("objective") == "flops"
    if not free and numbers[1] > numbers[0] and numbers[1] - biases > numbers[0]:
        return Failure("stored numbers rise", f"{numbers[0]} -> {numbers[1]}\n{report}")
    if numbers[0] != before.stored or numbers[1] != after.stored:
        return Failure("the report miscounts", f"stored {before.stored} -> {after.stored}, really {numbers}")
    return None


class _Calls(TorchDispatchMode):
    """Counts the operations that compute something, and roughly the element-wise work of those that are no products."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        output = func(*args, **(kwargs or {}))
        if name not in VIEWS:
            self.names.append(name)
            first = output[0] if isinstance(output, (tuple, list)) else output
            counted = isinstance(first, Tensor) and name not in PRODUCTS
            self.elements += _each(name, args) * first.numel() if counted else 0
        return output


def _each(name: str, args: tuple[Any, ...]) -> int:
    """The FLOPs of an element-wise operation per element of what it gives; an average reads many for one."""
    if name.startswith("avg_pool"):
        return 2 * int(math.prod(args[1]))
    if name == "mean":
        return 2 + math.prod(args[0].shape[d] for d in (args[1:] or [range(args[0].dim())])[0] or ())
    affine = name in ("native_layer_norm", "native_group_norm") and any(isinstance(a, Tensor) for a in args[1:3])
    return 4 if affine else 2


def operations(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[list[str], int]:
    """The operations that run, views and copies aside, and their FLOPs."""
    with FlopCounterMode(display=False) as products, _Calls() as calls:
        _run(model, given)
    return calls.names, products.get_total_flops() + calls.elements


def _work(program: Program, original: nn.Module, fused: nn.Module, trial: Trial) -> Failure | None:
    """At run time the FLOPs do not rise, nor do the operations, unless each that is added saves FLOPs worth it."""
    if not trial.given or trial.options.get("objective") == "launches" or program.kinds & {"counting"}:
        return None
    before, after = (operations(model, inputs(program)) for model in (original, fused))
    worth = 0 if trial.options.get("objective") in FREE else LAUNCH
    more = len(after[0]) - len(before[0])
    if more > 0 and more * worth > before[1] - after[1]:
        return Failure("operations rise", f"{' '.join(before[0])} -> {' '.join(after[0])}")
    if after[1] > 1.1 * before[1]:
        return Failure("FLOPs at run time rise", f"{before[1]} -> {after[1]}")
    return None


def _twice(program: Program, fused: nn.Module, trial: Trial) -> Failure | None:
    """Fusing what was fused finds nothing, or at least nothing wrong."""
    given = inputs(program)
    try:
        second = reparamkit.fuse(fused, given if trial.given else None)
    except CaptureError as error:
        fair = not trial.given or program.kinds & UNTRACEABLE
        return None if fair else _raised("CaptureError when fused again", error)
    except Exception as error:
        return _raised(f"{type(error).__name__} when fused again", error)
    found = _differs(program, fused, second, program.shapes, guarded=not trial.given)
    if found is not None:
        return Failure("fused again: " + found.partition(":")[0], found)
    merges = reparamkit.report(second).merges
    # What stands in code the first time, which hooks keep from being written again, are modules in a row afterwards.
    hooked = any("hooks" in refusal.reason for refusal in reparamkit.report(fused).refusals)
    if merges and not trial.options and not hooked:
        return Failure("fusing again merges more", f"{reparamkit.report(second)}")
    return None


def _order(original: nn.Module, fused: nn.Module, example: tuple[Tensor, ...] | None) -> Failure | None:
    """The order of the built-in rules does not matter: backwards, each rule first once."""
    rules = tuple(reparamkit.rules)[::-1]
    for order in ((*rules[k:], *rules[:k]) for k in range(len(rules))):
        other = reparamkit.fuse(original, example, rules=order).state_dict()
        mine = fused.state_dict()
        if other.keys() != mine.keys() or not all(torch.equal(t, other[n]) for n, t in mine.items()):
            return Failure("the order of the rules matters", ", ".join(rule.name for rule in order))
    return None


def _copied(program: Program, fused: nn.Module) -> Failure | None:
    """A deep copy computes the same."""
    found = _differs(program, fused, copy.deepcopy(fused), program.shapes, guarded=True)
    return None if found is None else Failure("a copy: " + found.partition(":")[0], found)


def _converted(program: Program, original: nn.Module, fused: nn.Module, trial: Trial) -> Failure | None:
    """A fused model with the converted state of another checkpoint computes what the original does with that one."""
    other, mine = _with_other_numbers(original, program.seed), copy.deepcopy(fused)
    try:
        state = reparamkit.convert_state_dict(fused, other.state_dict())
    except RecipeError:
        # Decisions that went by numbers are others.
        return None
    except Exception as error:
        return _raised(f"{type(error).__name__} of convert_state_dict", error)
    try:
        mine.load_state_dict(state)
    except RuntimeError as error:
        return Failure("a converted state does not fit", str(error))
    found = _differs(program, other, mine, program.shapes, guarded=not trial.given)
    return None if found is None else Failure("converted: " + found.partition(":")[0], found)


def _with_other_numbers(original: nn.Module, seed: int) -> nn.Module:
    """A copy with other parameters and statistics; of every second program zeros stay zeros."""
    model, generator = copy.deepcopy(original), torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.mul_(0.5 + torch.rand(tensor.shape, generator=generator).to(tensor))
            if seed % 2 and not name.endswith("running_var"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator).to(tensor))
    return model
