"""Which attributes the merges of a model rely on: those by which code went that is written again, or calls what was
merged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from types import FunctionType

import torch
from torch import fx, nn

from ..capture.captured import Captured
from ..capture.paths import module_at, start_of
from ..engine.naming import place_of
from ..engine.nesting import innermost
from ..engine.site import Site
from ..running.trees import leaves
from ..sourcecode.elsewhere import changed_elsewhere
from ..sourcecode.parse import is_torchs
from ..sourcecode.setting import set_by
from ..sourcecode.together import Codes, assigned, hands_over, parted_by
from ..tracing.frame import Frame, Method
from .originals import original_class, original_forward

Settings = dict[nn.Module, set[str]]
"""Per module the names of attributes."""


@dataclass(frozen=True)
class Ran:
    """What ran in the trace, before anything was merged. methods: those of modules, forward aside. idle: calls that
    computed nothing, and only handed on what they got. classes: of all modules, as the user wrote them.
    """

    methods: Set[Method]
    idle: Sequence[Frame]
    classes: Iterable[type[nn.Module]]

    @classmethod
    def of(cls, captured: Captured) -> Ran:
        """The trace that a graph comes from."""
        idle = [call for call, nodes in captured.made_in.items() if not nodes]
        return cls(frozenset(captured.methods), idle, dict.fromkeys(map(original_class, captured.root.modules())))


def _codes(methods: Iterable[Method], module: nn.Module) -> Codes:
    """The forward of a module, and those of some methods that are its own."""
    names = [name for one, name in methods if one is module and name != "forward"]
    found = {name: inspect.getattr_static(original_class(module), name, None) for name in names}
    own = {name: method for name, method in found.items() if isinstance(method, FunctionType)}
    return {**own, "forward": original_forward(module)}


def settings_of(captured: Captured, ran: Ran, written: Set[int], sites: Iterable[Site]) -> Settings:
    """The attributes that other merges would have been made for, had they been others.

    written: the calls (by identity) whose code is written again.
    """
    found, sites = Settings(), list(sites)
    inside = {node for site in sites for node in site.members - {site.value}}
    relied: list[tuple[Frame, Set[str] | None]] = [(call, None) for call in captured.frames if id(call) in written]
    relied += [(call, None) for call in ran.idle if _is_skipped(captured, call, written, inside)]
    parted = (each for site in sites for each in _parting(captured, ran.methods, site.members, lambda call: call.read))
    relied += [(call, names) for call, names in parted if id(call) not in written]
    for call, names in relied:
        for module, name in _read(captured, ran.methods, call, names):
            if not _has_tensors(vars(module).get(name)):
                found.setdefault(module, set()).add(name)
    for node in captured.dropped:
        if id(captured.frame(node)) in written or _source(captured, node) in inside:
            owner, _, name = str(node.target).rpartition(".")
            if (at := module_at(captured.root, owner)) is not None:
                found.setdefault(at, set()).add(name)
    return {module: names for module, names in found.items() if names and is_users(module)}


def _has_tensors(value: object) -> bool:
    """Whether an attribute is a tensor, or keeps some: it follows from others then, and is moved and emptied."""
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves(value))


def lost_setting(captured: Captured, ran: Ran, call: Frame) -> str | None:
    """Words about an attribute that the code of a call goes by and a method sets, or None: if that code went into the
    code around it, nobody could set it any more.
    """
    read = [(module, name) for module, name in _read(captured, ran.methods, call, None) if _is_value(module, name)]
    found = ((name, method) for _, name in read if (method := set_by(ran.classes, name)) is not None)
    return next((f"'{name}', which {method} sets" for name, method in sorted(found)), None)


def _is_value(module: nn.Module, name: str) -> bool:
    """Whether an attribute has a value that another may take the place of; a layer that is not there is none."""
    return not isinstance(getattr(module, name, None), (type(None), nn.Module))


def _is_skipped(captured: Captured, call: Frame, written: Set[int], inside: Set[fx.Node]) -> bool:
    """Whether a call that computes nothing is in code that is written again, or stands inside a merge."""
    given = (leaf for leaf in leaves((call.args, call.kwargs)) if isinstance(leaf, fx.Node))
    return any(id(each) in written for each in call.stack) or any(_source(captured, n) in inside for n in given)


def _source(captured: Captured, node: fx.Node) -> fx.Node:
    """What gives the value that a layer hands on."""
    while node in captured.dropped:
        node = captured.replaced[node]
    return node


def _read(
    captured: Captured, methods: Set[Method], call: Frame, names: Set[str] | None
) -> Iterator[tuple[nn.Module, str]]:
    """What the code of a call read and does not set itself; by its own code, of some names only (None: of all)."""
    own = {method.__code__ for method in map(inspect.unwrap, _codes(methods, call.module).values())}
    for module, read in call.read.items():
        kept = captured.code.changed.names.get(id(module), set()).union(
            *map(assigned, _codes(methods, module).values())
        )
        found = {name for name, by in read if names is None or name in names or by not in own}
        yield from ((module, name) for name in found - kept)


def _parting(
    captured: Captured, methods: Set[Method], members: Iterable[fx.Node], asked: Callable[[Frame], object]
) -> Iterator[tuple[Frame, Set[str] | None]]:
    """The calls, of those that are asked about, whose code may run some of the members without the others, or something
    between them, if what it goes by is another; with the names of that, None if it may be any.
    """
    members = sorted(members)
    frames = [captured.frame(node) for node in members]
    around = innermost(frames)
    for call in {call for frame in frames for call in frame.stack if around in call.stack and asked(call)}:
        inside = [call in frame.stack for frame in frames]
        places = {_place(captured, call, node) for node, is_in in zip(members, inside, strict=True) if is_in}
        codes, is_part = _codes(methods, call.module), partial(_is_part, call.module)
        names = parted_by(codes, places, is_part, not inside[0], not inside[-1])
        if names != frozenset() and not is_torchs(codes["forward"]):
            yield call, names


def is_varied(captured: Captured, members: Iterable[fx.Node]) -> bool:
    """Whether what code changes while it runs may part some members."""
    methods = captured.methods.keys()
    for call, names in _parting(captured, methods, members, lambda call: elsewhere(call) or _changing(captured, call)):
        # What other code does with the module is not known either way.
        known = names is not None or not hands_over(_codes(methods, call.module))
        if known and (names is None or names & _changing(captured, call) or elsewhere(call)):
            return True
    return False


def _changing(captured: Captured, call: Frame) -> set[str]:
    """The attributes that the code of a call reads, and code changes while it runs."""
    names = captured.code.changed.names
    return {name for module, read in call.read.items() for name, _ in read if name in names.get(id(module), ())}


def elsewhere(call: Frame) -> frozenset[str]:
    """What the code of a call changes that no module has."""
    forward = getattr(inspect.unwrap(original_forward(call.module)), "__code__", None)
    codes = {*call.codes, *([forward] if forward is not None else [])}
    return frozenset[str]().union(*map(changed_elsewhere, codes))


def _is_part(module: nn.Module, path: str) -> bool:
    return module_at(module, path) is not None


def _place(captured: Captured, call: Frame, node: fx.Node) -> str:
    """The path, below that of a call, of what its code calls for a node."""
    inner = captured.frame(node).stack[len(call.stack) :]
    path = inner[0].path if inner else place_of(node)
    return path.removeprefix(start_of(call.path))


def is_users(module: nn.Module) -> bool:
    """Whether a module is of the user's own class: others exchange layers of torch by what their class is."""
    own = (torch.fx.GraphModule, torch.jit.ScriptModule)
    return not isinstance(module, own) and not is_torchs(original_class(module))
