"""What comparing the two forms of a net gave: printed, and kept as figures.json beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from evaluate import Comparison
from files import write_atomically
from torch import Tensor, nn

import reparamkit

NAME = "figures.json"
Figures = dict[str, Any]
"""Names to numbers, or to the two numbers before and after."""


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


def print_answers(result: Comparison) -> Figures:
    """How the answers of the two forms differ; raises an error if rounding cannot explain it."""
    before, after = result.accuracy
    print(f"test accuracy        {before:.2%} -> {after:.2%}")
    print(f"flipped predictions  {int(result.flipped.sum())} of {len(result.labels)}")
    print(f"largest logit error  {result.largest_error:.2e} ({result.relative_error:.1e} of the largest logit)")
    result.check()
    return result.figures()


def print_size(report: reparamkit.Report) -> Figures:
    """What the report counted, before and after."""
    names = {"parameters": "parameters", "FLOPs": "flops", "operations": "ops"}
    found = {name: [getattr(side, field) for side in (report.before, report.after)] for name, field in names.items()}
    for name, (before, after) in found.items():
        print(f"{name:20s} {before:,} -> {after:,}")
    return found


def print_speed(before: nn.Module, after: nn.Module, images: Tensor) -> Figures:
    """The latency on one image and on the whole batch `images` (b, c, h, w), in milliseconds."""
    print(f"latency              on {describe(images.device)}, float32")
    found = []
    for batch in (images[:1], images):
        times = reparamkit.benchmark(before, after, batch, rounds=30 if len(batch) == 1 else 10)
        print(f"  batch {len(batch)}: {times.model.median:.2f} -> {times.fused.median:.2f} ms, {times.speedup}")
        found.append({"batch": len(batch), "ms": [times.model.median, times.fused.median], "x": times.speedup.median})
    return {"latency": found}


def write_figures(figures: Mapping[str, Any], folder: Path) -> None:
    """Keep them, with what they depend on."""
    where = {"torch": torch.__version__.partition("+")[0], "threads": torch.get_num_threads()}
    text = json.dumps({**figures, **where}, indent=2)
    write_atomically(folder / NAME, lambda temporary: temporary.write_text(text + "\n"))
