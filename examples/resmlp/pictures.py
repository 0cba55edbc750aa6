"""Draw the pictures of the README from a run: ``python examples/resmlp/pictures.py --output runs/resmlp``.

curve.png: test accuracy per epoch of both arms. kernel.png: what output tokens read of the grid, before and after the
convolutions moved into the token-mixing layer. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent
sys.path.append(str(EXAMPLES / "repmlpnet"))

from drawing import curves, kernels  # noqa: E402
from files import read_tensors  # noqa: E402
from history import read_history  # noqa: E402

LABELS = {"plain": "without injection", "injected": "with injection"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/resmlp"), help="the folder of the run")
    parser.add_argument("--images", type=Path, default=Path(__file__).parent / "img", help="where to draw to")
    options = parser.parse_args()
    histories = {label: read_history(options.output / arm) for arm, label in LABELS.items()}
    curves(histories, "test accuracy", options.images / "curve.png")
    kernel(options.output, options.images / "kernel.png")


def kernel(run: Path, path: Path, block: int = 0) -> None:
    """Rows of the token-mixing matrix of one block, as maps of the grid."""
    name = f"blocks.{block}.linear_tokens"
    before = read_tensors(run / "injected" / "model.safetensors")[f"{name}.fc.weight"]
    after = read_tensors(run / "fused.safetensors")[f"{name}.weight"]
    side = math.isqrt(len(after))
    rows = [("as trained: fc", before), ("difference", after - before), ("fused", after)]
    kernels(rows, (side, side), [(0, 0), (side // 4, side // 2), (side // 2, side // 3), (side - 1, side // 2)], path)


if __name__ == "__main__":
    main()
