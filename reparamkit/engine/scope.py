"""What may be merged at all: the soundness rules that hold for every fusion, checked in one place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import _disable_current_modes

from ..algebra.form import Form
from ..capture.aliases import STATISTICS, target_of
from ..capture.captured import Captured, storage
from ..errors import NotFusable
from ..layers.hooks import BEFORE, GRADIENTS, has_hooks, reads_arguments
from ..layers.wide import CASTS, computes_weight
from ..reasons import Kind, Reason
from ..running.draws import Draws, random_state_kept
from ..running.state import LAYERS
from ..sourcecode.consulting import consulted, consulted_by_helpers
from ..tracing.frame import Frame
from .arithmetic import dtype_of
from .held import held_by_objects
from .naming import matches
from .sharing import evenly_partnered, read_one_value, runs_once

WRITTEN_INTO = Reason(
    "its value is in memory that an in-place operation writes into, and that another value still reads", Kind.IN_PLACE
)
"""Why a value that is written into stays."""
STAYS = "stays"
"""What the meta of a node that is in no merge has, while a model is being fused: why."""


@dataclass(frozen=True)
class Scope:
    """permitted: names of the rules that may be used. only, skip: module paths or patterns (fnmatch). unwritable: paths
    of modules whose code stays, with the reason. calls: how often a real run called each module, by path (empty: there
    was none).
    """

    captured: Captured
    permitted: frozenset[str]
    only: Sequence[str] | None = None
    skip: Sequence[str] = ()
    unwritable: Mapping[str, Reason] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)

    def check_rules(self, form: Form) -> None:
        """Raises `NotFusable` if a form is built with a rule that is switched off."""
        off = sorted(form.used - self.permitted)
        if off:
            raise NotFusable(f"rule '{off[0]}' is switched off", Kind.LEFT_OUT)

    def refusal(self, node: fx.Node, together: bool = False) -> Reason | None:
        """Why this node may not be part of a merge, or None. together: whether the merge takes either none or all calls
        of a module that read one value, and leaves the module to other calls.
        """
        return (
            node.meta.get(STAYS)
            or self._not_chosen(node)
            or self._in_unwritable(node)
            or self._shared(node, together)
            or _used_outside(self.captured, node)
            or self._held(node)
            or self._not_finite(node)
            or _watched(self.captured, node)
            or self._tied(node)
            or self._aliased(node)
            or self._written(node)
            or self._changing(node)
            or self._computed_otherwise(node)
            or self._converts(node)
        )

    def _not_chosen(self, node: fx.Node) -> Reason | None:
        if self.only is None and not self.skip:
            return None
        paths = self.captured.names(self.captured.path(node))
        if any(matches(path, pattern) for path in paths for pattern in self.skip):
            return Reason("left out by skip=", Kind.LEFT_OUT)
        if self.only is not None and not any(matches(path, pattern) for path in paths for pattern in self.only):
            return Reason("left out by only=", Kind.LEFT_OUT)
        return None

    def _in_unwritable(self, node: fx.Node) -> Reason | None:
        calls = self.captured.frame(node).stack if self.unwritable else ()
        return next((self.unwritable[call.path] for call in calls if call.path in self.unwritable), None)

    def _shared(self, node: fx.Node, together: bool) -> Reason | None:
        modules = [frame.module for frame in self.captured.frame(node).stack]
        if node.op == "call_module":
            modules.append(self.captured.module(node))
        several = [m for m in modules if self.captured.module_calls[id(m)] > 1]
        counted = [m for m in several if m is modules[0] or _has_state(m)]
        calls = max((self.captured.module_calls[id(m)] for m in counted), default=1)
        left = max((self.captured.calls_left(id(m)) for m in counted), default=1)
        alone = left > 1 and not evenly_partnered(self.captured, node)
        if alone and not (together and (read_one_value(self.captured, node) or runs_once(self.captured, node))):
            return called_at(calls)
        traced = (calls + self.captured.unused.ended.get(modules[-1], 0)) * self.captured.origin.times
        run = self.calls.get(str(node.target), traced)
        if run != traced and _has_state(modules[-1]):
            why = f"its module is called {run} times in a run, and {traced} times in what could be captured"
            return Reason(why, Kind.SHARED)
        return None

    @cached_property
    def held(self) -> Mapping[nn.Module, Reason]:
        """The modules that objects of the model's hold, and which."""
        return held_by_objects(self.captured.root)

    def _held(self, node: fx.Node) -> Reason | None:
        return self.held.get(self.captured.module(node)) if node.op == "call_module" else None

    def _tied(self, node: fx.Node) -> Reason | None:
        if node.op != "call_module":
            return None
        for name, tensor in self.captured.module(node).named_parameters():
            if tensor.is_meta or tensor.numel() == 0:
                return Reason(f"its parameter '{name}' has no data", Kind.UNREAD)
            if self.captured.parameter_uses[storage(tensor)] > 1:
                return Reason(f"its parameter '{name}' is tied to another module's", Kind.SHARED)
        return None

    def _not_finite(self, node: fx.Node) -> Reason | None:
        finite = self.captured.finite
        for part in _parts(self.captured, node):
            if isinstance(part, Tensor) and part not in finite:
                real = part.is_floating_point() and part.element_size() > 1
                finite[part] = not real or _is_finite(part)
            if isinstance(part, Tensor) and not finite[part]:
                return Reason("it holds numbers that are not finite", Kind.NUMBERS)
        return None

    def _aliased(self, node: fx.Node) -> Reason | None:
        aliases = self.captured.aliases
        # A norm that writes into its statistics uses those of the batch, and is told so.
        if node in aliases.barriers and not (node in aliases.writers and target_of(node) in STATISTICS):
            return WRITTEN_INTO
        return None

    def _computed_otherwise(self, node: fx.Node) -> Reason | None:
        module = self.captured.module(node) if node.op == "call_module" else nn.Identity()
        if computes_weight(module) and any(m.training for m in module.modules()):
            return Reason("it computes its weight in training mode", Kind.TRAINING)
        if is_parametrized(module) and self._draws(module):
            return Reason("it draws random numbers for its weight in each call", Kind.RANDOM)
        return None

    def _draws(self, module: nn.Module) -> bool:
        if module not in self._drawing:
            with random_state_kept(), torch.no_grad(), Draws() as draws:
                for name in module.parametrizations:  # type: ignore[union-attr]
                    getattr(module, name)
            self._drawing[module] = draws.found
        return self._drawing[module]

    @cached_property
    def _drawing(self) -> dict[nn.Module, bool]:
        """Whether modules draw their weights, of those that were asked."""
        return {}

    def _written(self, node: fx.Node) -> Reason | None:
        written = self.captured.written
        tensors = [p for p in _parts(self.captured, node) if isinstance(p, Tensor) and p.numel()] if written else []
        # A norm in training mode writes into its own, and says so.
        own = node.op == "call_module" and any(m.training for m in self.captured.module(node).modules())
        if not own and any(storage(tensor) in written for tensor in tensors):
            return Reason("its numbers are overwritten in place by the forward", Kind.IN_PLACE)
        return None

    def _changing(self, node: fx.Node) -> Reason | None:
        changing = self.captured.code.changed.names
        if node.op == "call_module" and (names := changing.get(id(self.captured.module(node)))):
            return Reason(f"its attribute '{min(names)}' changes while the model runs", Kind.CHANGING)
        return goes_by(self.captured, self.captured.frame(node))

    def _converts(self, node: fx.Node) -> Reason | None:
        root = next(iter(self.captured.graph.nodes))
        if node.meta["context"][:2] != root.meta["context"][:2]:
            return Reason("inside an autocast region", Kind.DTYPE)
        value = node.meta.get("val")
        casts = node.target in (*CASTS, "to", "type", "type_as", "cpu", "cuda")
        if not isinstance(value, Tensor) and (casts or self._may_promote(node)):
            return Reason("its dtype is not known: pass example_inputs", Kind.SIZES)
        if isinstance(value, Tensor) and self._changes_format(node, value):
            return Reason("dtype or device changes here", Kind.DTYPE)
        return _odd_dtype(value)

    def _changes_format(self, node: fx.Node, value: Tensor) -> bool:
        """A constant beside a value takes the format of the value, or changes it, unless that is written into."""
        tensors = {n: v for n in node.all_input_nodes if isinstance(v := n.meta.get("val"), Tensor)}
        # What asks for a condition says itself that it is computed.
        chooses = target_of(node) in ("where", "masked_fill")
        values = (v for n, v in tensors.items() if n not in self.captured.constants)
        inputs = [v for v in values if not (chooses and v.dtype is torch.bool)]
        kept = node in self.captured.aliases.writers
        return any(v.dtype != value.dtype or v.device != value.device for v in inputs) or (
            kept and any(torch.result_type(value, v) != value.dtype for v in tensors.values())
        )

    def _may_promote(self, node: fx.Node) -> bool:
        """Whether a constant beside a value of unknown dtype may have a wider one, which the result then takes."""
        if len(self.dtypes) < 2 or node.op == "call_module":
            return False
        constants = (n for n in node.all_input_nodes if n in self.captured.constants)
        beside = {dtype for n in constants if (dtype := dtype_of(self.captured, n)) and dtype.is_floating_point}
        return any(torch.promote_types(one, own) != own for one in beside for own in self.dtypes)

    @cached_property
    def dtypes(self) -> set[torch.dtype]:
        """Of the real numbers that the model has; those of single ones make no tensor wider."""
        tensors = itertools.chain(self.captured.root.parameters(), self.captured.root.buffers())
        return {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dim()}


def called_at(calls: int) -> Reason:
    """Why a module stays that is called at several places."""
    return Reason(f"its module is called at {calls} places: a merge would change all of them", Kind.SHARED)


class Everything(Scope):
    """Nothing is left out: for counting what a model costs."""

    def check_rules(self, form: Form) -> None:
        """All rules are permitted."""

    def refusal(self, node: fx.Node, together: bool = False) -> Reason | None:
        """Every node may be read."""
        return None


def _odd_dtype(value: object) -> Reason | None:
    if isinstance(value, Tensor) and not value.is_floating_point():
        return Reason(f"values of {str(value.dtype).removeprefix('torch.')} are not merged", Kind.DTYPE)
    return None


def goes_by(captured: Captured, frame: Frame) -> Reason | None:
    """Words about an attribute that the code of a call reads, and other code changes, if there is one: what a merge is
    made of must not be for that code to put together. What it calls as a whole it may call otherwise.
    """
    changing = captured.code.changed.names
    name = _read_of(frame, changing) if changing else None
    why = f"{frame.path or 'the model'} goes by '{name}', which code changes while the model runs"
    return None if name is None else Reason(why, Kind.CHANGING)


def _read_of(frame: Frame, changing: Mapping[int, Set[str]]) -> str | None:
    """The name of an attribute that the code of a call reads, and other code changes. (What changes the layers of its
    own module matters to all of it.)
    """
    own = frozenset(changing.get(id(frame.module), ()))
    names = frozenset[str]().union(*changing.values())
    read = [consulted(code) for code in frame.user_codes]
    found = [own if each is None else names & each for each in (*read, consulted_by_helpers(type(frame.module)))]
    return min((own & {*LAYERS}).union(*found), default=None)


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _used_outside(captured: Captured, node: fx.Node) -> Reason | None:
    """Code that was not traced may use what the node does, which has to stay for it."""
    used, whole = captured.outside.used, captured.outside.whole
    shared = [frame.module for frame in captured.frame(node).stack if frame.module in whole]
    if shared:
        return whole[shared[0]]
    return next((used[part] for part in _parts(captured, node) if part in used), None) if used else None


def _parts(captured: Captured, node: fx.Node) -> Iterator[nn.Module | Tensor]:
    """The module that a node calls, and the tensors that it reads, also through parameter arithmetic."""
    waiting, seen = [node], {node}
    while waiting:
        found = waiting.pop()
        if found.op == "call_module":
            module = captured.module(found)
            yield module
            yield from (*module.parameters(), *module.buffers())
        elif found.op == "get_attr" and isinstance(value := captured.attribute(found), Tensor):
            yield value
        new = [each for each in found.all_input_nodes if each in captured.constants and each not in seen]
        waiting += new
        seen.update(new)


WATCHED = Reason("it has hooks, which would see other values after a merge", Kind.HOOKS)


def _is_finite(tensor: Tensor) -> bool:
    # No test for a recipe: numbers of another checkpoint are checked when they are converted.
    with _disable_current_modes():
        # A sum in the tensor's own dtype takes half the time; it may only overflow where this one does not.
        return bool(tensor.sum().isfinite()) or bool(tensor.sum(dtype=torch.float64).isfinite())


def _watched(captured: Captured, node: fx.Node) -> Reason | None:
    """Hooks on gradients stay with the layer they are on, and those beside a hook that makes the weight; others of a
    forward can be carried along.
    """
    module = captured.module(node) if node.op == "call_module" else nn.Identity()
    stays = has_hooks(module, *GRADIENTS) or (has_hooks(module) and computes_weight(module))
    return WATCHED if stays else None


def watched(captured: Captured, node: fx.Node, *tables: str) -> bool:
    """Whether a node calls a module with hooks, in any of these tables (default: all); one that looks back at what went
    in is as one before.
    """
    if node.op != "call_module":
        return False
    module = captured.module(node)
    return has_hooks(module, *tables) or (BEFORE in tables and reads_arguments(module))
