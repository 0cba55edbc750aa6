"""Time two models side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

WARM_UP = 3
FEWEST_ROUNDS, MOST_ROUNDS = 7, 200
SECONDS = 1.0
"""After this time there is no round beyond the fewest."""


@dataclass(frozen=True)
class Latency:
    """Median seconds per batch, before and after."""

    before: float
    after: float
    batch_size: int
    rounds: int

    def __str__(self) -> str:
        times = f"{1e3 * self.before:.2f} -> {1e3 * self.after:.2f} ms, {self.before / self.after:.2f}x"
        return f"batch {self.batch_size}: {times} (median of {self.rounds} rounds)"


@torch.inference_mode()
def compare_latency(before: nn.Module, after: nn.Module, images: Tensor) -> Latency:
    """Time both models on `images` (b, c, h, w) in turns, so that a busy machine disturbs both alike."""
    models = (before.eval(), after.eval())
    for model in models * WARM_UP:
        _seconds(model, images)
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > SECONDS:
            break
        # Who goes first changes every round: the second finds other things in the caches.
        for i in (done % 2, 1 - done % 2):
            times[i].append(_seconds(models[i], images))
    return Latency(median(times[0]), median(times[1]), len(images), len(times[0]))


def _seconds(model: nn.Module, images: Tensor) -> float:
    _wait(images.device)
    start = time.perf_counter()
    model(images)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
