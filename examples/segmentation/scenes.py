"""Handwritten digits strewn over a canvas, each pixel labelled with the digit it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from data import InMemory, load_data
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

CLASSES = ("background", *map(str, range(10)))
SIZE = 64
INK = 0.35
"""From this brightness on, a pixel of a digit is labelled as that digit."""
SMALLEST, LARGEST = 18, 30
"""Side of a digit on the canvas, in pixels."""


@dataclass(frozen=True)
class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Canvases (n, 1, 64, 64) in [0, 1] and labels (n, 64, 64): 0 for the background, 1 + d for the digit d."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def load_scenes(train: int, test: int, seed: int = 0) -> tuple[Scenes, Scenes]:
    """So many canvases for training and for testing; no digit is in both."""
    data = load_data("digits", 8)
    return compose(_part(data.train), train, seed), compose(_part(data.test), test, seed + 1)


def _part(part: Dataset[object]) -> tuple[Tensor, Tensor]:
    """Digits (n, 8, 8) in [0, 1] and their numbers (n,)."""
    assert isinstance(part, InMemory)
    return part.images[:, 0].float() / 255, part.labels


def compose(digits: tuple[Tensor, Tensor], count: int, seed: int) -> Scenes:
    """`count` canvases of 2 to 5 digits of random size, place and brightness over a cluttered ground."""
    generator = torch.Generator().manual_seed(seed)
    images = _ground(count, generator)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        for _ in range(_between(2, 5, generator)):
            _draw(image[0], label, digits, generator)
    noise = 0.05 * torch.randn(images.shape, generator=generator)
    return Scenes((images + noise).clamp_(0, 1), labels)


def _ground(count: int, generator: torch.Generator) -> Tensor:
    """A dim, blotchy ground (n, 1, 64, 64): brightness alone does not tell a digit."""
    coarse = torch.rand(count, 1, 9, 9, generator=generator)
    return 0.4 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp_(0, 1)


def _draw(image: Tensor, label: Tensor, digits: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    """One digit onto a canvas (64, 64) and its labels (64, 64); it covers what was there."""
    number = _between(0, len(digits[0]) - 1, generator)
    side = _between(SMALLEST, LARGEST, generator)
    top, left = (_between(0, SIZE - side, generator) for _ in range(2))
    digit = F.interpolate(digits[0][number][None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    brightness = 0.6 + 0.4 * torch.rand((), generator=generator)
    window = (slice(top, top + side), slice(left, left + side))
    image[window] = torch.maximum(image[window] * (1 - digit), digit * brightness)
    label[window] = torch.where(digit >= INK, digits[1][number] + 1, label[window])


def _between(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
