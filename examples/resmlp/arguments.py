"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data import NAMES
from flags import RECIPES, Shared, add_augmentation, add_data, add_place, add_recipe, number, odd, parsed, positive

ARMS = ("plain", "injected")


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """What the user asked for."""

    image_size: int
    patch_size: int
    dim: int
    depth: int
    kernels: tuple[int, ...]
    init: float
    compute: str
    arm: str = ""

    ELSEWHERE = (*Shared.ELSEWHERE, "compute")

    def of_arm(self, arm: str) -> Options:
        """The options of one of the two runs, each in a folder of its own."""
        return replace(self, arm=arm, output=self.output / arm)

    def settings(self) -> dict[str, Any]:
        """The options that decide what training computes, as plain values."""
        return {**super().settings(), "kernels": list(self.kernels)}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default those of the process; exits if they make no sense."""
    parser = argparse.ArgumentParser(description="Train ResMLP without and with locality injection; fuse; compare.")
    what, how = parser.add_argument_group("what to train"), parser.add_argument_group("how to train it")
    add_data(what, NAMES)
    _add_net(what)
    add_recipe(how)
    add_augmentation(how)
    add_place(parser.add_argument_group("where"), "runs/resmlp")
    chosen = parsed(parser, arguments, RECIPES)
    if chosen["image_size"] % chosen["patch_size"]:
        parser.error(f"--patch-size {chosen['patch_size']} does not divide --image-size {chosen['image_size']}")
    chosen["kernels"] = tuple(dict.fromkeys(chosen["kernels"]))
    return Options(**chosen)


def _add_net(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image-size", type=positive, default=32, metavar="N", help="pixels a side (%(default)s)")
    group.add_argument("--patch-size", type=positive, default=4, metavar="N", help="pixels a side (%(default)s)")
    group.add_argument("--dim", type=positive, default=48, metavar="N", help="channels (%(default)s)")
    group.add_argument("--depth", type=positive, default=4, metavar="N", help="layers (%(default)s)")
    group.add_argument("--kernels", type=odd, nargs="+", default=[1, 3], metavar="K", help="sizes of the convolutions")
    group.add_argument(
        "--init", type=number, default=1.0, metavar="X", help="of the branches, to start from (%(default)s)"
    )
    group.add_argument("--compute", choices=("matmul", "conv"), default="matmul", help="how (%(default)s)")
