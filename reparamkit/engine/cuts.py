"""The calls that a merge cuts through: what is between its layers is none of theirs any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx

from ..capture.captured import Captured
from ..capture.paths import upwards
from ..errors import NotFusable
from ..layers.hooks import has_hooks
from ..reasons import Kind
from ..sourcecode.observing import sets_hooks
from ..sourcecode.shortened import shortened_forwards
from ..tracing.frame import Frame
from .methods import broken_methods, is_private, using_parts, with_callers
from .naming import place_of
from .nesting import innermost
from .scope import goes_by


def check_calls(captured: Captured, members: Iterable[fx.Node]) -> None:
    """The calls that a merge cuts through must not be observed.

    Raises `NotFusable`: one has hooks, or goes by what changes, or a method of the model uses a part of it. (Those of
    modules inside are hidden then, those that only may do something else with a value inside of it, what is the model's
    own business, and the forward that it brings along for when the layers are merged.)
    """
    frames = {node: captured.frame(node) for node in members}
    if len({node.meta["context"] for node in frames}) > 1:
        raise NotFusable("the forward of the model changes grad mode inside it", Kind.CODE)
    calls = dict.fromkeys(frames.values())
    around = innermost([*calls])
    inside = dict.fromkeys(cut for call in calls for cut in call.stack[len(around.stack) :])
    if said := next(filter(None, (goes_by(captured, call) for call in (around, *inside))), None):
        raise NotFusable(said)
    for cut in inside:
        if has_hooks(cut.module):
            raise NotFusable(f"'{cut.path}', which the merge would cut through, has hooks", Kind.HOOKS)
        if cut.module in captured.outside.used:
            raise NotFusable(captured.outside.used[cut.module].within(f"'{cut.path}' is cut through: "))
        if any(sets_hooks(type(f.module).forward) for f in cut.stack) and _returns_inside(captured, cut, frames):
            raise NotFusable(
                f"'{cut.path}' returns a value from inside it, which the model itself may record", Kind.RECORDED
            )
    _check_kept(captured, {place_of(node) for node in frames} - {""})
    # Of what nothing calls, a method may be all that uses it.
    uncalled = not captured.origin.times
    methods = with_callers(captured, (broken_methods if uncalled else using_parts)(captured, frames))
    public = sorted(name for one, name in methods if (uncalled or one is captured.root) and not is_private(name))
    broken = [name for name in public if name not in shortened_forwards(type(captured.root))]
    if broken:
        raise NotFusable(f"method '{broken[0]}' of the model uses a part of what would be merged", Kind.METHOD)


def _returns_inside(captured: Captured, cut: Frame, members: Collection[fx.Node]) -> bool:
    """Whether a call returns what one of the members gives to another; not that of a layer, which has no modules."""
    if not any(True for _ in cut.module.children()):
        return False
    returned = captured.nodes_in(cut.output)
    return any(node in members and not node.users.keys().isdisjoint(members) for node in returned)


def _check_kept(captured: Captured, places: Collection[str]) -> None:
    """Modules that have to keep a parameter only merge what is inside them."""
    for path, why in captured.outside.keeping.items():
        inside = [any(path in upwards(name) for name in captured.names(place)) for place in places]
        if any(inside) and not all(inside):
            raise NotFusable(why.within(after=", and a merge with what is outside of it could leave it none"))
