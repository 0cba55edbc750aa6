"""Command-line flags that the examples share, and the types of their values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch


def add_training(group: argparse._ArgumentGroup, epochs: Mapping[str, int], lr: float, batch_size: int) -> None:
    """How to train; `epochs` by data set."""
    words = ", ".join(f"{count} for {name}" for name, count in epochs.items())
    group.add_argument("--epochs", type=positive, metavar="N", help=f"passes over the data ({words})")
    group.add_argument("--batch-size", type=positive, default=batch_size, metavar="N", help="(%(default)s)")
    group.add_argument("--lr", type=number, default=lr, metavar="X", help="the highest learning rate (%(default)s)")
    group.add_argument("--weight-decay", type=number, default=0.05, metavar="X", help="(%(default)s)")
    group.add_argument("--warmup-epochs", type=number, default=2.0, metavar="X", help="(%(default)s)")
    group.add_argument("--label-smoothing", type=share, default=0.1, metavar="X", help="(%(default)s)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")


def add_place(group: argparse._ArgumentGroup, output: str) -> None:
    """Where to compute, and where to write."""
    group.add_argument(
        "--output", type=Path, metavar="FOLDER", default=Path(output), help="for all files (%(default)s)"
    )
    group.add_argument(
        "--resume",
        choices=("auto", "always", "never"),
        default="auto",
        help="continue a run in the output folder: if it is the same, or else fail, or never (%(default)s)",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument("--device", type=device, default=default, help="cpu, cuda, cuda:1, ... (%(default)s)")
    group.add_argument("--threads", type=positive, metavar="N", help="CPU threads (as many as torch takes)")
    group.add_argument("--workers", type=int, metavar="N", help="processes that read image files")


def add_limits(group: argparse._ArgumentGroup) -> None:
    """How much of the data to use."""
    group.add_argument("--limit-train", type=positive, metavar="N", help="use only so many training images")
    group.add_argument("--limit-test", type=positive, metavar="N", help="use only so many test images")


def check_device(parser: argparse.ArgumentParser, chosen: torch.device) -> None:
    """Exit with a message if there is no such device."""
    if chosen.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def odd(text: str) -> int:
    """The size of a convolution that keeps the size of a map."""
    if (value := positive(text)) % 2 == 0:
        raise argparse.ArgumentTypeError(f"a kernel of {text}: only odd sizes keep the size of a map")
    return value


def number(text: str) -> float:
    """A number that is not negative."""
    # Written so that nan is refused.
    if not 0 <= (value := float(text)) < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 up")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def device(text: str) -> torch.device:
    """A device by name."""
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"torch knows no device {text!r}") from None
