"""Draw the pictures of the README from a run: ``python examples/repmlpnet/pictures.py --output runs/repmlpnet``.

repmlpnet-curve.png: test accuracy per epoch. repmlpnet-kernel.png: what output pixels read of a partition in the first
block, before and after its batch norm and convolutions moved into FC3. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from command import command
from drawing import curves, kernels
from files import read_tensors
from history import read_history
from torch import Tensor

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "img"
"""This README is a page of the docs as well."""
BLOCK = "stages.0.0.repmlp_block"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/repmlpnet"), help="the folder of the run")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where to draw to")
    options = parser.parse_args(arguments)
    return command(lambda: draw(options.output, options.images), torch.device("cpu"))


def draw(run: Path, images: Path) -> None:
    """Both pictures; the first is that of the weights, which fails if there is no run."""
    kernel(run, images / "repmlpnet-kernel.png")
    curves({"": read_history(run)}, "test accuracy", images / "repmlpnet-curve.png")


def kernel(run: Path, path: Path) -> None:
    """Rows of FC3 of the first share-set, as maps of a partition."""
    trained, fused = (read_tensors(run / f"{name}.safetensors") for name in ("model", "fused"))
    side = math.isqrt(trained[f"{BLOCK}.fc3.weight"].shape[1])
    before = fc3(trained, side) * norm_scale(trained)
    after = fc3(fused, side)
    rows = [("FC3 and its norm", before), ("difference", after - before), ("FC3, fused", after)]
    kernels(rows, (side, side), [(0, 0), (1, 2), (2, 1), (side - 1, 2)], path)


def fc3(tensors: Mapping[str, Tensor], side: int) -> Tensor:
    """The matrix (h*w, h*w) of the first share-set."""
    return tensors[f"{BLOCK}.fc3.weight"][: side * side, :, 0, 0]


def norm_scale(tensors: Mapping[str, Tensor]) -> Tensor:
    """What the batch norm behind FC3 multiplies the first share-set by, a scalar."""
    weight, variance = (tensors[f"{BLOCK}.fc3_bn.{name}"][0] for name in ("weight", "running_var"))
    return weight / (variance + 1e-5).sqrt()


if __name__ == "__main__":
    sys.exit(main())
