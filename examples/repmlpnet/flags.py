"""The options that all examples have: how to train, and where."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from parallel import processes

PAPER = {
    **{"epochs": 100, "batch_size": 256, "lr": 1e-3, "weight_decay": 0.1, "warmup_epochs": 10.0},
    **{"label_smoothing": 0.1, "randaugment": 15, "mixup": 0.4, "cutmix": 1.0},
}
"""The recipe of RepMLPNet, for large data sets."""
SMALL = {
    **{"epochs": 20, "batch_size": 64, "lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 2.0},
    **{"label_smoothing": 0.1, "randaugment": 0, "mixup": 0.0, "cutmix": 0.0},
}
"""A recipe for a small net and a few epochs, which strong augmentation would only slow down."""
RECIPES: dict[str, dict[str, Any]] = {
    "digits": SMALL,
    "fashion-mnist": {**SMALL, "epochs": 5},
    "cifar10": {**PAPER, "batch_size": 128},
    "cifar100": {**PAPER, "batch_size": 128},
    "imagefolder": PAPER,
}
"""What is not asked for, by data set."""
EMBEDDED = ("digits", "scenes")
"""Data sets that scikit-learn brings, or that are made of what it brings."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the user asked for, as far as all examples have it."""

    data: str
    data_root: Path | None
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    label_smoothing: float
    shift: int | None = None
    randaugment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float
    seed: int
    limit_train: int | None
    limit_test: int | None
    amp: str
    channels_last: bool
    compile: str | None
    recompute: bool
    sync_bn: bool
    workers: int | None
    output: Path
    resume: str
    tensorboard: bool
    device: torch.device
    threads: int | None

    ELSEWHERE: ClassVar[tuple[str, ...]] = (
        *("workers", "output", "resume", "tensorboard", "device", "threads"),
        *("channels_last", "compile", "recompute"),
    )
    """Options that leave the result of training as it is, up to rounding: another value continues the same run."""

    def settings(self) -> dict[str, Any]:
        """The options that decide what training computes, as plain values."""
        kept = {name: value for name, value in asdict(self).items() if name not in self.ELSEWHERE}
        return {**kept, "data_root": str(self.data_root)}


def parsed(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, recipes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The options by name, with the recipe of their data set where nothing else was asked for."""
    parser.set_defaults(**recipes[parser.get_default("data")])
    recipe = recipes[parser.parse_known_args(arguments)[0].data]
    parser.set_defaults(**recipe)
    chosen = vars(parser.parse_args(arguments))
    if chosen["warmup_epochs"] == recipe["warmup_epochs"] > chosen["epochs"]:
        # The recipe is one for more epochs.
        chosen["warmup_epochs"] = chosen["epochs"] / 2
    _check(parser, chosen)
    return chosen


def _check(parser: argparse.ArgumentParser, chosen: Mapping[str, Any]) -> None:
    """Exit with a message if options do not fit each other or the machine."""
    _check_recipe(parser, chosen)
    _check_device(parser, chosen["device"])
    if chosen["compile"] and chosen["compile"] not in (known := torch.compiler.list_backends(exclude_tags=())):
        parser.error(f"--compile {chosen['compile']}: torch has the backends {', '.join(known)}")
    if chosen["compile"] and chosen["sync_bn"]:
        parser.error("--compile does not see through the sums over all processes: leave out --sync-bn")
    if chosen["compile"] and chosen["recompute"]:
        parser.error("--compile decides itself what to recompute: leave out --recompute")


def _check_recipe(parser: argparse.ArgumentParser, chosen: Mapping[str, Any]) -> None:
    """Exit with a message if what is asked of data and training does not fit."""
    if chosen["data_root"] is not None and chosen["data"] in EMBEDDED:
        parser.error(f"--data-root {chosen['data_root']}: {chosen['data']} are not read from a folder, so leave it out")
    if chosen["warmup_epochs"] > chosen["epochs"]:
        what = f"--warmup-epochs {chosen['warmup_epochs']:g} are more than --epochs {chosen['epochs']}"
        parser.error(f"{what}: no step would have the learning rate of --lr")
    if chosen["batch_size"] % processes():
        parser.error(f"--batch-size {chosen['batch_size']} is for all {processes()} processes: give a multiple")


def _check_device(parser: argparse.ArgumentParser, device: torch.device) -> None:
    """Exit with a message if torch does not compute on it."""
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: torch finds no CUDA device here")
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        parser.error(f"--device {device}: torch cannot compute on it here ({str(error).partition('. ')[0]})")


def add_data(group: argparse._ArgumentGroup, names: Sequence[str]) -> None:
    """What to train on."""
    group.add_argument("--data", choices=names, default=names[0], help="the data set (%(default)s)")
    group.add_argument("--data-root", type=Path, metavar="FOLDER", help="where it is, if it is read from a folder")
    group.add_argument("--limit-train", type=positive, metavar="N", help="use only so many training images")
    group.add_argument("--limit-test", type=positive, metavar="N", help="use only so many test images")


def add_recipe(group: argparse._ArgumentGroup) -> None:
    """How to train; the defaults are those of the data set."""
    group.add_argument("--epochs", type=positive, metavar="N", help="passes over the data (%(default)s)")
    group.add_argument("--batch-size", type=positive, metavar="N", help="images per step (%(default)s)")
    group.add_argument("--lr", type=number, metavar="X", help="the highest learning rate (%(default)s)")
    words = "of weights; biases and norms have none (%(default)s)"
    group.add_argument("--weight-decay", type=number, metavar="X", help=words)
    words = "epochs until the highest learning rate (%(default)s)"
    group.add_argument("--warmup-epochs", type=number, metavar="X", help=words)
    words = "share of the target given to all classes (%(default)s)"
    group.add_argument("--label-smoothing", type=share, metavar="X", help=words)
    words = "train as well, and answer with, an average of the weights with this decay, such as 0.999 (none)"
    group.add_argument("--ema", type=share, default=0.0, metavar="X", help=words)
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of everything random (%(default)s)")


def add_augmentation(group: argparse._ArgumentGroup) -> None:
    """What training does to images; the defaults are those of the data set."""
    group.add_argument("--shift", type=whole, metavar="N", help="random shifts of small images, in pixels (size / 16)")
    group.add_argument("--randaugment", type=magnitude, metavar="M", help="magnitude, 0 to 30 (%(default)s)")
    group.add_argument("--mixup", type=number, metavar="A", help="alpha of mixup, 0 for none (%(default)s)")
    group.add_argument("--cutmix", type=number, metavar="A", help="alpha of cutmix, 0 for none (%(default)s)")


def add_place(group: argparse._ArgumentGroup, output: str) -> None:
    """Where and how to compute, and where to write."""
    group.add_argument(
        "--output", type=Path, metavar="FOLDER", default=Path(output), help="for all files (%(default)s)"
    )
    group.add_argument(
        "--resume",
        choices=("auto", "always", "never"),
        default="auto",
        help="continue a run in the output folder: if it is the same, or else fail, or never (%(default)s)",
    )
    group.add_argument("--tensorboard", action="store_true", help="write the curves for TensorBoard too")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument("--device", type=device, default=default, help="cpu, cuda, cuda:1, ... (%(default)s)")
    words = "number format of training: bfloat16 where the GPU has it, or this one (%(default)s)"
    group.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto", help=words)
    group.add_argument("--channels-last", action="store_true", help="keep images and weights in NHWC order")
    words = "torch.compile while training, with this backend (inductor)"
    group.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help=words)
    words = "forget what the blocks computed and compute it again for the gradient: less memory, more time"
    group.add_argument("--recompute", action="store_true", help=words)
    words = "batch norms over the whole batch, and not over the part of each process"
    group.add_argument("--sync-bn", action="store_true", help=words)
    group.add_argument("--threads", type=threads, metavar="N", help="CPU threads (as many as torch takes)")
    group.add_argument("--workers", type=whole, metavar="N", help="processes that read image files")


# --- values ---------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value


def seed(text: str) -> int:
    """A seed that torch takes."""
    if (value := whole(text)) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not below 2 ** 63")
    return value


def threads(text: str) -> int:
    """So many that a machine can start them."""
    if (value := positive(text)) > 1024:
        raise argparse.ArgumentTypeError(f"{text} is more than 1024")
    return value


def magnitude(text: str) -> int:
    """How strong RandAugment is."""
    if (value := whole(text)) > 30:
        raise argparse.ArgumentTypeError(f"{text} is more than 30")
    return value


def odd(text: str) -> int:
    """The size of a convolution that keeps the size of a map."""
    if (value := positive(text)) % 2 == 0:
        raise argparse.ArgumentTypeError(f"a kernel of {text}: only odd sizes keep the size of a map")
    return value


def number(text: str) -> float:
    """A number that is not negative."""
    # Written so that nan is refused.
    if not 0 <= (value := float(text)) <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def device(text: str) -> torch.device:
    """A device by name; among processes that torchrun started, "cuda" is the GPU of this one."""
    try:
        named = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"torch knows no device {text!r}") from None
    if named == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return named
