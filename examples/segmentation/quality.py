"""How well pixels are classified, and whether a fused model classifies them as the trained one does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from errors import DataError, FusionError
from evaluate import LARGEST_RELATIVE_ERROR
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images (b, c, H, W) and labels (b, H, W); a negative label does not count."""


class Confusion:
    """How many pixels of each class (row) were given to each class (column)."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.long)

    def add(self, answers: Tensor, labels: Tensor) -> None:
        """Count answers (b, H, W) against labels (b, H, W)."""
        counted = labels >= 0
        pairs = labels[counted] * len(self.counts) + answers[counted]
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).reshape(self.counts.shape)

    @property
    def mean_iou(self) -> float:
        """The mean, over classes that occur at all, of intersection over union."""
        hits = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return (hits / union)[union > 0].mean().item()

    @property
    def accuracy(self) -> float:
        """The share of pixels in the right class."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()


@torch.no_grad()
def mean_iou(model: nn.Module, batches: Batches, classes: int, device: torch.device) -> float:
    """Of `model`, in eval mode, on all `batches` together."""
    found = Confusion(classes)
    model.eval()
    for images, labels in batches:
        found.add(model(images.to(device)).argmax(1).cpu(), labels)
    if not found.counts.any():
        raise DataError("no pixel of the test images has a class: are the label files those of --data?")
    return found.mean_iou


@dataclass
class PixelComparison:
    """Two models on the same images.

    flipped: pixels that get another class. unexplained: those among them whose margin was more than twice the
    largest difference of two logits in their batch, so that rounding cannot have flipped them.
    """

    before: Confusion
    after: Confusion
    pixels: int = 0
    flipped: int = 0
    unexplained: int = 0
    largest_error: float = 0.0
    largest_logit: float = 0.0

    @property
    def relative_error(self) -> float:
        """The largest difference, as a share of the largest logit."""
        return self.largest_error / max(self.largest_logit, torch.finfo(torch.float32).tiny)

    def add(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Count logits (b, k, H, W) of both models."""
        if not (before.isfinite().all() and after.isfinite().all()):
            raise FusionError("a logit is not a finite number: if training diverged, try a smaller --lr")
        error = (before.double() - after.double()).abs().max().item()
        best = before.double().topk(2, dim=1).values
        answers = before.argmax(1), after.argmax(1)
        flipped = answers[0] != answers[1]
        self.before.add(answers[0], labels)
        self.after.add(answers[1], labels)
        self.pixels += flipped.numel()
        self.flipped += int(flipped.sum())
        self.unexplained += int((flipped & (best[:, 0] - best[:, 1] > 2 * error)).sum())
        self.largest_error = max(self.largest_error, error)
        self.largest_logit = max(self.largest_logit, before.abs().max().item())

    def figures(self) -> dict[str, Any]:
        """Those that a page shows."""
        found = {"mIoU": [side.mean_iou for side in (self.before, self.after)]}
        found["pixel accuracy"] = [side.accuracy for side in (self.before, self.after)]
        return {**found, "flipped": self.flipped, "tested": self.pixels, "relative error": self.relative_error}

    def check(self) -> None:
        """Refuse a fused model whose answers differ by more than rounding explains."""
        if self.relative_error > LARGEST_RELATIVE_ERROR:
            raise FusionError(f"a logit is off by {self.relative_error:.1e} of the largest one: not rounding")
        if self.unexplained:
            raise FusionError(f"{self.unexplained} pixels flipped against a clear margin")


@torch.no_grad()
def compare(
    before: nn.Module, after: nn.Module, batches: Batches, classes: int, device: torch.device
) -> PixelComparison:
    """Run both models, in eval mode, on the same `batches`."""
    result = PixelComparison(Confusion(classes), Confusion(classes))
    before.eval()
    after.eval()
    for images, labels in batches:
        images = images.to(device)
        result.add(before(images).cpu(), after(images).cpu(), labels)
    return result
