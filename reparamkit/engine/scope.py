"""What may be merged at all: the soundness rules that hold for every fusion, checked in one place."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import _disable_current_modes

from ..algebra.form import Form
from ..capture.aliases import MAY_ALIAS, STATISTICS, target_name, target_of
from ..capture.captured import Captured, storage
from ..capture.paths import module_at, start_of, upwards
from ..errors import NotFusable
from ..layers.hooks import BEFORE, GRADIENTS, has_hooks, reads_arguments
from ..layers.wide import CASTS, computes_weight
from ..running.draws import Draws, random_state_kept
from ..running.state import LAYERS
from ..sourcecode.consulting import consulted, consulted_by_helpers
from ..sourcecode.flow import Way
from ..sourcecode.handing import EACH, ELSEWHERE, hands_on_otherwise, readers_of_results
from ..sourcecode.methods import called_by_methods, read_by_methods, ways_of_methods
from ..sourcecode.parse import forward_of
from ..tracing.frame import Frame, Method
from .arithmetic import dtype_of
from .held import held_by_objects
from .sharing import evenly_partnered, read_one_value, runs_once

Ways = Mapping[str, frozenset[Way]]
"""Per path that the code of a method calls, in which branches it does."""
CODE = "()"
"""Stands for what the code of a module itself does, after its path."""
WRITTEN_INTO = "an in-place operation writes into memory that another value still reads"
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
    unwritable: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)

    def check_rules(self, form: Form) -> None:
        """Raises `NotFusable` if a form is built with a rule that is switched off."""
        off = sorted(form.used - self.permitted)
        if off:
            raise NotFusable(f"rule '{off[0]}' is switched off")

    def refusal(self, node: fx.Node, together: bool = False) -> str | None:
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

    def _not_chosen(self, node: fx.Node) -> str | None:
        if self.only is None and not self.skip:
            return None
        paths = self.captured.names(self.captured.path(node))
        if any(matches(path, pattern) for path in paths for pattern in self.skip):
            return "left out by skip="
        if self.only is not None and not any(matches(path, pattern) for path in paths for pattern in self.only):
            return "left out by only="
        return None

    def _in_unwritable(self, node: fx.Node) -> str | None:
        calls = self.captured.frame(node).stack if self.unwritable else ()
        return next((self.unwritable[call.path] for call in calls if call.path in self.unwritable), None)

    def _shared(self, node: fx.Node, together: bool) -> str | None:
        modules = [frame.module for frame in self.captured.frame(node).stack]
        if node.op == "call_module":
            modules.append(self.captured.module(node))
        several = [m for m in modules if self.captured.module_calls[id(m)] > 1]
        counted = [m for m in several if m is modules[0] or _has_state(m)]
        calls = max((self.captured.module_calls[id(m)] for m in counted), default=1)
        left = max((self.captured.calls_left(id(m)) for m in counted), default=1)
        alone = left > 1 and not evenly_partnered(self.captured, node)
        if alone and not (together and (read_one_value(self.captured, node) or runs_once(self.captured, node))):
            return f"its module is called at {calls} places: a merge would change all of them"
        traced = (calls + self.captured.uncalled[id(modules[-1])]) * self.captured.times
        run = self.calls.get(str(node.target), traced)
        if run != traced and _has_state(modules[-1]):
            return f"its module is called {run} times in a run, and {traced} times in what could be captured"
        return None

    @cached_property
    def held(self) -> Mapping[nn.Module, str]:
        """The modules that objects of the model's hold, and which."""
        return held_by_objects(self.captured.root)

    def _held(self, node: fx.Node) -> str | None:
        return self.held.get(self.captured.module(node)) if node.op == "call_module" else None

    def _tied(self, node: fx.Node) -> str | None:
        if node.op != "call_module":
            return None
        for name, tensor in self.captured.module(node).named_parameters():
            if tensor.is_meta or tensor.numel() == 0:
                return f"parameter '{name}' has no data"
            if self.captured.parameter_uses[storage(tensor)] > 1:
                return f"parameter '{name}' is tied to another module's"
        return None

    def _not_finite(self, node: fx.Node) -> str | None:
        finite = self.captured.finite
        for part in _parts(self.captured, node):
            if isinstance(part, Tensor) and part not in finite:
                real = part.is_floating_point() and part.element_size() > 1
                finite[part] = not real or _is_finite(part)
            if isinstance(part, Tensor) and not finite[part]:
                return "it holds numbers that are not finite"
        return None

    def _aliased(self, node: fx.Node) -> str | None:
        aliases = self.captured.aliases
        # A norm that writes into its statistics uses those of the batch, and is told so.
        if node in aliases.barriers and not (node in aliases.writers and target_of(node) in STATISTICS):
            return WRITTEN_INTO
        return None

    def _computed_otherwise(self, node: fx.Node) -> str | None:
        module = self.captured.module(node) if node.op == "call_module" else nn.Identity()
        if computes_weight(module) and any(m.training for m in module.modules()):
            return "it computes its weight in training mode"
        if is_parametrized(module) and self._draws(module):
            return "it draws random numbers for its weight in each call"
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

    def _written(self, node: fx.Node) -> str | None:
        written = self.captured.written
        tensors = [p for p in _parts(self.captured, node) if isinstance(p, Tensor) and p.numel()] if written else []
        # A norm in training mode writes into its own, and says so.
        own = node.op == "call_module" and any(m.training for m in self.captured.module(node).modules())
        if not own and any(storage(tensor) in written for tensor in tensors):
            return "its numbers are overwritten in place by the forward"
        return None

    def _changing(self, node: fx.Node) -> str | None:
        changing = self.captured.changed.names
        if node.op == "call_module" and (names := changing.get(id(self.captured.module(node)))):
            return f"its attribute '{min(names)}' changes while the model runs"
        return goes_by(self.captured, self.captured.frame(node))

    def _converts(self, node: fx.Node) -> str | None:
        root = next(iter(self.captured.graph.nodes))
        if node.meta["context"][:2] != root.meta["context"][:2]:
            return "inside an autocast region"
        value = node.meta.get("val")
        casts = node.target in (*CASTS, "to", "type", "type_as", "cpu", "cuda")
        if not isinstance(value, Tensor) and (casts or self._may_promote(node)):
            return "its dtype is not known: pass example_inputs"
        if isinstance(value, Tensor) and self._changes_format(node, value):
            return "dtype or device changes here"
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


class Everything(Scope):
    """Nothing is left out: for counting what a model costs."""

    def check_rules(self, form: Form) -> None:
        """All rules are permitted."""

    def refusal(self, node: fx.Node, together: bool = False) -> str | None:
        """Every node may be read."""
        return None


def _odd_dtype(value: object) -> str | None:
    if isinstance(value, Tensor) and not value.is_floating_point():
        return f"values of {str(value.dtype).removeprefix('torch.')} are not merged"
    return None


def goes_by(captured: Captured, frame: Frame) -> str | None:
    """Words about an attribute that the code of a call reads, and other code changes, if there is one: what a merge is
    made of must not be for that code to put together. What it calls as a whole it may call otherwise.
    """
    changing = captured.changed.names
    name = _read_of(frame, changing) if changing else None
    return name and f"{frame.path or 'the model'} goes by '{name}', which code changes while the model runs"


def _read_of(frame: Frame, changing: Mapping[int, Set[str]]) -> str | None:
    """The name of an attribute that the code of a call reads, and other code changes. (What changes the layers of its
    own module matters to all of it.)
    """
    own = frozenset(changing.get(id(frame.module), ()))
    names = frozenset[str]().union(*changing.values())
    read = [consulted(code) for code in {forward_of(frame.module).__code__, *frame.codes}]
    found = [own if each is None else names & each for each in (*read, consulted_by_helpers(type(frame.module)))]
    return min((own & {*LAYERS}).union(*found), default=None)


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _used_outside(captured: Captured, node: fx.Node) -> str | None:
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


WATCHED = "it has hooks, which would see other values after a merge"


def _is_finite(tensor: Tensor) -> bool:
    # No test for a recipe: numbers of another checkpoint are checked when they are converted.
    with _disable_current_modes():
        # A sum in the tensor's own dtype takes half the time; it may only overflow where this one does not.
        return bool(tensor.sum().isfinite()) or bool(tensor.sum(dtype=torch.float64).isfinite())


def _watched(captured: Captured, node: fx.Node) -> str | None:
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


def place_of(node: fx.Node) -> str:
    """The path of the module a node calls, or stands for; "" for a function."""
    place = node.meta.get("place", node.target if node.op == "call_module" else "")
    return str(place)


def name_of(node: fx.Node) -> str:
    """The name of what a node calls, or stands for."""
    target = node.meta.get("stands for", node.target)
    return str(getattr(target, "__name__", target))


def called_plainly(node: fx.Node) -> bool:
    """Whether a module is called as any layer of torch can be: with its input alone."""
    return (len(node.args), *node.kwargs) in ((1,), (0, "input"))


def partial_methods(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """The methods, forward aside, that made a part of these nodes and not all of them; a view computes nothing."""
    nodes = {node for node in members if target_name(node, captured.module) not in MAY_ALIAS}
    running = frozenset[Method]().union(*(node.meta.get("methods", ()) for node in nodes))
    return {method for method in running if not nodes <= captured.methods[method]}


def varying_methods(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """The methods that made all of these nodes, and whose code has other ways, on which it may make a part of them."""
    nodes = {node for node in members if target_name(node, captured.module) not in MAY_ALIAS}
    if len(nodes) < 2:
        return set()
    around = code_around(captured, nodes)
    running = frozenset.intersection(*(node.meta.get("methods", frozenset()) for node in nodes))
    code = ways_of_methods(type(around.module))
    own = [name for module, name in running if module is around.module and name in code]
    return {(around.module, name) for name in own if _varies(captured, around, code[name], nodes)}


def _varies(captured: Captured, around: Frame, calls: Ways, nodes: Set[fx.Node]) -> bool:
    """Whether a method of the module of a call may make some of these nodes without the others. calls: of its code."""
    return _differ(calls, {_ways_to(captured, around, calls, node) for node in nodes})


def _ways_to(captured: Captured, around: Frame, calls: Ways, node: fx.Node) -> frozenset[Way]:
    """The ways on which code calls what makes a node: a module inside, or a method."""
    inner = _called_at(captured, around, node).removeprefix(start_of(around.path))
    made = captured.methods
    helpers = {name for name in calls if node in made.get((around.module, name), ())}
    return _ways(calls, [inner]) or frozenset().union(*(calls[name] for name in helpers))


def _ways(calls: Ways, paths: Iterable[str]) -> frozenset[Way]:
    """The ways on which code calls the module of these paths, or one around it."""
    outer = {each for path in paths for each in upwards(path)}
    return frozenset().union(*(ways for called, ways in calls.items() if called and called in outer))


def _differ(calls: Ways, found: Set[frozenset[Way]]) -> bool:
    """Whether code may go one of these ways and not the others; an empty one is not known."""
    return "" in calls and (len(found) > 1 or frozenset() in found)


def broken_methods(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """The methods that use a part of what would be merged, or a value inside of it, whether they ran or not. (Forward
    is one where no call of the module runs it.)
    """
    members = list(members)
    around = code_around(captured, members)
    links, owners = _links(captured, members), _owners(captured, around, _places(captured, around, members))
    idle = {(one, name) for path, one in owners for name in _other_users(captured, path, one, links)}
    return using_parts(captured, members) | _unseen(captured, idle)


def using_parts(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """The methods that make some of the members and not all, or may."""
    members = list(members)
    around = code_around(captured, members)
    places = _places(captured, around, members)
    reached = [{each for name in names for each in upwards(name)} for names in places]
    owners = _owners(captured, around, places)
    idle = {(one, name) for path, one in owners for name in _partial_users(captured, path, one, places, reached)}
    made = partial_methods(captured, members) | varying_methods(captured, members)
    return made | _unseen(captured, idle) | _going_on(captured, members)


def with_callers(captured: Captured, methods: Iterable[Method]) -> set[Method]:
    """These methods, and those of the modules around that call them, at any depth; what forward runs is not among
    those.
    """
    found, waiting = set(methods), list(methods)
    while waiting:
        module, name = waiting.pop()
        new = set(_callers(captured, module, name)) - found - captured.methods.keys()
        found |= new
        waiting += new
    return found


def _callers(captured: Captured, module: nn.Module, name: str) -> Iterator[Method]:
    for path in captured.paths.get(module, ())[:1]:
        for outer in ("", *upwards(path)):
            owner = captured.root.get_submodule(outer)
            inner = path.removeprefix(start_of(outer)) if owner is not module else ""
            call, methods = f"{start_of(inner)}{name}()", read_by_methods(type(owner))
            yield from ((owner, each) for each, read in methods.items() if call in read and each != "forward")


def _going_on(captured: Captured, members: Collection[fx.Node]) -> set[Method]:
    """The methods that made a value which one of the members gives to others, and do more with it, which forward does
    not need.
    """
    found = set[Method]()
    for value, methods in captured.unneeded.items():
        node = captured.current(value)
        if node in members and not node.users.keys().isdisjoint(members):
            found |= methods.intersection(node.meta.get("methods", ()))
    return found


def _unseen(captured: Captured, methods: set[Method]) -> set[Method]:
    return methods - captured.methods.keys() - captured.outside.methods


def _places(captured: Captured, around: Frame, members: Sequence[fx.Node]) -> list[tuple[str, ...]]:
    """The paths of what code has to call for the members, each by all its names. What code computes itself is in its
    module only: no other code has that by a call. around: the call whose code has all members in it.
    """
    own = [node for node in members if not _called_at(captured, around, node) and node not in captured.constants]
    places = {_called_at(captured, around, node) for node in members} - {""}
    return [*(tuple(captured.names(place)) for place in places), *(tuple(_names(captured, n)) for n in own[:1])]


def _owners(captured: Captured, around: Frame, places: Sequence[Sequence[str]]) -> set[tuple[str, nn.Module]]:
    """The modules around members, by their paths. around: see `_places`. places: of them, each by all its names."""
    paths = {outer for names in places for path in names for outer in upwards(path.rpartition(".")[0])}
    found = {(frame.path, frame.module) for frame in around.stack}
    return found | {(path, one) for path in {"", *paths} if (one := module_at(captured.root, path)) is not None}


def _called_at(captured: Captured, around: Frame, node: fx.Node) -> str:
    """The path of the module that code has to call for a node: of its layer, or of the call inside `around` whose code
    it is.
    """
    inner = captured.frame(node).stack[len(around.stack) :]
    return place_of(node) or (inner[0].path if inner else "")


def _unrun(captured: Captured, module: nn.Module) -> dict[str, Set[str]]:
    """The methods of a module that no trace runs, each with what its code calls; what made the module is over."""
    methods = called_by_methods(type(module))
    over = {"__init__"} if module in captured.outside.idle else {"__init__", "forward"}
    return {name: called for name, called in methods.items() if name not in over}


def _partial_users(
    captured: Captured, path: str, module: nn.Module, members: Sequence[Sequence[str]], reached: Sequence[Set[str]]
) -> Iterator[str]:
    """The methods of the module at a path whose code calls some members and not all, or may. members: the paths of
    each. reached: the paths whose call reaches it.
    """
    start = start_of(path)
    for name, called in _unrun(captured, module).items():
        full = {start + each for each in called}
        used = [not paths.isdisjoint(full) for paths in reached]
        if any(used) and (not all(used) or _may_part(ways_of_methods(type(module))[name], start, members)):
            yield name


def _may_part(code: Ways, start: str, members: Sequence[Sequence[str]]) -> bool:
    """Whether a method that calls all members has ways on which it calls some of them only."""
    ways = {_ways(code, [name.removeprefix(start) for name in names]) for names in members}
    return len(ways) > 1 and _differ(code, ways)


def _links(captured: Captured, members: Collection[fx.Node]) -> dict[str, set[str]]:
    """Per place of a member, by each of its names, those of the members that get its result."""
    found: dict[str, set[str]] = {}
    for node in members:
        readers = set(node.users).intersection(members) if place_of(node) else ()
        given = {name for reader in readers for name in _names(captured, reader)}
        found.update((name, given) for name in _names(captured, node) if given)
    return found


def _names(captured: Captured, node: fx.Node) -> Iterator[str]:
    """The names of the place of a node; a function is something inside the module whose code calls it."""
    if place_of(node):
        yield from captured.names(place_of(node))
    else:
        yield from (f"{path}.{CODE}" if path else CODE for path in captured.names(captured.frame(node).path))


def _other_users(captured: Captured, path: str, module: nn.Module, links: Mapping[str, set[str]]) -> Iterator[str]:
    """The methods of the module at a path that no trace runs and that do something else with what one member gives to
    others.
    """
    start = start_of(path)
    inside = {place.removeprefix(start): given for place, given in links.items() if place.startswith(start)}
    own = {
        place: {ELSEWHERE if name == start + CODE else name.removeprefix(start) for name in given}
        for place, given in inside.items()
    }
    for name in _unrun(captured, module) if own else ():
        readers = readers_of_results(getattr(type(module), name))
        lasts = _lasts(module, {call.removesuffix(EACH) for call in readers if call.endswith(EACH)})
        if any(hands_on_otherwise(readers, place, given, lasts) for place, given in own.items()):
            yield name


def _lasts(module: nn.Module, rows: Iterable[str]) -> dict[str, str]:
    """Per row of modules in a module, by its path, the name of its last element."""
    inside = {row: module_at(module, row) for row in rows}
    return {row: last for row, found in inside.items() if found is not None for last in [*found._modules][-1:]}


def matches(path: str, pattern: str) -> bool:
    """Whether a module path is meant by a path or pattern (as in fnmatch), or is below one that is."""
    return fnmatch(path, pattern) or path.startswith(f"{pattern}.") or fnmatch(path, f"{pattern}.*")


def innermost(frames: Sequence[Frame]) -> Frame:
    """The innermost call that contains all of these calls."""
    common = frames[0].stack
    for frame in frames[1:]:
        common = tuple(a for a, b in zip(common, frame.stack, strict=False) if a is b)
    return common[-1]


def outer(frame: Frame, inlined: Set[int]) -> Frame:
    """The call whose code has that of `frame` in it. inlined: calls (by identity) whose code goes into that around."""
    while id(frame) in inlined and frame.parent is not None:
        frame = frame.parent
    return frame


def code_around(captured: Captured, members: Iterable[fx.Node], inlined: Set[int] = frozenset()) -> Frame:
    """The innermost call whose code has all of these members in it. inlined: see `outer`."""
    return outer(innermost([*dict.fromkeys(map(captured.frame, members))]), inlined)


def below(captured: Captured, frame: Frame, members: Iterable[fx.Node]) -> set[int]:
    """The calls inside `frame` (by identity) that these members are in."""
    return {
        id(inner)
        for node in members
        for inner in captured.frame(node).stack
        if frame in inner.stack and inner is not frame
    }
