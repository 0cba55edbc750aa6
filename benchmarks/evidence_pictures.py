"""The pictures of docs/evidence.md. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from evidence_page import ARMS, BUDGETS, COMPARISONS, ROOT, Estimate, Results
from matplotlib.axes import Axes

STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "reparamkit", "svg.fonttype": "path"}
IMAGES = ROOT / "docs" / "img"
INK, DOT = "#1f2933", "#1d8a7d"


def draw(results: Results) -> None:
    with plt.rc_context(STYLE):
        accuracy(results, IMAGES / "evidence-accuracy.svg")
        differences(results, IMAGES / "evidence-differences.svg")


def accuracy(results: Results, path: Path) -> None:
    """Every run as a dot, its arm as a line; both panels on scales of their own."""
    figure, panels = plt.subplots(1, len(BUDGETS), figsize=(8.2, 2.5), sharey=True, layout="constrained")
    for axes, (budget, title) in zip(panels, BUDGETS.items(), strict=True):
        lines = [(name, results.accuracy(budget, arm)) for arm, name in ARMS.items()]
        _strips(axes, lines)
        axes.set(title=title, xlabel="test accuracy, %")
    _save(figure, path)


def differences(results: Results, path: Path) -> None:
    """Every pair of runs as a dot, on one scale."""
    figure, panels = plt.subplots(1, len(BUDGETS), figsize=(8.2, 2.0), sharey=True, sharex=True, layout="constrained")
    for axes, (budget, title) in zip(panels, BUDGETS.items(), strict=True):
        lines = [(what, results.difference(budget, arm, other)) for what, arm, other in COMPARISONS]
        _strips(axes, lines)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set(title=title, xlabel="points, with minus without")
    _save(figure, path)


def _strips(axes: Axes, lines: list[tuple[str, Estimate]]) -> None:
    for place, (_, estimate) in enumerate(lines):
        low, high = estimate.interval
        axes.plot((low, high), (place, place), color=DOT, lw=2.2, alpha=0.45, solid_capstyle="butt")
        axes.plot(estimate.values, [place] * len(estimate.values), "o", ms=3.2, mew=0, color=DOT)
        axes.plot(estimate.mean, place, "|", ms=11, mew=1.6, color=INK)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(axis="x", color="#dfe4e8", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _save(figure: plt.Figure, path: Path) -> None:
    # White, so that it can be read on a dark page as well.
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)
    print(path)
