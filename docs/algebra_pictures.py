"""The pictures of the page The algebra, computed: ``python docs/pictures.py join border`` draws them.

``join.svg``: what two roles become when branches are added, as matrices along one axis. ``border.svg``: two rows of two
windows, and where one window in their place would differ.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F

IMAGES = Path(__file__).resolve().parent / "img"
INK, SOFT, LINE, RIGHT, WRONG = "#1f2933", "#5d6975", "#c3ccd4", "#1d8a7d", "#c0392b"
SIZE = 8

# --- the table by which `add` joins roles ---------------------------------------------------------------

FULL = "IN, OUT"
ROLES = ("FREE", "DIAGONAL", "STENCIL", FULL, "MEAN")
JOINED = {
    ("FREE", "FREE"): "FREE",
    ("FREE", "DIAGONAL"): "DIAGONAL",
    ("FREE", "STENCIL"): "STENCIL",
    ("DIAGONAL", "DIAGONAL"): "DIAGONAL",
    ("STENCIL", "STENCIL"): "STENCIL",
    (FULL, FULL): FULL,
    ("STENCIL", FULL): "Locality\nInjection",
    ("MEAN", "MEAN"): "MEAN",
}
"""What is not here is a full matrix, on a fixed size only."""


def roles() -> dict[str, Tensor]:
    """One operator of each role along one axis, as a matrix (SIZE, SIZE); a mean has one row, shown for all outputs."""
    draw = torch.Generator().manual_seed(3)
    taps = torch.tensor([0.9, -0.6, 0.7])
    band = torch.zeros(SIZE, SIZE)
    for tap, offset in zip(taps, (-1, 0, 1), strict=True):
        band += torch.diag(tap.expand(SIZE - abs(offset)), offset)
    return {
        "FREE": torch.eye(SIZE) * 0.8,
        "DIAGONAL": torch.diag(torch.randn(SIZE, generator=draw)),
        "STENCIL": band,
        FULL: torch.randn(SIZE, SIZE, generator=draw) * 0.35,
        "MEAN": torch.full((SIZE, SIZE), 1 / SIZE) * 2,
    }


def join() -> None:
    """The table: at the edges the operators, in the cells their sums."""
    found = roles()
    figure, table = plt.subplots(6, 6, figsize=(8.4, 8.9))
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, wspace=0.12, hspace=0.42)
    table[0, 0].axis("off")
    table[0, 0].text(0.5, 0.5, "f + g", ha="center", va="center", size=15, color=INK, transform=table[0, 0].transAxes)
    for k, role in enumerate(ROLES):
        shown(table[0, k + 1], found[role], role, INK, 1.8)
        shown(table[k + 1, 0], found[role], role, INK, 1.8)
        for j, other in enumerate(ROLES):
            cell(table[k + 1, j + 1], found, role, other)
    save(figure, "join.svg")


def cell(axes: Axes, found: dict[str, Tensor], role: str, other: str) -> None:
    """A sum and its role; the lower half of the table repeats the upper."""
    if ROLES.index(other) < ROLES.index(role):
        axes.axis("off")
        return
    joined = JOINED.get((role, other), FULL + " *")
    injected = (role, other) == ("STENCIL", FULL)
    shown(axes, found[role] + found[other], joined, WRONG if injected else SOFT, 1.8 if injected else 0.8)


def shown(axes: Axes, matrix: Tensor, title: str, colour: str, width: float) -> None:
    """A matrix as a picture: output positions down, input positions across."""
    axes.imshow(matrix, cmap="RdBu_r", vmin=-1.8, vmax=1.8)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, size=9.5, color=colour if colour != SOFT else INK, pad=4)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour if width > 1 else LINE, linewidth=width)


# --- the border condition -------------------------------------------------------------------------------


def border() -> None:
    """A row that is one window, and one that is not."""
    figure, table = plt.subplots(2, 4, figsize=(11.4, 5.6), width_ratios=(2.5, 1, 1, 1))
    figure.subplots_adjust(0.01, 0.03, 0.99, 0.92, wspace=0.1, hspace=0.36)
    kernel = torch.tensor([0.8, -0.5, 0.6])
    row(table[0], torch.tensor([0.7]), kernel, "1 x 1, then padded 3 x 3: exact")
    row(table[1], kernel, kernel.flip(0), "padded 3 x 3, then padded 3 x 3: not one window")
    save(figure, "border.svg")


def row(axes: list[Axes], first: Tensor, second: Tensor, title: str) -> None:
    """What output 0 reads; both layers as a matrix; the one window as a matrix; the difference."""
    eye = torch.eye(SIZE)[:, None]
    two = window(window(eye, first), second)[:, 0].T
    # The taps convolved, which for torch is a window of flipped taps.
    merged = F.conv1d(first[None, None], second.flip(0)[None, None], padding=len(second) - 1)[0, 0]
    one = window(eye, merged)[:, 0].T
    reads(axes[0], len(first) // 2, len(second) // 2, title)
    shown(axes[1], two, "two layers", SOFT, 0.8)
    shown(axes[2], one, "one window", SOFT, 0.8)
    wrong = bool((one - two).abs().max() > 1e-6)
    shown(axes[3], one - two, "difference", WRONG if wrong else SOFT, 1.8 if wrong else 0.8)


def window(x: Tensor, taps: Tensor) -> Tensor:
    """A zero-padded window of stride 1 along the last axis of x (n, 1, size)."""
    return F.conv1d(x, taps[None, None], padding=len(taps) // 2)


def reads(axes: Axes, first: int, second: int, title: str) -> None:
    """Output 0 of g, the values of f it reads, and what these read of x. first, second: half widths of the windows."""
    axes.set(xlim=(-3.9, 5.4), ylim=(-0.55, 2.5))
    axes.axis("off")
    axes.set_title(title, size=11, color=INK, loc="left", weight="bold")
    beyond = -second
    for level, name in ((0, "x"), (1, "f(x)"), (2, "g(f(x))")):
        axes.text(-3.85, level, name, va="center", size=11, color=INK)
    for k in range(-second, second + 1):
        axes.plot([k, 0], [1, 2], color=LINE if k >= 0 else SOFT, lw=1.4, zorder=1)
    for k in range(beyond - first, beyond + first + 1):
        style = {"color": WRONG, "ls": "-", "lw": 2} if k >= 0 else {"color": SOFT, "ls": ":", "lw": 1.4}
        axes.plot([k, beyond], [0, 1], zorder=1, **style)
    for level in (0, 1, 2):
        for k in range(-2 if level < 2 else 0, 6 if level < 2 else 1):
            point(axes, k, level)
    there = "its window would read x at 0" if first else "its window reads only zeros"
    axes.text(1.1, 1.6, f"f at -1 is 0 for g;\n{there}", size=10, color=WRONG if first else RIGHT)


def point(axes: Axes, k: int, level: int) -> None:
    """A position; hollow where it is padding."""
    inside = k >= 0
    axes.plot([k], [level], "o", ms=11, mfc=INK if inside else "white", mec=INK if inside else SOFT, zorder=2)
    under = {"fc": "white", "ec": "none", "pad": 0.6}
    axes.text(k, level - 0.26, str(k), ha="center", va="center", size=8, color=SOFT, bbox=under)


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture."""
    figure.savefig(IMAGES / name, facecolor="white", metadata={"Date": None})
    plt.close(figure)
