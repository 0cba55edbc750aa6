"""Draw the pictures of the README from a run: ``python examples/resmlp/pictures.py --output runs/resmlp``.

curve.png: test accuracy per epoch of both arms. kernel.png: what output tokens read of the grid, before and after the
convolutions moved into the token-mixing layer. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent
sys.path.append(str(EXAMPLES / "repmlpnet"))

import torch  # noqa: E402
from command import command  # noqa: E402
from drawing import curves, kernels  # noqa: E402
from files import read_tensors  # noqa: E402
from history import read_history  # noqa: E402

LABELS = {"plain": "without injection", "injected": "with injection"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/resmlp"), help="the folder of the run")
    parser.add_argument("--images", type=Path, default=Path(__file__).parent / "img", help="where to draw to")
    options = parser.parse_args(arguments)
    return command(lambda: draw(options.output, options.images), torch.device("cpu"))


def draw(run: Path, images: Path) -> None:
    """Both pictures; the first is that of the weights, which fails if there is no run."""
    kernel(run, images / "kernel.png")
    histories = {label: read_history(run / arm) for arm, label in LABELS.items()}
    curves(histories, "test accuracy", images / "curve.png")


def kernel(run: Path, path: Path, block: int = 0) -> None:
    """Rows of the token-mixing matrix of one block, as maps of the grid."""
    name = f"blocks.{block}.linear_tokens"
    before = read_tensors(run / "injected" / "model.safetensors")[f"{name}.fc.weight"]
    after = read_tensors(run / "fused.safetensors")[f"{name}.weight"]
    side = math.isqrt(len(after))
    rows = [("as trained: fc", before), ("difference", after - before), ("fused", after)]
    kernels(rows, (side, side), [(0, 0), (side // 4, side // 2), (side // 2, side // 3), (side - 1, side // 2)], path)


if __name__ == "__main__":
    sys.exit(main())
