"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flags import add_limits, add_place, add_training, check_device, number, odd, positive

EPOCHS = {"digits": 20, "fashion-mnist": 4, "imagefolder": 100}
ARMS = ("plain", "injected")
ELSEWHERE = ("workers", "output", "resume", "device", "threads", "compute")
"""Options that leave the result of training as it is (up to rounding): another value continues the same run."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    data: str
    data_root: Path | None
    image_size: int
    patch_size: int
    dim: int
    depth: int
    kernels: tuple[int, ...]
    init: float
    compute: str
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
    arm: str = ""

    def of_arm(self, arm: str) -> Options:
        """The options of one of the two runs, each in a folder of its own."""
        return replace(self, arm=arm, output=self.output / arm)

    def settings(self) -> dict[str, Any]:
        """The options that decide what training computes, as plain values."""
        kept = {name: value for name, value in asdict(self).items() if name not in ELSEWHERE}
        return {**kept, "kernels": list(self.kernels), "data_root": str(self.data_root)}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default those of the process; exits if they make no sense."""
    parser = argparse.ArgumentParser(description="Train ResMLP without and with locality injection; fuse; compare.")
    _add_what(parser.add_argument_group("what to train"))
    add_training(parser.add_argument_group("how to train it"), EPOCHS, lr=2e-3, batch_size=64)
    add_place(parser.add_argument_group("where"), "runs/resmlp")
    chosen = vars(parser.parse_args(arguments))
    check_device(parser, chosen["device"])
    if chosen["image_size"] % chosen["patch_size"]:
        parser.error(f"--patch-size {chosen['patch_size']} does not divide --image-size {chosen['image_size']}")
    chosen["kernels"] = tuple(dict.fromkeys(chosen["kernels"]))
    if chosen["epochs"] is None:
        chosen["epochs"] = EPOCHS[chosen["data"]]
    return Options(**chosen)


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", choices=tuple(EPOCHS), default="digits", help="the data set (%(default)s)")
    group.add_argument("--data-root", type=Path, metavar="FOLDER", help="where it is, as for examples/repmlpnet")
    group.add_argument("--image-size", type=positive, default=32, metavar="N", help="pixels a side (%(default)s)")
    group.add_argument("--patch-size", type=positive, default=4, metavar="N", help="pixels a side (%(default)s)")
    group.add_argument("--dim", type=positive, default=48, metavar="N", help="channels (%(default)s)")
    group.add_argument("--depth", type=positive, default=4, metavar="N", help="layers (%(default)s)")
    group.add_argument("--kernels", type=odd, nargs="+", default=[1, 3], metavar="K", help="sizes of the convolutions")
    group.add_argument(
        "--init", type=number, default=1.0, metavar="X", help="of the branches, to start from (%(default)s)"
    )
    group.add_argument("--compute", choices=("matmul", "conv"), default="matmul", help="how (%(default)s)")
    add_limits(group)
