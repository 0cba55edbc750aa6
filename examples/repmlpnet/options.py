"""The command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from data import NAMES
from flags import RECIPES, Shared, add_augmentation, add_data, add_place, add_recipe, parsed, positive
from model import CONFIGS


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """What the user asked for."""

    model: str
    image_size: int
    fuse: bool

    ELSEWHERE = (*Shared.ELSEWHERE, "fuse")


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default those of the process; exits if they make no sense."""
    parser = argparse.ArgumentParser(description="Train RepMLPNet, fuse it with reparamkit, compare the two.")
    what, how = parser.add_argument_group("what to train"), parser.add_argument_group("how to train it")
    add_data(what, NAMES)
    what.add_argument("--model", choices=tuple(CONFIGS), default="repmlpnet_tiny32", help="(%(default)s)")
    what.add_argument("--image-size", type=positive, metavar="N", help="pixels a side (that of the model)")
    add_recipe(how)
    add_augmentation(how)
    where = parser.add_argument_group("where")
    add_place(where, "runs/repmlpnet")
    where.add_argument("--no-fuse", dest="fuse", action="store_false", help="stop after training")
    chosen = parsed(parser, arguments, RECIPES)
    chosen["image_size"] = chosen["image_size"] or CONFIGS[chosen["model"]].image_size
    unit = smallest_size(chosen["model"])
    if chosen["image_size"] % unit:
        parser.error(f"--image-size {chosen['image_size']}: {chosen['model']} takes multiples of {unit}")
    return Options(**chosen)


def smallest_size(model: str) -> int:
    """Pixels a side that cut into whole partitions at every stage; every multiple of it does."""
    config = CONFIGS[model]
    return math.lcm(*(config.patch_size * 2**i * side for i, side in enumerate(config.partitions)))
