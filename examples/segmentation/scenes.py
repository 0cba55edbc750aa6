"""Handwritten digits strewn over a canvas, each pixel labelled with the digit it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from data import InMemory, load_data
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

CLASSES = ("background", *map(str, range(10)))
SIZE = 32
INK = 0.35
"""From this brightness on, a pixel of a digit is labelled as that digit."""
SMALLEST, LARGEST = 12, 18
"""Side of a digit on the canvas, in pixels."""


@dataclass(frozen=True)
class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Canvases (n, 1, 32, 32) in [0, 1] and labels (n, 32, 32): 0 for the background, 1 + d for the digit d."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class FreshScenes(Dataset[tuple[Tensor, Tensor]]):
    """`count` canvases that are composed anew each time they are read, with torch's own random numbers."""

    digits: tuple[Tensor, Tensor]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A canvas (1, 32, 32) and its labels (32, 32)."""
        return compose(self.digits, 1, int(torch.randint(2**31, ())))[0]


def load_scenes(train: int, test: int, seed: int = 0) -> tuple[FreshScenes, Scenes]:
    """So many canvases for training (new ones every epoch) and for testing; no digit is in both."""
    data = load_data("digits", 8)
    return FreshScenes(_part(data.train), train), compose(_part(data.test), test, seed)


def _part(part: Dataset[object]) -> tuple[Tensor, Tensor]:
    """Digits (n, 8, 8) in [0, 1] and their numbers (n,)."""
    assert isinstance(part, InMemory)
    return part.images[:, 0].float() / 255, part.labels


def compose(digits: tuple[Tensor, Tensor], count: int, seed: int) -> Scenes:
    """`count` canvases of 1 to 3 digits of random size, place and brightness over a cluttered ground."""
    generator = torch.Generator().manual_seed(seed)
    images = _ground(count, generator)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        for _ in range(_between(1, 3, generator)):
            _draw(image[0], label, digits, generator)
    noise = 0.05 * torch.randn(images.shape, generator=generator)
    return Scenes((images + noise).clamp_(0, 1), labels)


def _ground(count: int, generator: torch.Generator) -> Tensor:
    """A dim, blotchy ground (n, 1, 32, 32): brightness alone does not tell a digit."""
    coarse = torch.rand(count, 1, 6, 6, generator=generator)
    return 0.3 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp_(0, 1)


def _draw(image: Tensor, label: Tensor, digits: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    """One digit onto a canvas (32, 32) and its labels (32, 32); it covers what was there."""
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
