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

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from arguments import ARMS  # noqa: E402
from files import read_tensors  # noqa: E402
from history import read_history  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from torch import Tensor  # noqa: E402

COLOURS = {"plain": "#888888", "injected": "#00796b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/resmlp"), help="the folder of the run")
    parser.add_argument("--images", type=Path, default=Path(__file__).parent / "img", help="where to draw to")
    options = parser.parse_args()
    options.images.mkdir(parents=True, exist_ok=True)
    curve(options.output, options.images / "curve.png")
    kernel(options.output, options.images / "kernel.png")


def curve(run: Path, path: Path) -> None:
    """Test accuracy per epoch."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for arm in ARMS:
        history = read_history(run / arm)
        label = {"plain": "without injection", "injected": "with injection"}[arm]
        axes.plot([h["epoch"] for h in history], [h["test accuracy"] for h in history], color=COLOURS[arm], label=label)
    axes.set(xlabel="epoch", ylabel="test accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def kernel(run: Path, path: Path, block: int = 0) -> None:
    """Rows of the token-mixing matrix of one block, as maps of the grid."""
    name = f"blocks.{block}.linear_tokens"
    before = read_tensors(run / "injected" / "model.safetensors")[f"{name}.fc.weight"]
    after = read_tensors(run / "fused.safetensors")[f"{name}.weight"]
    side = math.isqrt(len(after))
    tokens = [(0, 0), (side // 4, side // 2), (side // 2, side // 3), (side - 1, side // 2)]
    rows = [("as trained: fc", before), ("difference", after - before), ("fused", after)]
    limit = float(torch.stack([m for _, m in rows]).abs().max())
    figure, table = plt.subplots(len(rows), len(tokens), figsize=(7.2, 5.6), layout="constrained")
    for line, (title, matrix) in zip(table, rows, strict=True):
        line[0].set_ylabel(title)
        for axes, (i, j) in zip(line, tokens, strict=True):
            shown = draw_map(axes, matrix[i * side + j].reshape(side, side), (i, j), limit)
    for axes, token in zip(table[0], tokens, strict=True):
        axes.set_title(f"output token {token}", size=10)
    figure.colorbar(shown, ax=table, fraction=0.03, aspect=30)
    _save(figure, path)


def draw_map(axes: Axes, weights: Tensor, token: tuple[int, int], limit: float) -> matplotlib.image.AxesImage:
    """A row of a matrix as the map (side, side) it reads; the output token has a frame."""
    i, j = token
    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="none", ec="black", lw=1.2, clip_on=False, zorder=3))
    axes.set(xticks=[], yticks=[])
    return axes.imshow(weights, cmap="RdBu_r", vmin=-limit, vmax=limit)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
