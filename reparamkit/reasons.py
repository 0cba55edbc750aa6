"""Why something is not merged: in words, and of what kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum


class Kind(Enum):
    """What reasons have in common; the page of refusals says for each what to do.

    In this order: of several causes, the first tells most.
    """

    TRAINING = "training"
    LEFT_OUT = "left out"
    BORDER = "border"
    RESAMPLED = "resampled"
    CLOSED = "closed"
    COMPILED = "compiled"
    COST = "cost"
    CAPTURED = "captured"
    SIZES = "sizes"
    SHARED = "shared"
    METHOD = "method"
    RECORDED = "recorded"
    HOOKS = "hooks"
    REPLACED = "replaced"
    IN_PLACE = "in place"
    CHANGING = "changing"
    DTYPE = "dtype"
    GRADIENTS = "gradients"
    RANDOM = "random"
    NUMBERS = "numbers"
    SHAPES = "shapes"
    CODE = "code"
    ORDER = "order"
    ALONE = "alone"
    SCALE = "scale"
    NONLINEAR = "nonlinear"
    UNREAD = "unread"
    OTHER = "other"


@dataclass(frozen=True)
class Reason:
    """Why something is not merged.

    Attributes:
        text: the reason in words.
        kind: what it has in common with others.
        dearer: whether it is that a merge would raise what may not rise.
    """

    text: str
    kind: Kind = Kind.OTHER
    dearer: bool = False

    def __str__(self) -> str:
        return self.text

    def within(self, before: str = "", after: str = "") -> Reason:
        """The same reason, with words before and after it."""
        return replace(self, text=f"{before}{self.text}{after}")

    def leading_to(self, other: Reason) -> Reason:
        """The cause of another reason, with that behind it."""
        return replace(self, text=f"{self}: {other}", dearer=other.dearer)

    def beside(self, name: str) -> Reason:
        """The reason of what stands beside a layer, by its name."""
        return self.within(f"'{name}' beside it: ")

    @property
    def is_of_itself(self) -> bool:
        """Whether a layer says this of itself: "its weights are quantised"."""
        return self.text.startswith(("it ", "its "))


def joined(reasons: Iterable[Reason]) -> Reason:
    """Several reasons as one, of the kind that tells most."""
    found = dict.fromkeys(reasons)
    order = [*Kind]
    return Reason("; ".join(map(str, found)), min((each.kind for each in found), key=order.index))
