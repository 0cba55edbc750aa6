"""Absorbed scales leave the code as it is: it may not show what they gave to anybody but who absorbs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

from torch import fx, nn

from ..capture.captured import Captured
from ..capture.paths import start_of
from ..engine.naming import place_of
from ..engine.nesting import innermost
from ..engine.site import Site
from ..errors import NotFusable
from ..reasons import Kind
from ..sourcecode.exposing import exposes, leaves_out, shows
from ..sourcecode.flow import ALWAYS, Way, chosen, way_to
from ..tracing.frame import Frame, Method
from .choices import has_other_ways
from .originals import bound, original_class, original_forward


def check_unexposed(captured: Captured, site: Site, scale: fx.Node, written: Set[int]) -> None:
    """Raises `NotFusable` if code around that of a scale, or of what absorbs it, may go another way with its value.

    written: calls (by identity) whose code is written again, for the arguments of the trace only.
    """
    place = place_of(scale) or captured.path(scale)
    around = innermost(_frames(captured, site, scale))
    if is_returned(captured, site.absorbed, around):
        raise NotFusable(f"'{around.path}' returns what '{place}' gives, a value from inside the merge", Kind.CODE)
    if name := showing_method(captured, site.absorbed):
        raise NotFusable(f"the method '{name}' may give what '{place}' gives to whoever calls it", Kind.METHOD)
    for call in _around(captured, site, scale):
        if call is not captured.frame(scale) and id(call) not in written and may_show(captured, site, call):
            raise NotFusable(
                f"the forward of '{call.path or 'the model'}' may do something else with what '{place}' gives, by its"
                " arguments",
                Kind.CODE,
            )


def is_exposed(captured: Captured, values: Set[fx.Node], call: Frame) -> bool:
    """Whether the code of a call may do something else with some values than it did in the trace: give them to others
    than who reads them there, or others to these.
    """
    return has_other_ways(captured, call) and _shows(captured, values, call)


def is_returned(captured: Captured, values: Set[fx.Node], call: Frame | None) -> bool:
    """Whether a call gives some values to the code around it, which did nothing with them in the trace."""
    outer = call is not None and call.parent is not None
    return outer and not captured.nodes_in(call.output).isdisjoint(values)  # type: ignore[union-attr]


def _shows(captured: Captured, values: Set[fx.Node], call: Frame) -> bool:
    given, taken = _called(captured, call, values), _called(captured, call, _readers(values))
    code, names = original_forward(call.module), _names(captured, values, call)
    exposed = exposes(code, call.module, names, given - taken, taken, _fixed(captured, values, call))
    return exposed or any(
        exposes(method, call.module, _parameters(method) if name in taken - given else frozenset(), given, taken)
        for name, method in _methods(call.module, given | taken)
    )


def showing_method(captured: Captured, values: Set[fx.Node]) -> str:
    """The name of a method that ran in the trace and may do something else with some values if others call it, or give
    them these; "" if there is none.
    """
    readers = _readers(values)
    around = innermost([captured.frame(node) for node in values | readers])
    running: set[Method] = {method for node in values | readers for method in node.meta.get("methods", ())}
    # Code around the call has none of the values in hand.
    inside = [(m, name) for m, name in running if f"{captured.paths[m][0]}.".startswith(start_of(around.path))]
    for module, name in sorted(inside, key=lambda method: method[1]):
        made = _run_by(captured, module, name, values)
        read = _run_by(captured, module, name, readers)
        method = getattr(original_class(module), name)
        names = frozenset[str]() if made else _parameters(method)
        if made != read and shows(method, module, names, made - read, read):
            return name
    return ""


def _run_by(captured: Captured, module: nn.Module, name: str, nodes: Iterable[fx.Node]) -> set[str]:
    """What a method of a module calls for the nodes that it makes: paths below the module, and other methods of it."""
    made = [node for node in nodes if (module, name) in node.meta.get("methods", ())]
    start = start_of(captured.paths[module][0])
    paths = {path for node in made for path in (place_of(node), *(f.path for f in captured.frame(node).stack))}
    below = {path.removeprefix(start) for path in paths if path.startswith(start)} - {""}
    return below | {other for node in made for owner, other in node.meta["methods"] if owner is module} - {name}


def _readers(values: Set[fx.Node]) -> Set[fx.Node]:
    return {user for node in values for user in node.users} - values


def _names(captured: Captured, values: Set[fx.Node], call: Frame) -> frozenset[str]:
    """The arguments of a call that are one of the values, or have one in it."""
    return frozenset(name for name, value in bound(call).items() if not captured.nodes_in(value).isdisjoint(values))


def _methods(module: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods among what the code of a module calls."""
    for name in sorted(names):
        method = getattr(original_class(module), name, None)
        if inspect.isfunction(method):
            yield name, method


def _parameters(method: Callable[..., Any]) -> frozenset[str]:
    """What a method gets beside its module."""
    return frozenset([*inspect.signature(method).parameters][1:])


def _fixed(captured: Captured, values: Set[fx.Node], call: Frame) -> frozenset[str]:
    """The arguments that the code around a call never gives, if all values are made outside of it. (Whoever else calls
    its module gives it none of them.)
    """
    outer = call.parent
    if outer is None or any(call in captured.frame(node).stack for node in values):
        return frozenset()
    # What code inside of the model hands on is for others; what the user gives may be meant.
    path, inside = call.path.removeprefix(start_of(outer.path)), outer.parent is not None
    if not leaves_out(original_forward(outer.module), path, inside):
        return frozenset()
    signature = inspect.signature(call.module.forward)
    return frozenset(signature.parameters.keys() - signature.bind(*call.args, **call.kwargs).arguments.keys())


def may_show(captured: Captured, site: Site, call: Frame) -> bool:
    """Whether the code of a call may do something else with an absorbed value, or run what reads it by itself."""
    other = has_other_ways(captured, call)
    return other and (_shows(captured, site.absorbed, call) or _may_part(captured, site, call))


def _may_part(captured: Captured, site: Site, call: Frame) -> bool:
    """Whether the code of a call may run a layer that absorbs without what makes the scale, or another layer."""
    found = _ways(captured, call, _readers(site.absorbed))
    scaled = _ways(captured, call, site.scales)
    # Where there is one of them only, the code around has the others.
    return not all(_together(a, b) for a in scaled or {ALWAYS} for b in found or {ALWAYS})


def _together(scale: Way | None, reader: Way | None) -> bool:
    """Whether what runs on the second of two ways, if that is clear, always runs after what runs on the first."""
    if scale is None or reader is None:
        return False
    (first, exits), (second, more) = scale, reader
    inside = first == second[: len(first)] and exits <= more
    return inside and chosen(first) == chosen(second)


def _ways(captured: Captured, call: Frame, nodes: Iterable[fx.Node]) -> set[Way | None]:
    """On which ways the code of a call runs the modules or calls inside that make some values; those it computes itself
    aside.
    """
    inside = [node for node in nodes if call in captured.frame(node).stack]
    return {_way_to(captured, call, node, place) for node in inside for place in _inner(captured, call, node)}


def _inner(captured: Captured, call: Frame, node: fx.Node) -> list[str]:
    """The path, below that of a call, of the call inside that makes a value, or of its layer."""
    stack = captured.frame(node).stack[len(call.stack) :]
    path = stack[0].path if stack else place_of(node)
    return [path.removeprefix(start_of(call.path))] if path else []


def _way_to(captured: Captured, call: Frame, node: fx.Node, place: str) -> Way | None:
    """The way to a place, in the code of a forward or of one of the methods that it calls."""
    way = way_to(original_forward(call.module), place, call.module)
    for name in _running(captured, call, node) if way is None else ():
        if way_to(getattr(original_class(call.module), name), place, call.module) == ALWAYS:
            return way_to(original_forward(call.module), name, call.module)
    return way


def _around(captured: Captured, site: Site, scale: fx.Node) -> Iterator[Frame]:
    """The calls between a scale and the layers that absorb it, and the one around all of them."""
    frames = _frames(captured, site, scale)
    around = innermost(frames)
    yield from dict.fromkeys(call for frame in frames for call in frame.stack if around in call.stack)


def _frames(captured: Captured, site: Site, scale: fx.Node) -> list[Frame]:
    return [captured.frame(node) for node in (scale, *site.core)]


def _called(captured: Captured, call: Frame, nodes: Iterable[fx.Node]) -> set[str]:
    """The paths, below that of a call, of the modules that its code may call for nodes, and the methods of its module
    that it may.
    """
    return {path for node in nodes for path in (*_modules(captured, call, node), *_running(captured, call, node))}


def _modules(captured: Captured, call: Frame, node: fx.Node) -> Iterator[str]:
    start = start_of(call.path)
    stack = captured.frame(node).stack
    inner = stack[stack.index(call) + 1 :] if call in stack else ()
    paths = [*(each.path for each in inner), place_of(node)]
    yield from (path.removeprefix(start) for path in paths if path.startswith(start) and path != call.path and path)


def _running(captured: Captured, call: Frame, node: fx.Node) -> Iterator[str]:
    if call in captured.frame(node).stack:
        yield from (name for module, name in node.meta.get("methods", ()) if module is call.module)
