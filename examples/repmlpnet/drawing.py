"""What the pictures of the examples share. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

COLOURS = ("#888888", "#00796b")


def curves(histories: Mapping[str, list[dict[str, float]]], measure: str, path: Path) -> None:
    """A measure per epoch, one line per run by its label."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for colour, (label, history) in zip(COLOURS[-len(histories) :], histories.items(), strict=True):
        axes.plot([h["epoch"] for h in history], [h[measure] for h in history], color=colour, label=label)
    axes.set(xlabel="epoch", ylabel=measure)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(histories) > 1:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def kernels(
    rows: Sequence[tuple[str, Tensor]], grid: tuple[int, int], places: Sequence[tuple[int, int]], path: Path
) -> None:
    """Rows of matrices (h*w, h*w), with their titles, as maps of the grid (h, w): what output `places` read of it."""
    limit = float(torch.stack([matrix for _, matrix in rows]).abs().max())
    figure, table = plt.subplots(len(rows), len(places), figsize=(7.2, 5.6), layout="constrained")
    for line, (title, matrix) in zip(table, rows, strict=True):
        line[0].set_ylabel(title)
        for axes, (i, j) in zip(line, places, strict=True):
            shown = _map(axes, matrix[i * grid[1] + j].reshape(grid), (i, j), limit)
    for axes, place in zip(table[0], places, strict=True):
        axes.set_title(f"output {place}", size=10)
    figure.colorbar(shown, ax=table, fraction=0.03, aspect=30)
    save(figure, path)


def _map(axes: Axes, weights: Tensor, place: tuple[int, int], limit: float) -> AxesImage:
    """What is read of a map (h, w); the output has a frame."""
    i, j = place
    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="none", ec="black", lw=1.2, clip_on=False, zorder=3))
    axes.set(xticks=[], yticks=[])
    return axes.imshow(weights.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure, on white so that it can be read on a dark page as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)
    print(path)
