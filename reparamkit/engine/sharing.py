"""Layers that are called at several places: they may be merged if every place merges them alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from torch import fx

from ..capture.aliases import MAY_ALIAS, target_of
from ..capture.captured import Captured


class Merge(Protocol):
    """What is asked here of a merge."""

    @property
    def members(self) -> frozenset[fx.Node]: ...


M = TypeVar("M", bound=Merge)
Row = tuple[int | str, ...]
"""What a merge calls, in program order: modules (by identity), and functions and methods (by name), views aside."""


def evenly_partnered(captured: Captured, node: fx.Node) -> bool:
    """Whether every call of a node's module is followed by a call of one other, or every one comes after such a call,
    and nothing else reads what is between them.
    """
    if node.op != "call_module":
        return False
    calls = _calls(captured, node)
    partners = ({found(captured, call) for call in calls} for found in (_next, _previous))
    return any(len(found) == 1 and None not in found for found in partners)


def read_one_value(captured: Captured, node: fx.Node) -> bool:
    """Whether every call of a node's module reads the same, so that a merge may take all of them."""
    return len({(call.args, tuple(call.kwargs.items())) for call in _calls(captured, node)}) == 1


def _calls(captured: Captured, node: fx.Node) -> list[fx.Node]:
    """The calls of a node's module."""
    calls = (n for n in captured.graph.nodes if n.op == "call_module" and node.op == "call_module")
    return [n for n in calls if captured.module(n) is captured.module(node)]


def _next(captured: Captured, node: fx.Node) -> int | None:
    """The module (by identity) whose call alone reads a value, and reads nothing else."""
    users = list(node.users)
    alone = len(users) == 1 and users[0].op == "call_module" and users[0].all_input_nodes == [node]
    return id(captured.module(users[0])) if alone else None


def _previous(captured: Captured, node: fx.Node) -> int | None:
    sources = node.all_input_nodes
    alone = len(sources) == 1 and sources[0].op == "call_module" and _next(captured, sources[0]) is not None
    return id(captured.module(sources[0])) if alone else None


def is_shared(captured: Captured, merge: Merge) -> bool:
    """Whether it takes in a module that is called elsewhere too."""
    return any(captured.calls_left(module) > n for module, n in _counted(captured, merge))


def uneven(captured: Captured, merges: Iterable[M]) -> list[M]:
    """Those `merges` that take in a module which another place merges otherwise, or not at all."""
    return [
        merge
        for group in alike(captured, merges)
        for merge in group
        if any(captured.calls_left(module) not in (1, len(group) * n) for module, n in _counted(captured, merge))
    ]


def largest(merges: Sequence[M]) -> list[M]:
    """Those of most members."""
    most = max((len(merge.members) for merge in merges), default=0)
    return [merge for merge in merges if len(merge.members) == most]


def runs_once(captured: Captured, node: fx.Node) -> bool:
    """Whether the code that makes a node is run by one call, so that it may call another layer than other code does."""
    return captured.origin.times == 1 and all(
        captured.module_calls[id(f.module)] == 1 for f in captured.frame(node).stack
    )


def separable(captured: Captured, members: Collection[fx.Node], absorbed: Collection[fx.Node]) -> bool:
    """Whether code can be written that merges these members and leaves the other calls of their modules, all of which
    are in the graph. (What is left of a norm is one for all its calls.)
    """
    shared = {n for n in members if n.op == "call_module" and captured.calls_left(id(captured.module(n))) > 1}
    known = all(len(_calls(captured, n)) == captured.calls_left(id(captured.module(n))) for n in shared)
    whole = captured.apart.keys().isdisjoint(members)
    return known and whole and shared.isdisjoint(absorbed) and all(runs_once(captured, member) for member in members)


def alike(captured: Captured, merges: Iterable[M]) -> list[list[M]]:
    """The merges of shared modules in groups of the same calls in the same positions, all others alone."""
    groups: dict[object, list[M]] = {}
    for merge in merges:
        shared = is_shared(captured, merge)
        groups.setdefault(_row(captured, merge) if shared else merge.members, []).append(merge)
    return list(groups.values())


def _row(captured: Captured, merge: Merge) -> Row:
    calls = (m for m in merge.members if m.op == "call_module" or target_of(m) not in MAY_ALIAS)
    return tuple(_called(captured, call) for call in sorted(calls, key=captured.aliases.order.__getitem__))


def _called(captured: Captured, node: fx.Node) -> int | str:
    return id(captured.module(node)) if node.op == "call_module" else target_of(node)


def _counted(captured: Captured, merge: Merge) -> Iterable[tuple[int, int]]:
    """The modules (by identity) of a merge, each with how many of its calls are in it."""
    return Counter(_modules(_row(captured, merge))).items()


def _modules(row: Row) -> Iterator[int]:
    return (each for each in row if isinstance(each, int))
