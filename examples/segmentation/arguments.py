"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flags import add_limits, add_place, add_training, check_device, positive
from model import CONFIGS
from scenes import SIZE

EPOCHS = {"scenes": 30, "cityscapes": 200, "ade20k": 100}
MODELS = ("small", *(name for name, config in CONFIGS.items() if len(config.channels) == 4))
ELSEWHERE = ("workers", "output", "resume", "device", "threads")
"""Options that leave the result of training as it is: another value continues the same run."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    data: str
    data_root: Path | None
    model: str
    head_width: int
    image_size: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    label_smoothing: float
    seed: int
    limit_train: int | None
    limit_test: int | None
    workers: int | None
    output: Path
    resume: str
    device: torch.device
    threads: int | None

    def settings(self) -> dict[str, Any]:
        """The options that decide what training computes, as plain values."""
        kept = {name: value for name, value in asdict(self).items() if name not in ELSEWHERE}
        return {**kept, "data_root": str(self.data_root)}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default those of the process; exits if they make no sense."""
    parser = argparse.ArgumentParser(description="Train RepMLPNet to segment images; fuse; compare pixel by pixel.")
    _add_what(parser.add_argument_group("what to train"))
    add_training(parser.add_argument_group("how to train it"), EPOCHS, lr=5e-3, batch_size=32)
    parser.set_defaults(label_smoothing=0.0, warmup_epochs=1.0)
    add_place(parser.add_argument_group("where"), "runs/segmentation")
    chosen = vars(parser.parse_args(arguments))
    check_device(parser, chosen["device"])
    unit = smallest_size(chosen["model"])
    if chosen["image_size"] % unit or (chosen["data"] == "scenes" and chosen["image_size"] != SIZE):
        parser.error(
            f"--image-size {chosen['image_size']}: {chosen['model']} takes multiples of {unit}, scenes only {SIZE}"
        )
    if chosen["epochs"] is None:
        chosen["epochs"] = EPOCHS[chosen["data"]]
    return Options(**chosen)


def smallest_size(model: str) -> int:
    """Pixels a side that cut into whole partitions at every stage; every multiple of it does."""
    return SIZE if model == "small" else CONFIGS[model].image_size


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", choices=tuple(EPOCHS), default="scenes", help="the data set (%(default)s)")
    group.add_argument("--data-root", type=Path, metavar="FOLDER", help="of Cityscapes or ADE20K, unpacked")
    group.add_argument("--model", choices=MODELS, default="small", help="the backbone (%(default)s)")
    group.add_argument(
        "--head-width", type=positive, default=16, metavar="N", help="channels of the head (%(default)s)"
    )
    group.add_argument("--image-size", type=positive, default=SIZE, metavar="N", help="pixels a side (%(default)s)")
    add_limits(group)
