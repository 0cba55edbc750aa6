"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from flags import Shared, add_data, add_place, add_recipe, parsed, positive
from model import CONFIGS
from options import smallest_size as smallest_backbone
from scenes import SIZE

SCENES = {
    **{"epochs": 30, "batch_size": 32, "lr": 5e-3, "weight_decay": 0.05, "warmup_epochs": 1.0},
    **{"label_smoothing": 0.0},
}
RECIPES = {"scenes": SCENES, "cityscapes": {**SCENES, "epochs": 200}, "ade20k": {**SCENES, "epochs": 100}}
MODELS = ("small", *(name for name, config in CONFIGS.items() if len(config.channels) == 4))


@dataclass(frozen=True, kw_only=True)
class Options(Shared):
    """What the user asked for."""

    model: str
    head_width: int
    image_size: int


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default those of the process; exits if they make no sense."""
    parser = argparse.ArgumentParser(description="Train RepMLPNet to segment images; fuse; compare pixel by pixel.")
    what = parser.add_argument_group("what to train")
    add_data(what, tuple(RECIPES))
    _add_net(what)
    add_recipe(parser.add_argument_group("how to train it"))
    add_place(parser.add_argument_group("where"), "runs/segmentation")
    chosen = parsed(parser, arguments, RECIPES)
    unit = smallest_size(chosen["model"])
    if chosen["image_size"] % unit or (chosen["data"] == "scenes" and chosen["image_size"] != SIZE):
        parser.error(
            f"--image-size {chosen['image_size']}: {chosen['model']} takes multiples of {unit}, scenes only {SIZE}"
        )
    return Options(**chosen)


def smallest_size(model: str) -> int:
    """Pixels a side that cut into whole partitions at every stage; every multiple of it does."""
    return SIZE if model == "small" else smallest_backbone(model)


def _add_net(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", choices=MODELS, default="small", help="the backbone (%(default)s)")
    group.add_argument(
        "--head-width", type=positive, default=16, metavar="N", help="channels of the head (%(default)s)"
    )
    group.add_argument("--image-size", type=positive, default=SIZE, metavar="N", help="pixels a side (%(default)s)")
