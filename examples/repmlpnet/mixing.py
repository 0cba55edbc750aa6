"""Mixup and cutmix: images and labels of a batch are mixed in pairs."""

from __future__ import annotations

from collections.abc import Callable

from errors import DataError
from torch import Tensor

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (b, c, h, w) and labels (b,) to images and labels, the latter as shares of the classes (b, k) if mixed."""


def mixing(mixup: float, cutmix: float, classes: int) -> Mix:
    """One of the two per batch, at random; with an alpha of 0 it is left out."""
    if mixup == cutmix == 0:
        return lambda images, labels: (images, labels)
    try:
        from torchvision.transforms import v2  # type: ignore[import-untyped]
    except ImportError:
        raise DataError("--mixup and --cutmix come from torchvision: pip install torchvision") from None
    kinds = [kind(alpha=a, num_classes=classes) for kind, a in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if a]
    mix: Mix = v2.RandomChoice(kinds)
    return mix
