"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from data import NAMES
from model import CONFIGS

EPOCHS = {"digits": 20, "fashion-mnist": 5, "imagefolder": 100}
ELSEWHERE = ("workers", "output", "resume", "device", "threads", "fuse")
"""Options that leave the result of training as it is: another value continues the same run."""


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    data: str
    data_root: Path | None
    model: str
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
    fuse: bool

    def settings(self) -> dict[str, Any]:
        """The options that decide what training computes, as plain values."""
        kept = {name: value for name, value in asdict(self).items() if name not in ELSEWHERE}
        return {**kept, "data_root": str(self.data_root)}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options in `arguments`, by default those of the process; exits if they make no sense."""
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    if chosen["device"].type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if chosen["epochs"] is None:
        chosen["epochs"] = EPOCHS[chosen["data"]]
    return Options(**chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train RepMLPNet, fuse it with reparamkit, compare the two.")
    _add_what(parser.add_argument_group("what to train"))
    _add_how(parser.add_argument_group("how to train it"))
    _add_where(parser.add_argument_group("where"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", choices=NAMES, default="digits", help="the data set (%(default)s)")
    group.add_argument(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="where it is; digits need none, nor does fashion-mnist if Debian's package is installed",
    )
    group.add_argument("--model", choices=tuple(CONFIGS), default="repmlpnet_tiny32", help="(%(default)s)")
    _add_number(group, "--limit-train", None, "use only so many training images")
    _add_number(group, "--limit-test", None, "use only so many test images")


def _add_how(group: argparse._ArgumentGroup) -> None:
    epochs = ", ".join(f"{count} for {name}" for name, count in EPOCHS.items())
    _add_number(group, "--epochs", None, f"passes over the data ({epochs})")
    _add_number(group, "--batch-size", 64, "images per step (%(default)s)")
    _add_number(group, "--lr", 2e-3, "the highest learning rate (%(default)s)", low=1e-12, kind=float)
    words = "of weights; biases and norms have none (%(default)s)"
    _add_number(group, "--weight-decay", 0.05, words, low=0, kind=float)
    words = "epochs until the highest learning rate (%(default)s)"
    _add_number(group, "--warmup-epochs", 2.0, words, low=0, kind=float)
    words = "share of the target given to all classes (%(default)s)"
    _add_number(group, "--label-smoothing", 0.1, words, low=0, high=1, kind=float)
    _add_number(group, "--seed", 0, "of everything random (%(default)s)", low=0)


def _add_where(group: argparse._ArgumentGroup) -> None:
    output, device = Path("runs/repmlpnet"), "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument("--output", type=Path, metavar="FOLDER", default=output, help="for all files (%(default)s)")
    group.add_argument(
        "--resume",
        choices=("auto", "always", "never"),
        default="auto",
        help="continue a run in the output folder: if it is the same, or else fail, or never (%(default)s)",
    )
    group.add_argument("--device", type=_device, default=device, help="cpu, cuda, cuda:1, ... (%(default)s)")
    _add_number(group, "--threads", None, "CPU threads (as many as torch takes)")
    _add_number(group, "--workers", None, "processes that read image files (one per core, at most 8)", low=0)
    group.add_argument("--no-fuse", dest="fuse", action="store_false", help="stop after training")


def _add_number(
    group: argparse._ArgumentGroup,
    flag: str,
    default: float | None,
    words: str,
    *,
    low: float = 1,
    high: float = 10**9,
    kind: Callable[[str], float] = int,
) -> None:
    group.add_argument(flag, type=_between(kind, low, high), default=default, metavar="N", help=words)


def _between(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        # Written so that nan is refused.
        if not low <= (number := kind(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return number

    # argparse says "invalid int value" with this name.
    convert.__name__ = kind.__name__
    return convert


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"torch knows no device {text!r}") from None
