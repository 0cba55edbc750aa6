"""What code asks of layers, tensors aside, that a merge would answer otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from ..capture.captured import Captured
from ..errors import NotFusable
from ..reasons import Kind
from ..tracing.frame import Frame

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_unasked(captured: Captured, members: Iterable[fx.Node], written: Collection[int]) -> None:
    """Raises `NotFusable` if code that stays asks a layer of a merge for what the merge changes.

    written: the calls (by identity) whose code is written again, with what was asked for as a constant.
    """
    for name in [name for frame, name in asked(captured, members) if id(frame) not in written]:
        raise NotFusable(f"code of the model reads '{name}' of a layer, which the merge changes", Kind.SHARED)


def asked(captured: Captured, members: Iterable[fx.Node]) -> list[tuple[Frame, str]]:
    """The calls whose code reads attributes of layers of a merge that are others afterwards, with their names."""
    layers = list(dict.fromkeys(captured.module(node) for node in members if node.op == "call_module"))
    found = [(layer, *each) for layer in layers for each in captured.asked.get(layer, ())]
    return [(frame, name) for layer, frame, name in found if name == "bias" or not _is_kept(layer, layers)]


def _is_kept(layer: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether what stands for a layer afterwards is as it was, but for its numbers and whether it has a bias: it only
    takes in norms.
    """
    return not isinstance(layer, NORMS) and all(isinstance(each, NORMS) for each in layers if each is not layer)
