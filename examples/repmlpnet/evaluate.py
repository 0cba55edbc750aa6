"""Whether the fused model answers as the trained one does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from errors import FusionError
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images (b, c, h, w) and labels (b,)."""

LARGEST_RELATIVE_ERROR = 1e-4
"""Of the logits, max|a-b| / max|b|. Rounding in float32 stays far below it, a wrong merge far above."""


@dataclass(frozen=True)
class Comparison:
    """The logits of a model before and after fusion, on the same images."""

    before: Tensor
    """(n, classes)"""
    after: Tensor
    """(n, classes)"""
    labels: Tensor
    """(n,)"""

    @property
    def accuracy(self) -> tuple[float, float]:
        """The share of right answers, before and after."""
        return _accuracy(self.before, self.labels), _accuracy(self.after, self.labels)

    @property
    def largest_error(self) -> float:
        """The largest difference between two logits."""
        return (self.before.double() - self.after.double()).abs().max().item()

    @property
    def relative_error(self) -> float:
        """The largest difference, as a share of the largest logit."""
        return self.largest_error / max(self.before.abs().max().item(), torch.finfo(torch.float32).tiny)

    @property
    def flipped(self) -> Tensor:
        """Which images (n,) get another answer."""
        return self.before.argmax(1) != self.after.argmax(1)

    @property
    def margin(self) -> Tensor:
        """How far the best logit is above the second best, (n,), before fusion."""
        best = self.before.double().topk(2, dim=1).values
        return best[:, 0] - best[:, 1]

    def figures(self) -> dict[str, Any]:
        """Those that a page shows."""
        flipped = {"flipped": int(self.flipped.sum()), "tested": len(self.labels)}
        return {"accuracy": list(self.accuracy), **flipped, "relative error": self.relative_error}

    def check(self) -> None:
        """Refuse a fused model whose answers differ by more than rounding explains."""
        if not (self.before.isfinite().all() and self.after.isfinite().all()):
            raise FusionError("a logit is not a finite number: if training diverged, try a smaller --lr")
        if self.relative_error > LARGEST_RELATIVE_ERROR:
            raise FusionError(f"a logit is off by {self.relative_error:.1e} of the largest one: not rounding")
        # Each logit moved by at most the largest error, so the best two cannot have changed places.
        unexplained = self.flipped & (self.margin > 2 * self.largest_error)
        if unexplained.any():
            raise FusionError(f"{int(unexplained.sum())} predictions flipped against a clear margin")


def compare(before: nn.Module, after: nn.Module, batches: Batches, device: torch.device) -> Comparison:
    """Run both models on the same `batches` of images (b, c, h, w) and labels (b,)."""
    logits_before, logits_after, all_labels = [], [], []
    for images, labels in batches:
        images = images.to(device)
        logits_before.append(_logits(before, images))
        logits_after.append(_logits(after, images))
        all_labels.append(labels)
    return Comparison(torch.cat(logits_before), torch.cat(logits_after), torch.cat(all_labels))


def accuracy(model: nn.Module, batches: Batches, device: torch.device) -> float:
    """The share of `batches` of images (b, c, h, w) that `model` puts into the class of the labels (b,)."""
    right = total = 0
    for images, labels in batches:
        right += int((_logits(model, images.to(device)).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    output: Tensor = model.eval()(images)
    return output.cpu()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
