"""The rows of the table: what a structure, a family of them, and a near miss is; sizes to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """A network that merges, and what is left of it.

    shapes: inputs to try; the first serves as example input. left: the operations that run afterwards, in order,
    views aside. needs_inputs: whether it can only be merged with example inputs. objective: of `fuse`. equation,
    source: what the merge is, and the paper that has it. near: the name of a near miss, which looks alike and must
    be left.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    left: str
    needs_inputs: bool = False
    objective: str = "default"
    equation: str = ""
    source: str = ""
    near: str = ""


@dataclass(frozen=True)
class Family:
    """Structures that are one kind of merge. title, text: the heading and the introduction of its page."""

    title: str
    text: str
    structures: tuple[Structure, ...]


@dataclass(frozen=True)
class NearMiss:
    """A network that looks mergeable and is not.

    left: the operations that run afterwards. reason: a pattern that some refusal of the report matches.
    needs_inputs: whether without example inputs other sizes are assumed (and guarded). objective: of `fuse`.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    left: str
    reason: str
    needs_inputs: bool = False
    objective: str = "default"


MAPS_1D: tuple[Shape, ...] = ((2, 4, 9), (1, 4, 16), (3, 4, 7))


MAPS: tuple[Shape, ...] = ((2, 4, 8, 10), (1, 4, 9, 7), (3, 4, 12, 12))


MAPS_3D: tuple[Shape, ...] = ((2, 4, 5, 6, 7), (1, 4, 6, 5, 8))


ROWS: tuple[Shape, ...] = ((4, 6), (1, 6), (7, 6))


TOKENS: tuple[Shape, ...] = ((2, 12, 5), (1, 12, 5), (3, 12, 7))


TOKENS_8: tuple[Shape, ...] = ((2, 5, 8), (1, 7, 8), (3, 4, 8))


FIXED: tuple[Shape, ...] = ((2, 4, 4, 6), (1, 4, 4, 6), (5, 4, 4, 6))
