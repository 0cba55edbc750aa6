"""How long two models take, in turns, so that what slows the machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Comparison:
    """Two models on one input. rounds: measured calls of each, after the warm-up."""

    original: Timing
    fused: Timing
    rounds: int
    threads: int

    @property
    def speedup(self) -> float:
        """How many times as fast the fused model is, by the medians."""
        return self.original.median / self.fused.median


def compare_speed(original: nn.Module, fused: nn.Module, inputs: Sequence[Tensor], rounds: int) -> Comparison:
    """Run both in turns, `rounds` times each, at least twice. inputs: of the size to be measured."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for k in range(rounds + 3):
            for model, kept in zip((original, fused), times, strict=True):
                start = time.perf_counter()
                model(*inputs)
                if k >= 3:
                    kept.append(1e3 * (time.perf_counter() - start))
    before, after = map(_timing, times)
    return Comparison(before, after, rounds, torch.get_num_threads())


def _timing(times: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high)
