"""The methods of a model that call a part of what is merged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

from torch import fx, nn

from ..capture.aliases import MAY_ALIAS, target_name
from ..capture.captured import Captured
from ..capture.paths import module_at, start_of, upwards
from ..sourcecode.flow import Way
from ..sourcecode.handing import EACH, ELSEWHERE, hands_on_otherwise, readers_of_results
from ..sourcecode.methods import called_by_methods, read_by_methods, ways_of_methods
from ..tracing.frame import Frame, Method
from .naming import place_of
from .nesting import code_around

Ways = Mapping[str, frozenset[Way]]
"""Per path that the code of a method calls, in which branches it does."""
CODE = "()"
"""Stands for what the code of a module itself does, after its path."""


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
    return frozenset().union(*(calls[each] for each in outer if each in calls))


def _differ(calls: Ways, found: Set[frozenset[Way]]) -> bool:
    """Whether code may go one of these ways and not the others; an empty one is not known."""
    return "" in calls and (len(found) > 1 or frozenset() in found)


def broken_methods(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """The methods that use a part of what would be merged, or a value inside of it, whether they ran or not. (Forward
    is one where no call of the module runs it.)
    """
    members = list(members)
    return _parting_methods(captured, members) | hidden_methods(captured, members)


def using_parts(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """The methods that make some of the members and not all, or may."""
    members = list(members)
    idle = _idle_parting(captured, *_placed(captured, members))
    return _parting_methods(captured, members) | _unseen(captured, set(idle))


def hidden_methods(captured: Captured, members: Iterable[fx.Node]) -> set[Method]:
    """Those of the broken methods that no trace runs: a merge is made in spite of them."""
    members = list(members)
    links, (places, owners) = _links(captured, members), _placed(captured, members)
    others = {(one, name) for path, one in owners for name in _other_users(captured, path, one, links)}
    return _unseen(captured, others.union(_idle_parting(captured, places, owners)))


def _parting_methods(captured: Captured, members: Collection[fx.Node]) -> set[Method]:
    """The methods that ran and make some of the members and not all, or may."""
    made = partial_methods(captured, members) | varying_methods(captured, members)
    return made | _going_on(captured, members)


def _placed(captured: Captured, members: Sequence[fx.Node]) -> tuple[list[tuple[str, ...]], set[tuple[str, nn.Module]]]:
    """What `_places` and `_owners` tell of members."""
    around = code_around(captured, members)
    places = _places(captured, around, members)
    return places, _owners(captured, around, places)


def _idle_parting(
    captured: Captured, places: Sequence[Sequence[str]], owners: Iterable[tuple[str, nn.Module]]
) -> Iterator[Method]:
    """The methods, whether they ran or not, whose code calls some of the members and not all, or may. places, owners:
    see `_placed`.
    """
    reached = [{each for name in names for each in upwards(name)} for names in places]
    for path, one in owners:
        yield from ((one, name) for name in _partial_users(captured, path, one, places, reached))


def is_private(name: str) -> bool:
    """Whether only the code of a class itself is meant to call a method."""
    return name.startswith("_") and not name.startswith("__")


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
    for value, methods in captured.unused.methods.items():
        node = captured.current(value)
        if node in members and not node.users.keys().isdisjoint(members):
            found |= methods.intersection(node.meta.get("methods", ()))
    return captured.unused.in_the_way(found)


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
    inside = [{each.removeprefix(start) for each in paths if each.startswith(start)} for paths in reached]
    for name, called in _unrun(captured, module).items():
        used = [not paths.isdisjoint(called) for paths in inside]
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
        readers = set(node.users).intersection(members)
        given = {name for reader in readers for name in _names(captured, reader)}
        for name in _givers(captured, node) if given else ():
            found.setdefault(name, set()).update(given)
    return found


def _givers(captured: Captured, node: fx.Node) -> Iterator[str]:
    """The names of what code calls to get the value of a node: its layer, or the module whose code computes it and
    returns it.
    """
    frame = captured.frame(node)
    if place_of(node):
        yield from captured.names(place_of(node))
    elif frame.path and captured.current(node) in captured.nodes_in(frame.output):
        yield from captured.names(frame.path)


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
